"""`minigpt4 export`, trainer_scripts/push_to_hub.py and `minigpt4.load`, with a Hub of our own (helpers/local_hub.py)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from benchmark_files import write_pope
from elsewhere import answer, consume
from huggingface_hub import EvalResult, ModelCard, parse_eval_result_entries
from local_hub import TOKEN, local_hub
from safetensors.torch import load_file, save_file

from minigpt4.cli import main
from minigpt4.hub.export import export
from minigpt4.inference.named_models import load

SCRIPTS = Path(__file__).parents[3] / "trainer_scripts"


@pytest.fixture
def source(original, processor, tmp_path):
    """Folder of the tiny model."""
    return export(original, processor, tmp_path / "source")


@pytest.fixture
def hub():
    with local_hub() as hub:
        yield hub


def command(arguments, hub, tmp_path):
    """Runs trainer_scripts/push_to_hub.py in a separate process that talks to our Hub."""
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


def files_in(folder):
    """{path inside: content} of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_python(code, hub, tmp_path, **environment):
    """Runs Python code in a separate process that talks to our Hub; returns what it prints, as JSON."""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "hf"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


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
    # The source's README on its data and results also applies to the copy.
    card = ModelCard.load("source/README.md")
    result = EvalResult("image-text-to-text", "coco", "COCO", "coverage", 2.22)
    card.data.eval_results, card.data.model_name, card.data.datasets = [result], "mine", ["mine/pictures"]
    card.save("source/README.md")
    assert main(["export", "--model", "source", "--output", "out"]) == 0
    assert ModelCard.load("out/README.md").data.datasets == ["mine/pictures"]
    assert "| COCO | coverage | 2.22 |" in Path("out/README.md").read_text()


