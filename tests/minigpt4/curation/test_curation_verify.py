"""Decisions: durable, first come, lent to one reviewer at a time; and the JSONL file."""

import json
import threading

import pytest
from curation import make_store

from minigpt4.curation import verify as module
from minigpt4.curation.store import Store
from minigpt4.curation.verify import PASSED, DecisionsFile, Desk

STEPS = ("sample", "generate", "fix", "filter")


@pytest.fixture
def store(tmp_path):
    with make_store(tmp_path, 6, STEPS) as store:
        yield store


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_reviewers_get_different_pictures_and_a_lease_comes_back(store, monkeypatch):
    desk = Desk(store)
    one, two = desk.next("ann"), desk.next("bob")
    assert one["picture"] != two["picture"] and desk.next("ann")["picture"] == one["picture"]
    later = module.time.time() + module.LEASE_SECONDS + 1
    monkeypatch.setattr(module.time, "time", lambda: later)
    assert desk.next("eve")["picture"] == one["picture"]  # ann has left


def test_a_decision_is_on_the_disk_when_the_call_returns_and_the_first_one_stands(store):
    desk = Desk(store)
    row = desk.next("ann")
    assert desk.decide("ann", row["picture"], "accept", row["text"])
    with Store(store.path) as other:
        assert other.value("SELECT reviewer FROM decisions") == "ann"
    assert not desk.decide("bob", row["picture"], "reject", "")
    assert store.value("SELECT decision FROM decisions") == "accept" and desk.progress() == (1, 5)
    assert desk.next("ann")["picture"] != row["picture"]


def test_undo_takes_back_ones_own_last_decision_only(store, tmp_path):
    desk = Desk(store, DecisionsFile(tmp_path / "decisions.jsonl"))
    first, second = desk.next("ann"), desk.next("bob")
    desk.decide("ann", first["picture"], "accept", "")
    desk.decide("bob", second["picture"], "edit", "A better text.")
    assert [row["decision"] for row in lines(desk.file.path)] == ["accept", "edit"]
    assert desk.undo("ann")["picture"] == first["picture"] and desk.undo("ann") is None
    assert [row["picture"] for row in lines(desk.file.path)] == [second["picture"]]
    assert desk.next("ann")["picture"] == first["picture"]


def test_many_reviewers_decide_on_each_picture_once(tmp_path):
    (tmp_path / "many").mkdir()
    with make_store(tmp_path / "many", 40, STEPS) as store:
        desk, wins = Desk(store, DecisionsFile(tmp_path / "decisions.jsonl")), []

        def review(name):
            while row := desk.next(name):
                wins.append((name, desk.decide(name, row["picture"], "accept", "")))

        threads = [threading.Thread(target=review, args=(name,)) for name in ("ann", "bob", "eve", "joe")]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(wins) == 40 and all(new for _, new in wins) and desk.progress() == (40, 0)
        assert len({row["picture"] for row in lines(desk.file.path)}) == 40 == len(lines(desk.file.path))


def test_pictures_by_rule_and_by_words(store):
    hand = store.rows("SELECT picture FROM pictures ORDER BY name")
    with store.transaction() as execute:
        for row in hand[:2]:
            execute("UPDATE verdicts SET rule = 'short' WHERE picture = ?", (row["picture"],))
    desk = Desk(store)
    assert desk.rules() == {PASSED: 4, "short": 2}
    row = desk.next("ann", "short")
    assert row["rule"] == "short" and desk.decide("ann", row["picture"], "edit", "Long enough after all.")
    assert desk.progress("short") == (1, 1) and desk.progress() == (0, 4)
    assert [row["text"].count("number 3,") for row in desk.search("number 3,")] == [1]
    assert len(desk.search("", "short")) == 2 and desk.search("100%_") == []
    pages = desk.search(limit=4)
    assert len(pages) == 4 and len(desk.search(after=pages[-1]["picture"], limit=4)) == 2


def test_the_file_and_the_store_get_what_the_other_has(store, tmp_path, capsys):
    path = tmp_path / "decisions.jsonl"
    one, two, three, four = (row["picture"] for row in store.rows("SELECT picture FROM pictures LIMIT 4"))
    Desk(store).decide("ann", one, "reject", "")
    rows = [
        {"picture": two, "decision": "edit", "text": "Better.", "reviewer": "bob", "time": "2026-01-01T00:00:00+00:00"},
        {"picture": "f" * 64, "decision": "accept"},
        {"picture": three, "decision": "maybe"},
        {"picture": three, "decision": "edit", "text": "  "},
        ["no object"],
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"picture": "' + four)  # and one that was cut off
    report = DecisionsFile(path).load(store)
    assert (report.done, report.failures) == (1, 5)
    told = capsys.readouterr().err
    for part in (
        "line 2: picture 'ffffffffffff' is not in",
        "line 3: decision is 'maybe'",
        "line 4: an edited text is empty",
    ):
        assert part in told
    assert "line 5: found list" in told and "line 6: not JSON" in told
    assert store.value("SELECT time FROM decisions WHERE picture = ?", two) == "2026-01-01T00:00:00+00:00"
    kept = path.read_text().splitlines()
    assert len(kept) == 7 and json.loads(kept[-1])["picture"] == one and kept[5].startswith('{"picture": "' + four[:5])
    assert DecisionsFile(path).load(store).done == 0 and len(path.read_text().splitlines()) == 7


def test_a_file_that_is_no_text_is_one_line(store, tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a JSONL file"):
        DecisionsFile(tmp_path / "d.jsonl").load(store)
