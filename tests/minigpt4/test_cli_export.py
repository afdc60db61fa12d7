"""`minigpt4 export`, trainer_scripts/push_to_hub.py and `minigpt4.models.load`, with a Hub of our own (local_hub.py)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from elsewhere import answer, consume
from huggingface_hub import EvalResult, ModelCard
from local_hub import TOKEN, local_hub
from safetensors.torch import load_file, save_file

from minigpt4.cli import main
from minigpt4.modeling_minigpt4 import embedded
from minigpt4.modeling_minigpt4.embedded import load_embedded
from minigpt4.modeling_minigpt4.export import export
from minigpt4.models import load

SCRIPTS = Path(__file__).parents[2] / "trainer_scripts"


@pytest.fixture
def source(original, processor, tmp_path):
    """Folder of the tiny model."""
    return export(original, processor, tmp_path / "source")


@pytest.fixture
def hub():
    with local_hub() as hub:
        yield hub


def command(arguments, hub, tmp_path):
    """Runs trainer_scripts/push_to_hub.py, in a process of its own that speaks with our Hub."""
    finished = subprocess.run(
        [sys.executable, str(SCRIPTS / "push_to_hub.py"), *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert TOKEN not in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    return finished


def edit_json(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def one_line(capsys):
    """The one line that a failed command leaves on stderr, without transformers' progress bars."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minigpt4 ")]
    assert len(lines) == 1
    return lines[0]