def test_examples_and_results_of_the_card(source, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture().save("mine.png")
    Path("scores.json").write_text('{"data": "My set", "n": 3, "short": {"cider": 0.25}}')
    command = ["export", "--model", "source", "--output", "out"]
    assert main([*command, "--examples", "mine.png", "--results", "scores.json"]) == 0
    card = ModelCard.load("out/README.md")
    assert [shown["src"] for shown in card.data.widget] == ["examples/1-mine.jpg"]
    assert card.data.eval_results[0].metric_value == 0.25
    assert "| My set, 3 pictures | cider (short) | 0.25 |" in card.text
    # Without scikit-image there are no pictures to show, and with an empty list neither.
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert main(command) == 0
    assert not Path("out/examples").exists()
    capsys.readouterr()
    for wrong, message in ((["--results", "nothere.json"], "nothere.json"), (["--examples", "scores.json"], "scores.json")):
        assert main([*command, *wrong]) == 2
        assert one_line(capsys).startswith(f"minigpt4 export: {message}: ")


def test_results_of_registered_benchmarks_are_files_that_the_hub_reads(source, tmp_path, monkeypatch, capsys):
    """The rest stays in the card's metadata, and an export without them takes the files away."""
    monkeypatch.chdir(tmp_path)
    figure = {"value": 0.81234, "n": 3000, "interval": [0.8, 0.82]}
    scores = {"random": {"accuracy": figure, "f1": figure}, "popular": {"accuracy": {**figure, "value": 0.7}}}
    Path("scores.json").write_text(json.dumps({"data": "POPE", "n": 3000, **scores}))
    command = ["export", "--model", "source", "--output", "out", "--examples", "--results", "scores.json"]
    asked = ["--benchmark", "lmms-lab/POPE@abc123", "random", "accuracy (random)"]
    assert main([*command, *asked, "--benchmark", "lmms-lab/POPE@abc123", "popular", "accuracy (popular)"]) == 0
    assert [path.name for path in Path("out/.eval_results").iterdir()] == ["lmms-lab--POPE.yaml"]
    entries = parse_eval_result_entries(yaml.safe_load(Path("out/.eval_results/lmms-lab--POPE.yaml").read_text()))
    assert [(entry.dataset_id, entry.task_id, entry.value, entry.dataset_revision) for entry in entries] == [
        ("lmms-lab/POPE", "random", 0.8123, "abc123"),
        ("lmms-lab/POPE", "popular", 0.7, "abc123"),
    ]
    assert "n=3000, 95% interval 0.8 to 0.82" in entries[0].notes
    assert [result.metric_name for result in ModelCard.load("out/README.md").data.eval_results] == ["f1 (random)"]
    capsys.readouterr()
    for wrong, message in (
        (["a/b", "default", "f2 (random)"], "0 results are called 'f2 (random)'; expected one of 'accuracy (random)'"),
        (["POPE", "default", "f1 (random)"], "expected the id of a data set"),
    ):
        assert main([*command, "--benchmark", *wrong]) == 2
        assert message in one_line(capsys)
    assert main(command) == 0
    assert not Path("out/.eval_results").exists()


def test_results_are_of_the_model_that_is_exported(source, original, processor, picture, tmp_path, monkeypatch, capsys):
    """Those of a copy of it, or of the one it was put beside; never those of other weights."""
    with torch.no_grad():
        original.model.projection.weight.mul_(-3)
    monkeypatch.chdir(tmp_path)
    export(original, processor, "other")
    pope = write_pope(tmp_path / "pope", picture)
    asked = ["evaluate", "--suite", "pope", "--data", str(pope), "--max-new-tokens", "2", "--output"]
    assert main([*asked, "both", "--model", "source", "--against", "other"]) == 0
    written = json.loads(Path("both/results.json").read_text())
    shutil.copytree("source", "copy")
    for model, scores in (("copy", written["scores"]), ("other", written["against"]["scores"])):
        assert main(["export", "--model", model, "--output", "out", "--results", "both/results.json"]) == 0
        values = {result.metric_name: result.metric_value for result in ModelCard.load("out/README.md").data.eval_results}
        assert values["accuracy (random)"] == pytest.approx(scores["random"]["accuracy"]["value"], abs=1e-4)
        assert values["yes_ratio (popular)"] == pytest.approx(scores["popular"]["yes_ratio"]["value"], abs=1e-4)
    capsys.readouterr()
    del written["against"]
    for changed, message in (
        (written, "is about source ("),
        ({**written, "fingerprint": None}, "is about source (None)"),
        ({name: value for name, value in written.items() if name != "fingerprint"}, "does not say which weights"),
    ):
        Path("results.json").write_text(json.dumps(changed).replace(f"{tmp_path.name}/source", "source"))
        assert main(["export", "--model", "other", "--output", "out2", "--results", "results.json"]) == 2
        assert one_line(capsys).startswith(f"minigpt4 export: results.json: {message}")
    assert not Path("out2").exists()


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.parametrize("projection", ["shipped", "another"])
def test_export_embedded_light(projection, embedded, tmp_path, monkeypatch, capsys):
    if projection == "another":
        monkeypatch.setattr("minigpt4.modeling_minigpt4.embedded.load_embedded", lambda **_: embedded)
        # The scores that ship are those of the shipped projection, and are refused for another's weights.
        monkeypatch.setattr("minigpt4.hub.run_records.evaluation_file", lambda _: None)
    output = tmp_path / "out"
    assert main(["export", "--model", "embedded", "--output", str(output), "--light"]) == 0
    assert "trained weights only" in capsys.readouterr().out
    model, _ = load(str(output))
    assert model.config.base_parts is not None
    assert model.generation_config.max_new_tokens == 200


@pytest.mark.slow
def test_push_is_one_commit_that_others_load(source, original, processor, hub, tmp_path, picture, monkeypatch):
    arguments = ["--model", source, "--output", tmp_path / "out", "--push", "tester/mine", "--private"]
    finished = command(arguments, hub, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert f"pushed to {hub.url}/tester/mine/commit/" in finished.stdout
    [commit] = hub.commits
    assert commit["repo"] == "tester/mine"
    assert commit["files"] == files_in(tmp_path / "out")
    assert b'repo = "tester/mine"' in commit["files"]["README.md"]
    assert hub.private["tester/mine"]
    # The same from the Hub as from a folder, though there files arrive one by one.
    report = consume("tester/mine", tmp_path / "again", picture(), **hub.environment)
    monkeypatch.chdir(tmp_path)
    assert report["answers"] == dict.fromkeys(report["answers"], answer(original, processor)[0])


PUSH_FROM_PYTHON = """
import json
from minigpt4.hub.export import export
from minigpt4 import load
model, processor = load("source")
model.push_to_hub("tester/python", tags="mine")
commit = processor.push_to_hub("tester/python", commit_message="the processor")
export(model, processor, "exported", repo_id="tester/python")
print(json.dumps(commit.oid))
"""


@pytest.mark.slow
def test_push_from_python_makes_the_same_repository(source, hub, tmp_path):
    assert in_python(PUSH_FROM_PYTHON, hub, tmp_path) == hub.head("tester/python")
    assert [commit["summary"] for commit in hub.commits] == ["Export of minigpt4-hf", "the processor"]
    pushed, exported = hub.files["tester/python"], files_in(tmp_path / "exported")
    assert b"\n- mine\n" in pushed["README.md"]
    assert {**pushed, "README.md": pushed["README.md"].replace(b"- mine\n", b"")} == exported


PUSH_WITHOUT_THIS_PACKAGE = """
import json, sys
sys.modules["minigpt4"] = None
from transformers import AutoModel, AutoProcessor
for auto in (AutoModel, AutoProcessor):
    auto.from_pretrained("source", trust_remote_code=True).push_to_hub("tester/copy")
print(json.dumps("pushed"))
"""


@pytest.mark.slow
def test_exported_code_pushes_as_transformers_does(source, hub, tmp_path):
    modules = str(tmp_path / "modules")
    assert in_python(PUSH_WITHOUT_THIS_PACKAGE, hub, tmp_path, HF_MODULES_CACHE=modules) == "pushed"
    assert len(hub.commits) == 2
    wanted = {"config.json", "model.safetensors", "modeling_minigpt4.py", "processor_config.json", "processing_minigpt4.py"}
    assert wanted <= set(hub.files["tester/copy"])


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["PUT /blob/.*", "POST .*/commit/main"])
def test_an_interrupted_push_leaves_the_old_revision_whole(moment, source, hub, tmp_path):
    hub.files["tester/mine"], hub.private["tester/mine"] = files_in(source), False
    head, before = hub.head("tester/mine"), dict(hub.files["tester/mine"])
    hub.hang = moment
    arguments = ["--model", source, "--output", tmp_path / "out", "--push", "tester/mine", "--examples"]
    pushing = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "push_to_hub.py"), *map(str, arguments)],
        env={**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "hf")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert hub.hanging.wait(600)
    pushing.kill()
    pushing.wait()
    assert (hub.commits, hub.head("tester/mine"), hub.files["tester/mine"]) == ([], head, before)
    load_it = "import json, minigpt4.inference.named_models as m; m.load('tester/mine'); print(json.dumps('loaded'))"
    assert in_python(load_it, hub, tmp_path) == "loaded"


