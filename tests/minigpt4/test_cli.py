"""The command line: starts without torch, answers questions, and says in one line what is wrong."""

import io
import subprocess
import sys

import pytest

from minigpt4.cli import main, run_reporting_errors
from minigpt4.modeling_minigpt4.export import export


@pytest.fixture
def base(original, processor, tmp_path):
    """The tiny model as a folder."""
    return str(export(original, processor, tmp_path / "base"))


@pytest.fixture
def photo(picture, tmp_path):
    """A picture as a file."""
    picture().save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_help_imports_no_torch():
    code = (
        "import sys; from minigpt4.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("quickstart", "chat", "export"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["quickstart", "chat", "export", "curate"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and command in capsys.readouterr().out


def test_ask_prints_the_answer_alone(base, photo, capsys):
    assert main(["chat", "--model", base, "--image", photo, "--ask", "What is this?", "--max-new-tokens", "5"]) == 0
    first = capsys.readouterr().out
    assert first.strip()
    assert main(["chat", "--model", base, "--image", photo, "--ask", "What is this?", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == first


def test_a_conversation_goes_on_until_an_empty_line(base, photo, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is this?\nWhy?\n\n"))
    assert main(["chat", "--model", base, "--image", photo, "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().err.count("> ") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nowhere.jpg", "--ask", "x"], "nowhere.jpg: no such file"),
        (["--image", "{empty}", "--ask", "x"], "the file is empty (0 bytes)"),
        (["--image", "{text}", "--ask", "x"], "not a picture"),
        (["--ask", " "], "--ask is empty"),
        (["--ask", "x", "--max-new-tokens", "0"], "expected 1 or more"),
        (["--ask", "{long}"], "more than the 512 that the model reads"),
        (["--model", "{folder}", "--ask", "x"], "no config.json"),
        (["--model", "/nowhere/at/all", "--ask", "x"], "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(base, tmp_path, capsys, arguments, message):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder").mkdir()
    places = {
        "empty": tmp_path / "empty.png",
        "text": tmp_path / "text.png",
        "folder": tmp_path / "folder",
        "long": "a b " * 400,
    }
    arguments = [argument.format(**places) for argument in arguments]
    if "--model" not in arguments:
        arguments += ["--model", base]
    assert main(["chat", *arguments]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("minigpt4 chat: ") and message in line


def test_quickstart_names_an_impossible_budget(capsys):
    assert main(["quickstart", "--minutes", "0"]) == 2
    assert "--minutes is 0; expected more than 0" in capsys.readouterr().err


def test_errors_end_with_their_status(capsys):
    def interrupted():
        raise KeyboardInterrupt

    def full():
        raise OSError(28, "No space left on device")

    assert run_reporting_errors(interrupted, "name") == 130
    assert run_reporting_errors(full, "name") == 2
    assert "No space left on device" in capsys.readouterr().err