def test_export(source, original, processor, tmp_path, picture, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--model", "source", "--output", "out"]) == 0
    assert capsys.readouterr().out.startswith("out: every weight, ")
    picture().save("photo.png")
    model, processor_again = load("out")
    assert not model.training
    assert answer(model, processor_again) == answer(original, processor)
    # What the source's README says of its data and results holds for the copy.
    card = ModelCard.load("source/README.md")
    result = EvalResult("image-text-to-text", "coco", "COCO", "coverage", 2.22)
    card.data.eval_results, card.data.model_name, card.data.datasets = [result], "mine", ["mine/pictures"]
    card.save("source/README.md")
    assert main(["export", "--model", "source", "--output", "out"]) == 0
    assert ModelCard.load("out/README.md").data.datasets == ["mine/pictures"]
    assert "| COCO | coverage | 2.22 |" in Path("out/README.md").read_text()


@pytest.mark.parametrize("projection", ["shipped", "another"])
def test_export_embedded_light(projection, tmp_path, monkeypatch, capsys):
    if projection == "shipped" and not embedded.SHIPPED_PROJECTION.exists():
        pytest.skip("no projection ships yet")
    if projection == "another":
        monkeypatch.setattr("minigpt4.modeling_minigpt4.embedded.load_embedded", lambda: load_embedded(None))
    output = tmp_path / "out"
    assert main(["export", "--model", "embedded", "--output", str(output), "--light"]) == 0
    assert "trained weights only" in capsys.readouterr().out
    model, _ = load(str(output))
    assert model.config.base_parts is not None
    assert model.generation_config.max_new_tokens == 200


def test_push_is_one_commit_that_others_load(source, original, processor, hub, tmp_path, picture, monkeypatch):
    arguments = ["--model", source, "--output", tmp_path / "out", "--push", "tester/mine", "--private"]
    finished = command(arguments, hub, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert f"pushed to {hub.url}/tester/mine/commit/" in finished.stdout
    [commit] = hub.commits
    assert commit["repo"] == "tester/mine"
    assert commit["files"] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert b'repo = "tester/mine"' in commit["files"]["README.md"]
    assert hub.private["tester/mine"]
    # The same from the Hub as from a folder, though files come one by one there.
    report = consume("tester/mine", tmp_path / "again", picture(), **hub.environment)
    monkeypatch.chdir(tmp_path)
    assert report["answers"] == dict.fromkeys(report["answers"], answer(original, processor)[0])


def test_pushing_again_replaces_the_weights(source, hub, tmp_path):
    hub.files["tester/mine"] = {"model-00001-of-00002.safetensors": b"", "model.safetensors.index.json": b"", "a.md": b""}
    hub.private["tester/mine"] = False
    arguments = ["--model", source, "--output", tmp_path / "out", "--push", "mine"]
    assert command(arguments, hub, tmp_path).returncode == 0
    [commit] = hub.commits
    assert set(commit["deleted"]) == {"model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    refused = command([*arguments, "--private"], hub, tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("push_to_hub: tester/mine: exists and is public")
    assert len(hub.commits) == 1


def test_push_that_the_hub_refuses(source, hub, tmp_path):
    hub.refuse = 401
    finished = command(["--model", source, "--output", tmp_path / "out", "--push", "tester/mine"], hub, tmp_path)
    assert finished.returncode == 2
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("push_to_hub: tester/mine: the Hub does not take it (") and "401" in last
    assert last.endswith("log in with `hf auth login`")
    assert not (tmp_path / "out").exists()


def test_script_opens_with_its_command():
    assert (SCRIPTS / "push_to_hub.py").read_text().startswith('"""python trainer_scripts/push_to_hub.py --model ')


def test_help_needs_no_torch():
    code = (
        "import sys, minigpt4.cli\n"
        "try: minigpt4.cli.main(['export', '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "--light" in finished.stdout


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nothere", "nothere: no such folder"),
        ("./a/b", "./a/b: no such folder"),
        ("empty", "empty: a folder that is not a model: no config.json in it"),
        ("file", "file: is a file; expected the folder of a model"),
    ],
)
def test_no_model_of_that_name(model, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    assert main(["export", "--model", model, "--output", "out"]) == 2
    assert one_line(capsys).startswith(f"minigpt4 export: {message}")
    assert not Path("out").exists()


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: edit_json(folder / "config.json", model_type="llama"), "says model_type 'llama', expected 'minig"),
        (lambda folder: (folder / "config.json").write_text("{"), "its config.json cannot be read"),
        (lambda folder: edit_json(folder / "config.json", num_query_tokens="many"), "does not describe a MiniGPT-4"),
        (lambda folder: edit_json(folder / "config.json", image_token_id=600), "image_token_id is 600, outside"),
        (
            lambda folder: edit_json(folder / "config.json", num_query_tokens=6),
            r"tensor model.query_tokens has shape \(1, 5, 24\), expected \(1, 6, 24\)",
        ),
        (
            lambda folder: change_weights(folder, lambda weights: weights.pop("model.projection.bias")),
            "not complete; missing weights: model.projection.bias, the first of 1",
        ),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "its weights are damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "processor_config.json").unlink(), "its processor or tokenizer cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer in it, expected tokenizer.json"),
        (
            lambda folder: edit_json(folder / "processor_config.json", num_image_tokens=6),
            "its processor writes 6 image tokens for a picture, its config.json says 5",
        ),
    ],
)
def test_a_folder_with_something_wrong(spoil, message, source):
    spoil(source)
    with pytest.raises((ValueError, OSError), match=message) as raised:
        load(str(source))
    assert len(str(raised.value).splitlines()) == 1


def test_load_runs_no_code_of_the_folder(source):
    for file in source.glob("*.py"):
        file.write_text("raise AssertionError('this must not run')")
    load(str(source))


def test_light_weights_of_other_dimensions(tmp_path):
    folder = export(*load_embedded(projection=None), tmp_path / "light", light=True)
    name = "model.projection.weight"
    change_weights(folder, lambda weights: weights.update({name: weights[name][:, :768].contiguous()}))
    with pytest.raises(ValueError, match=r"shape \(576, 768\), expected \(576, 1280\)"):
        load(str(folder))


def test_output_that_is_something_else(source, tmp_path, capsys):
    shutil.copy(source / "config.json", tmp_path / "notes.pdf")
    assert main(["export", "--model", "nothere", "--output", str(tmp_path)]) == 2  # said before the model is looked for
    assert "and is not an earlier export" in one_line(capsys)


def test_private_without_push(tmp_path, capsys):
    assert main(["export", "--model", "embedded", "--output", str(tmp_path / "out"), "--private"]) == 2
    assert "add --push REPO" in one_line(capsys)
