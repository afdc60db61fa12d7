"""`minigpt4 chat`: one answer, or a conversation in a terminal or through a pipe."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from minigpt4.cli import main
from minigpt4.hub.export import export
from minigpt4.inference.named_models import load


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


def typed(lines, arguments, capsys, monkeypatch):
    """(stdout, stderr) of a conversation with these lines through a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", *arguments]) == 0
    return capsys.readouterr()


def test_commands(base, photo, tmp_path, capsys, monkeypatch):
    saved, other = tmp_path / "said.json", tmp_path / "notes.txt"
    other.write_text("mine")
    lines = [
        "/help",
        "/image nowhere.png",
        "/image",
        f"/image '{photo}'",
        f"/image {photo}",
        "What is this?",
        "And why?",
        f"/save {saved}",
        f"/save {other}",
        "/save",
        "/delete everything",
        "/reset",
        f"/save {saved.with_name('empty.json')}",
    ]
    out, err = typed(lines, ["--model", base, "--max-new-tokens", "4"], capsys, monkeypatch)
    for told in (
        "/reset        forget the conversation",
        "nowhere.png: no such file",
        "expected /image FILE",
        "2 image(s) for the next question",
        "notes.txt: already exists",
        "expected /save FILE",
        "/delete: no such command",
        f"{saved}: 4 messages",
        "empty.json: 0 messages",
    ):
        assert told in err
    messages = json.loads(saved.read_text())
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert [part["type"] for part in messages[0]["content"]] == ["image", "image", "text"]
    assert other.read_text() == "mine"
    assert out.splitlines() == [message["content"][0]["text"] for message in messages[1::2]]
    model, processor = load(base)
    assert model.chat_session(processor, messages, max_new_tokens=3).ask("So?")


def test_what_is_dropped_is_told(base, photo, capsys, monkeypatch):
    lines = ["What is this, and what is that, and why is it so? " * 3] * 9
    _, err = typed(lines, ["--model", base, "--image", photo, "--max-new-tokens", "4"], capsys, monkeypatch)
    line, *_ = [line for line in err.splitlines() if "oldest messages are dropped" in line]
    assert "the conversation is longer than the 512 tokens that the model reads" in line and "no picture" in line


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_program(original, processor, photo, tmp_path):
    """In its own terminal, where lines typed before are found again."""
    original.generation_config.update(suppress_tokens=[0, 1, 2, *(end[0] for end in processor.turn_ends)])
    folder = export(original, processor, tmp_path / "talkative")
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "minigpt4", "chat", "--model", str(folder), "--image", photo, "--max-new-tokens", "400"]
    environment = {**os.environ, "MINIGPT4_CACHE": str(tmp_path), "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True)
    os.close(end)

    def read(enough):
        shown, until = "", time.time() + 120
        while not enough(shown):
            assert time.time() < until and process.poll() is None, shown
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 10_000).decode(errors="replace")
        return shown

    def at_the_prompt(shown):  # an answer, too, may have "> " in it
        return shown.endswith("\n> ") or shown == "> "

    def answering(shown):  # readline wipes out a longer line with spaces, and may show once more what came before its prompt
        return "everything" in shown and len("".join(shown.rpartition("everything")[2].split())) > 20

    read(at_the_prompt)
    os.write(terminal, b"Tell me everything\n")
    read(answering)
    process.send_signal(signal.SIGINT)
    read(at_the_prompt)
    os.write(terminal, f"/save {tmp_path}/said.json\n".encode())
    read(lambda shown: "2 messages" in shown and "> " in shown.partition("2 messages")[2])
    os.write(terminal, b"\x1b[A\x1b[A\n")  # two lines up
    assert "Tell me everything" in read(answering)
    process.send_signal(signal.SIGINT)
    read(at_the_prompt)
    time.sleep(1)  # a signal while it shows its prompt may break Python's readline (python/cpython#112585)
    process.send_signal(signal.SIGINT)  # no answer to stop
    read(lambda shown: "Ctrl-D ends" in shown and at_the_prompt(shown))
    os.write(terminal, b"\x04")
    assert process.wait(30) == 0
    os.close(terminal)
    [question, answer] = json.loads((tmp_path / "said.json").read_text())
    assert question["content"][1]["text"] == "Tell me everything"
    model, processor = load(str(folder))
    whole = model.chat_session(processor).ask("Tell me everything", photo, max_new_tokens=400)
    assert whole.startswith(answer["content"][0]["text"][:20])
    assert len(answer["content"][0]["text"]) < len(whole)
    assert "Tell me everything" in (tmp_path / "chat_history").read_text()


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
