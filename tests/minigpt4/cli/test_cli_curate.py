"""`minigpt4 curate`: steps in a row, what is missing, one line for what is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from curation import ChatServer, make_pictures
from datasets import load_dataset

from minigpt4.cli import main
from minigpt4.curation import pairs
from minigpt4.curation.store import Store
from minigpt4.hub.export import export

KEY = "sk-secret-of-mine-1234567890"


@pytest.fixture
def base(original, processor, tmp_path):
    """The tiny model as a folder."""
    return str(export(original, processor, tmp_path / "base"))


def test_all_steps_in_a_row_and_then_nothing_is_left_to_do(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    make_pictures(tmp_path / "pictures", 4)
    store, decisions = tmp_path / "store.sqlite", tmp_path / "decisions.jsonl"
    with ChatServer() as server:
        numbers = iter(range(9))
        server.behave = lambda text, nth: f"{text.split()[0]} is the number {next(numbers)} of a picture that I see."
        common = ["--store", str(store), "--fixer", "m", "--fixer-url", server.url, "--model", base]
        steps = ["sample", "generate", "fix", "filter"]
        told = [*common, "--pictures", str(tmp_path / "pictures"), "--max-new-tokens", "5", "--min-words", "1"]
        assert main(["curate", *steps, *told]) == 0
        first = capsys.readouterr().out
        assert "generate: 4 done" in first and "fix: 4 done" in first
        assert main(["curate", *steps, *told]) == 0
        assert capsys.readouterr().out.count(" 0 done") == 4 and len(server.asked) == 4
    with Store(store) as opened:
        picture = opened.value("SELECT picture FROM verdicts")
    rows = [
        {"picture": picture, "decision": "edit", "text": "A picture of noise."},
        {"picture": "0" * 64, "decision": "accept"},
    ]
    decisions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["curate", "verify", "--store", str(store), "--decisions", str(decisions), "--no-page"]) == 0
    said = capsys.readouterr()
    assert "verify: 1 done, 1 failed" in said.out and "line 2: picture '000000000000' is not in" in said.err
    assert main(["curate", "publish", "--store", str(store), "--output", str(tmp_path / "set")]) == 0
    assert main(["curate", "--store", str(store)]) == 0
    assert "sample           4 done" in capsys.readouterr().out
    for path in [*tmp_path.glob("store*"), *(tmp_path / "set").rglob("*")]:
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_from_pictures_to_preferences(base, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(pairs, "failure", lambda text, instruction: None)  # the tiny model never ends a sentence
    make_pictures(tmp_path / "pictures", 5)
    store, output = ["--store", str(tmp_path / "store.sqlite")], str(tmp_path / "set")
    with ChatServer() as server:
        server.behave = lambda text, nth: "A" if text.partition("\n\nAnswer B: ")[0][-1] < text[-1] else "B"
        judged = [*store, "--judge", "m", "--judge-url", server.url]
        drawn = ["--pictures", str(tmp_path / "pictures"), "--model", base, "--max-new-tokens", "5", "--seed", "1"]
        assert main(["curate", "sample", "pairs", *store, *drawn]) == 0
        assert "pairs: 5 done" in capsys.readouterr().out
        assert main(["curate", "judge", *judged, "--dry-run"]) == 0
        assert "requests, about" in capsys.readouterr().out and not server.asked
        assert main(["curate", "judge", "publish", *judged, "--layout", "preferences", "--output", output]) == 0
        assert re.search(r"judge: \d+ done, \d new preferences", capsys.readouterr().out)
        paid = len(server.asked)
        assert main(["curate", "sample", "pairs", "judge", *judged, *drawn]) == 0
        assert capsys.readouterr().out.count(" 0 done") == 3 and len(server.asked) == paid
    assert {"chosen", "rejected", "prompt", "images"} < set(
        load_dataset(output, cache_dir=str(tmp_path)).column_names["train"]
    )


@pytest.mark.slow
def test_two_processes_share_the_generation(base, tmp_path):
    script = Path(__file__).parents[3] / "trainer_scripts" / "curate.py"
    pictures, store = make_pictures(tmp_path / "pictures", 10), tmp_path / "store.sqlite"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", str(script)]
    arguments = ["sample", "generate", "--store", store, "--pictures", pictures, "--model", base, "--max-new-tokens", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shares = [int(share) for share in re.findall(r"generate: (\d+) done", done.stdout)]
    assert len(shares) == 2 and sum(shares) == 10 and min(shares) > 0
    with Store(store) as opened:
        assert opened.count("generate") == 10 and len(opened.runs("generate")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "--store is missing"),
        (["--demo", "--model", "/nowhere"], "/nowhere: no model there"),
        (["--demo", "--count", "3"], "--count is 3; expected 10 or more"),
        (["--demo", "sample"], "leave out the steps and --store"),
        (["describe", "--store", "s"], "describe: no such step; expected any of sample, generate"),
        (["sample", "--store", "{tmp}/s"], "sample needs --pictures"),
        (["sample", "--store", "{tmp}/s", "--pictures", "{tmp}/none"], "no such file or folder"),
        (["sample", "--store", "{tmp}/no/folder/s", "--pictures", "{tmp}"], "unable to open database file"),
        (["filter", "--store", "{tmp}/s"], "no such curation store"),
        (["fix", "filter", "--store", "{store}", "--fixer", "m", "--dry-run"], "--dry-run takes only fix"),
        (["pairs", "--store", "{store}"], "pairs needs --model"),
        (["pairs", "--store", "{store}", "--model", "m", "--temperature", "0"], "pairs needs more than 0"),
        (["pairs", "--store", "{store}", "--model", "m", "--model-url", "http://x/v1"], "--model-url is only for generate"),
        (["judge", "--store", "{store}"], "judge needs --judge"),
        (["judge", "--store", "{store}", "--judge", "m"], "OPENAI_API_KEY is not set"),
        (["publish", "--store", "{store}", "--output", "{tmp}/o", "--layout", "preferences"], "no answer was preferred yet"),
        (["fix", "--store", "{store}", "--fixer", "m"], "OPENAI_API_KEY is not set"),
        (["fix", "--store", "{store}", "--fixer", "m", "--fixer-url", "ftp://x"], "not the address of a server"),
        (["generate", "--store", "{store}", "--model", "/nowhere/model"], "no such folder"),
        (["filter", "--store", "{store}", "--scorer", "/nowhere/clip"], "cannot be loaded as a scorer"),
        (["sample", "--store", "{store}", "--pictures", "x", "--count", "0"], "--count is 0; expected 1 or more"),
        (["verify", "--store", "{store}", "--no-page"], "add --decisions FILE"),
        (["publish", "--store", "{store}", "--output", "{tmp}/o"], "no picture was accepted yet"),
        (["publish", "--store", "{store}", "--output", "{tmp}/o", "--private"], "add --push REPO"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Store(tmp_path / "store.sqlite", create=True).close()
    places = {"tmp": tmp_path, "store": tmp_path / "store.sqlite"}
    assert main(["curate", *[argument.format(**places) for argument in arguments]]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("minigpt4 curate: ") and message in line
