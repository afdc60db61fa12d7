"""README's own commands and code, taken from its text and run in order in one folder, with small budgets.

What they need (a photograph, shards of captioned pictures) is made here; nothing is replaced by a stand-in.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
# What a command is given besides, so that it ends soon; the quickstart trains no less than 20 steps a stage.
SMALL = {
    "minigpt4 quickstart": ["--minutes", "0.02"],
    "minigpt4 convert": ["--config", "tiny_config.json"],
    "minigpt4 evaluate": ["--limit", "8", "--max-new-tokens", "8"],
    "trainer_scripts/stage": ["train.steps=2", "data.scenes=8", "data.views=1", "train.batch_size=2"],
}
ORIGINALS = {
    "prerained_minigpt4_7b.pth": "checkpoints/pretrained_minigpt4_tiny.pth",
    "eva_vit_g.pth": "checkpoints/eva_vit_g.pth",
    "blip2_pretrained_flant5xxl.pth": "checkpoints/blip2_pretrained_flant5xxl.pth",
    "vicuna-7b": "llama_tiny",
    "tiny_config.json": "tiny_config.json",
}
NOT_RUN = (
    "make test",
    "pip install",
    "--push",
)  # this test itself; the network; tests/modeling_minigpt4/test_export.py pushes


def blocks(*languages):
    """Code blocks of these languages in README, in order; "" is a block without one."""
    return [
        code
        for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
        if language in languages
    ]


def commands():
    """Every command line of README that this test runs, comments cut, in order."""
    lines = [line.split("  #")[0].strip() for block in blocks("", "bash") for line in block.splitlines()]
    return [
        line
        for line in lines
        if line.startswith(("make", "minigpt4", "accelerate", "python")) and not any(part in line for part in NOT_RUN)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with the scripts in reach, a photograph, a scene, own pictures, and nine in Flickr8k's layout."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("trainer_scripts", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for name, original in ORIGINALS.items():  # the authors' files, of a tiny model
        (folder / name).symlink_to(ROOT / "tests/fixtures/parity" / original)
    for name in ("photo.jpg", "scene.png"):
        Image.fromarray(data.coffee()).save(folder / name)
    (folder / "FOLDER").mkdir()
    table = ["file_name,text"]
    for i in range(10):
        Image.fromarray(data.coffee()[:, i * 20 :]).resize((64, 64)).save(folder / "FOLDER" / f"{i}.jpg")
        table.append(f"{i}.jpg,A cup of coffee number {i} stands on a table.")
    (folder / "FOLDER" / "captions.csv").write_text("\n".join(table))
    for split in ("train", "dev"):
        path = folder / "FLICKR8K" / split / "0000.tar"
        path.parent.mkdir(parents=True)
        with tarfile.open(path, "w") as tar:
            for key, picture in enumerate([data.coffee(), data.rocket(), data.chelsea()] * 3):
                buffer = io.BytesIO()
                Image.fromarray(picture[key:]).resize((224, 224)).save(buffer, "JPEG")  # no two are the same
                captions = [f"A picture number {key} with a thing {i} ." for i in range(5)]
                members = {
                    "jpg": buffer.getvalue(),
                    "txt": captions[0].encode(),
                    "json": json.dumps({"captions": captions}).encode(),
                }
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{key:06}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def run(arguments, folder, **kwargs):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False, **kwargs)
    assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
def test_every_command_runs_in_order(folder):
    assert len(commands()) >= 9
    for line in commands():
        arguments = shlex.split(line.replace("make quickstart", "minigpt4 quickstart"))
        for part, extra in SMALL.items():
            if part in " ".join(arguments):
                arguments += extra if "--set" in arguments or extra[0].startswith("-") else ["--set", *extra]
        answer = run(arguments, folder, input="What is this?\n\n")
        if "--ask" in line:
            assert answer.strip()
    summary = json.loads((folder / "outputs/quickstart/summary.json").read_text())
    assert set(summary["stage1"]) == {"object_recall", "caption_exact", "background", "count", "object_recall_shuffled"}
    for stage in ("before_stage2", "stage2"):
        assert {"questions_right", "description_recall", "failures"} <= set(summary[stage])
    assert {"train_seconds", "total_seconds", "peak_rss_mb", "seed", "versions", "n"} <= set(summary)
    assert summary["peak_rss_mb"] < 4000
    assert "| questions answered right |" in (folder / "outputs/quickstart/model/README.md").read_text("utf-8")
    page = (folder / "outputs/quickstart/report.html").read_text("utf-8")
    assert page.count("<img") > 24 and "CC BY-SA 4.0" in page


@pytest.mark.slow
def test_the_python_examples_run(folder):
    test = "\n".join(blocks("python"))
    run([sys.executable, "-c", test], folder)
