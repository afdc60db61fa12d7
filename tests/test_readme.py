"""What README and docs say is run: every command and Python block of theirs, small, in order, in one folder.

What they need (a photograph, shards of captioned images, the authors' files of a tiny model) is made here; nothing is
replaced by a stand-in. A block that is not run says why in a comment above it, `<!-- not run: REASON -->`; one that shows an
output says of what, `<!-- output of: COMMAND -->`. A command that several pages have runs once.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from PIL import Image
from skimage import data
from tars import write_tar

from docs.scripts.working_folder import link_originals
from minigpt4.cli import main
from minigpt4.configuration.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
FENCE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
# What a command is given in addition, so that it ends soon; the quickstart trains no less than 20 steps a stage.
SMALL = {
    "minigpt4 quickstart": ["--minutes", "0.02"],
    "minigpt4 chat": ["--max-new-tokens", "4"],
    "minigpt4 caption": ["--max-new-tokens", "4"],
    "minigpt4 convert": ["--config", "tiny_config.json"],
    "minigpt4 evaluate": ["--limit", "8", "--max-new-tokens", "8"],
    "trainer_scripts/stage": ["train.steps=2", "data.scenes=8", "data.views=1", "train.batch_size=2"],
}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]


class Block(NamedTuple):
    """A fenced block of a page, and the comment above it."""

    comment: str
    language: str
    code: str

    @property
    def runs(self):
        return not self.comment.startswith("not run: ")


def blocks(page, *languages):
    """The blocks of a page in these languages, in order."""
    found = [Block(*block) for block in FENCE.findall((ROOT / page).read_text("utf-8"))]
    return [block for block in found if block.language in languages] if languages else found


def commands(page):
    """The command lines of a page that are run, in order, as lists of arguments."""
    code = "".join(block.code for block in blocks(page, "bash") if block.runs).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in code.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with what the pages name: scripts, a photograph, a scene, own images, nine in Flickr8k's layout, and
    the quickstart's output."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("trainer_scripts", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    link_originals(folder)
    for name in ("photo.jpg", "scene.png"):
        Image.fromarray(data.coffee()).save(folder / name)
    (folder / "FOLDER").mkdir()
    table = ["file_name,text"]
    for i in range(10):
        Image.fromarray(data.coffee()[:, i * 20 :]).resize((64, 64)).save(folder / "FOLDER" / f"{i}.jpg")
        table.append(f"{i}.jpg,A cup of coffee number {i} is on a table.")
    (folder / "FOLDER" / "captions.csv").write_text("\n".join(table))
    _write_shard(folder / "FLICKR8K" / "dev" / "0000.tar")
    _write_shard(folder / "data" / "flickr8k" / "flickr8k-train-0000.tar")
    for source in ("coco", "ccsbu", "imagenet", "caltech101", "grocery"):
        _write_shard(folder / "data" / "photos" / f"photos-{source}-train-0000.tar", {"objects": ["cup", "spoon"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _process(["minigpt4", "quickstart", *SMALL["minigpt4 quickstart"]])  # by itself, since it measures its memory
    return folder


@pytest.fixture(scope="module")
def done():
    """The command lines that have run."""
    return {("make", "quickstart")}


def _write_shard(path, known=None):
    samples = {}
    for key, image in enumerate([data.coffee(), data.rocket(), data.chelsea()] * 3):
        buffer = io.BytesIO()
        Image.fromarray(image[key:]).resize((224, 224)).save(buffer, "JPEG")  # no two are alike
        captions = [f"An image number {key} with a thing {i} ." for i in range(5)]
        texts = {"txt": captions[0].encode(), "json": json.dumps({"captions": captions, **(known or {})}).encode()}
        samples[f"{path.stem}-{key:06}"] = {"jpg": buffer.getvalue(), **texts}
    write_tar(path, samples)


def run(arguments):
    """Runs a command line of a page, small: ours in this process, which saves its start."""
    line = " ".join(arguments)
    if arguments[0] == "make":
        return _process(["make", "--dry-run", *arguments[1:]], cwd=ROOT)
    if arguments[:2] == ["pip", "install"]:
        return _check_extras(arguments[-1])
    if "--push" in arguments:  # tests/minigpt4/hub/test_export.py pushes, to a Hub of its own
        arguments = arguments[: arguments.index("--push")]
    for part, extra in SMALL.items():
        if part in " ".join(arguments):
            arguments = [*arguments, *([] if "--set" in arguments or extra[0].startswith("-") else ["--set"]), *extra]
    if arguments[0] == "minigpt4":
        assert main(arguments[1:]) == 0, line
    elif arguments[0] in ("accelerate", "python"):
        _process(arguments)
    else:
        raise AssertionError(f"{line}: nobody knows how to run it; add a comment <!-- not run: REASON --> above its block")


def _process(arguments, **where):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, **where)
    assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"


def _check_extras(requirement):
    named = re.fullmatch(r"\.\[([\w,]+)\]", requirement)
    assert named and {*named[1].split(",")} <= {*EXTRAS}, f"{requirement}: expected .[EXTRA,...] of {', '.join(EXTRAS)}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_python_block_runs(page, folder, done, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for arguments in commands(page):
        if tuple(arguments) not in done:
            monkeypatch.setattr(sys, "stdin", io.StringIO("What is this?\n\n"))
            run(arguments)
            done.add(tuple(arguments))
            printed = capsys.readouterr().out
            assert printed.strip() or "--ask" not in arguments
    names = {"__name__": page}
    for block in blocks(page, "python"):
        if block.runs:
            exec(compile(block.code, page, "exec"), names)


@pytest.mark.slow
def test_the_quickstart_leaves_what_is_said(folder):
    summary = json.loads((folder / "outputs/quickstart/summary.json").read_text())
    assert set(summary["stage1"]) == {"object_recall", "caption_exact", "background", "count", "object_recall_shuffled"}
    for stage in ("before_stage2", "stage2"):
        assert {"questions_right", "description_recall", "failures"} <= set(summary[stage])
    assert {"train_seconds", "total_seconds", "peak_rss_mb", "seed", "versions", "n"} <= set(summary)
    assert summary["peak_rss_mb"] < 4000
    assert "| questions answered right |" in (folder / "outputs/quickstart/model/README.md").read_text("utf-8")
    page = (folder / "outputs/quickstart/report.html").read_text("utf-8")
    assert page.count("<img") > 24 and "CC BY-SA 4.0" in page
    assert page.index("A single linear layer that knew nothing") < page.index("<img") < page.index("<table")


@pytest.mark.parametrize("page", PAGES)
def test_no_block_hides(page):
    text = (ROOT / page).read_text("utf-8")
    assert text.count("\n```") == 2 * len(blocks(page)), "a block that is indented, or not closed"
    for comment, language, code in blocks(page):
        assert language in ("bash", "python", "yaml", "json", "csv", "text"), f"{language}: {code}"
        assert language != "text" or comment.startswith("output of: "), f"of what is this the output? {code}"
        assert not comment.startswith("not run:") or len(comment) > len("not run: because"), code


@pytest.mark.parametrize("page", PAGES)
def test_yaml_blocks_are_recipes_and_json_is_json(page, tmp_path):
    for block in blocks(page, "yaml"):
        (tmp_path / "recipe.yaml").write_text(block.code)
        load_recipe(tmp_path / "recipe.yaml")
        assert yaml.safe_load(block.code)
    for block in blocks(page, "json"):
        json.loads(block.code)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    text = (ROOT / page).read_text("utf-8")
    missing = [link for link in LINK.findall(text) if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_shown_answers_are_those_of_the_script():
    """Whoever changes an answer by hand changes it in three places, and this one by running the script."""
    answers = json.loads((ROOT / "docs/answers.json").read_text("utf-8"))["images"]
    readme, limitations = ((ROOT / page).read_text("utf-8") for page in ("README.md", "docs/limitations.md"))
    for place, row in enumerate(answers):
        for question, answer in row["answers"].items():
            shown = answer.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>") or "(nothing)"
            assert shown in limitations and question in limitations
        if place < 3:
            first = next(iter(row["answers"].values()))
            assert f"![{row['name']}](docs/images/{row['name']}.jpg)" in readme and (first or "(nothing)") in readme


def test_the_docs_build_strictly(tmp_path):
    _process(["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")], cwd=ROOT)
    site = tmp_path / "site"
    assert "from_parts" in (site / "api.html").read_text("utf-8")
    assert (site / "repository/benchmarks/results/quickstart.json").is_file()