ERRORS = """
import json
from minigpt4 import MiniGPT4ForConditionalGeneration
from minigpt4 import load

def message(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except (ValueError, OSError) as error:
        return str(error)

print(json.dumps({
    "private": message(load, "tester/private"),
    "absent": message(load, "tester/absent"),
    "revision": message(MiniGPT4ForConditionalGeneration.from_pretrained, "tester/cut", revision="nothere"),
    "truncated": message(load, "tester/cut"),
}))
"""


@pytest.mark.slow
def test_a_client_is_told_what_is_wrong(source, hub, tmp_path):
    hub.files["tester/private"] = hub.files["tester/cut"] = files_in(source)
    hub.private.update({"tester/private": True, "tester/cut": False})
    hub.truncated = {"model.safetensors"}
    told = in_python(ERRORS, hub, tmp_path, HF_TOKEN="", HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
    for name in ("private", "absent"):
        assert told[name].startswith(f"tester/{name}: no such folder, and the Hub does not provide it"), told
        assert "`hf auth login`" in told[name]
    assert "nothere is not a valid git identifier" in told["revision"]
    assert told["truncated"].startswith("tester/cut: ") and "size" in told["truncated"]
    assert all(len(told[name].splitlines()) == 1 for name in ("private", "absent", "truncated")), told


@pytest.mark.slow
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


@pytest.mark.slow
def test_push_that_the_hub_refuses(source, hub, tmp_path):
    hub.refuse = 401
    finished = command(["--model", source, "--output", tmp_path / "out", "--push", "tester/mine"], hub, tmp_path)
    assert finished.returncode == 2
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("push_to_hub: tester/mine: the Hub rejected it (") and "401" in last
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
            "incomplete; missing weights: model.projection.bias, the first of 1",
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


def test_light_weights_of_other_dimensions(embedded, tmp_path):
    folder = export(*embedded, tmp_path / "light", light=True)
    name = "model.projection.weight"
    change_weights(folder, lambda weights: weights.update({name: weights[name][:, :768].contiguous()}))
    with pytest.raises(ValueError, match=r"shape \(576, 768\), expected \(576, 1280\)"):
        load(str(folder))


def test_output_that_is_something_else(source, tmp_path, capsys):
    shutil.copy(source / "config.json", tmp_path / "notes.pdf")
    assert main(["export", "--model", "nothere", "--output", str(tmp_path)]) == 2  # said before the model is looked up
    assert "and is not an earlier export" in one_line(capsys)


def test_private_without_push(tmp_path, capsys):
    assert main(["export", "--model", "embedded", "--output", str(tmp_path / "out"), "--private"]) == 2
    assert "add --push REPO" in one_line(capsys)
