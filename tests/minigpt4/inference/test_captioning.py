"""`minigpt4 caption`: every picture of a folder gets its line, whatever stopped the run before."""

import json
import shutil

import pytest
from datasets import load_dataset

from minigpt4.cli import main

SMALL = ["--max-new-tokens", "4", "--prompt", "What is this?"]


@pytest.fixture
def folder(picture, tmp_path):
    """Seven pictures in two folders, two of them broken, and a text."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number in range(5):
        picture(number).save(folder / ("more" if number % 2 else ".") / f"{number}.png")
    (folder / "empty.jpg").touch()
    (folder / "more" / "torn.PNG").write_bytes((folder / "0.png").read_bytes()[:300])
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def caption(base, folder, tmp_path, capsys):
    """caption(*arguments): runs the command; returns its status, what it printed and the lines that are there then."""

    def run(*arguments, output=tmp_path / "out.jsonl"):
        status = main(["caption", str(folder), "--output", str(output), "--model", base, *SMALL, *arguments])
        printed = capsys.readouterr()
        lines = [json.loads(line) for line in output.read_text().splitlines()] if status == 0 else []
        return status, printed.out + printed.err, lines

    return run


def test_every_picture_has_its_line(caption, base):
    status, printed, lines = caption("--batch-size", "3")
    assert status == 0
    names = ["0.png", "2.png", "4.png", "empty.jpg", "more/1.png", "more/3.png", "more/torn.PNG"]
    assert [line["file_name"] for line in lines] == names
    errors = {line["file_name"]: line["error"] for line in lines if "error" in line}
    assert errors["empty.jpg"] == "the file is empty (0 bytes); expected a picture"
    assert "damaged or truncated" in errors["more/torn.PNG"]
    assert all(line["text"] for line in lines if line["file_name"] not in errors)
    assert {(line["model"], line["prompt"]) for line in lines} == {(base, "What is this?")}
    assert "out.jsonl: 5 described, 2 could not be read" in printed


def test_goes_on_after_a_kill_at_any_place(caption, tmp_path):
    """The same lines whatever the batch size, and wherever the file was cut off: at, before and inside a line."""
    _, _, expected = caption("--batch-size", "1")
    content = (tmp_path / "out.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for number, cut in enumerate([0, 1, ends[0] - 1, ends[0], ends[2] + 10, ends[5], ends[-1] - 1, ends[-1]]):
        output = tmp_path / f"{number}.jsonl"
        output.write_bytes(content[:cut])
        status, printed, lines = caption("--batch-size", "4", output=output)
        assert (status, lines) == (0, expected), cut
        assert f"{sum(end <= cut for end in ends)} of them before" in printed


def test_another_run_adds_nothing(caption, tmp_path, folder, picture):
    _, _, expected = caption()
    written = (tmp_path / "out.jsonl").read_bytes()
    assert caption()[2] == expected and (tmp_path / "out.jsonl").read_bytes() == written
    picture(9).save(folder / "1.png")  # but a new picture gets its line
    assert [line["file_name"] for line in caption()[2][len(expected) :]] == ["1.png"]


def test_the_file_makes_an_imagefolder(caption, folder):
    for broken in ("empty.jpg", "more/torn.PNG"):
        (folder / broken).unlink()
    _, _, lines = caption(output=folder / "metadata.jsonl")
    loaded = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder.parent / "cache"))
    assert sorted(loaded["text"]) == sorted(line["text"] for line in lines)
    assert len(loaded) == 5 and loaded[0]["image"].size == (30, 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello\nworld\n", "line 1 is not from a caption file"),
        ("hello", "line 1 is not from a caption file"),
        ('{"a": 1}\n', "line 1 is not from a caption file"),
        ('{"file_name": "0.png", "text": "x", "model": "M", "prompt": "P"}\n', "line 1 has the model 'M', not"),
    ],
)
def test_a_file_of_something_else_is_left_alone(content, message, caption, tmp_path):
    (tmp_path / "out.jsonl").write_text(content)
    status, printed, _ = caption()
    assert status == 2 and message in printed
    assert (tmp_path / "out.jsonl").read_text() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--output", "out.jsonl"], "nowhere: no such folder"),
        (["empty", "--output", "out.jsonl"], "empty: contains no pictures"),
        (["pictures", "--output", "empty"], "empty: not a file"),
        (["pictures", "--output", "out.jsonl", "--batch-size", "0"], "--batch-size is 0; expected 1 or more"),
        (["pictures", "--output", "out.jsonl", "--prompt", " "], "--prompt is empty"),
        (["pictures", "--output", "out.jsonl", "--model", "nowhere/at/all"], "no such folder"),
    ],
)
def test_bad_input_is_one_line(arguments, message, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["caption", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("minigpt4 caption: ") and message in line
    assert not (tmp_path / "out.jsonl").exists()
    shutil.rmtree(folder)
