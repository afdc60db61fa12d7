"""The judge: real HTTP, both orders, ties, nonsense, a server that is down; what comes out as a data set of preferences."""

import base64
import re

import pytest
from curation import ChatServer, make_store, two_answers
from datasets import load_dataset
from PIL import Image

from minigpt4.curation.endpoint import Endpoint, Reply, Stop
from minigpt4.curation.judge import ALL_UNREADABLE, ORDERS, PROMPT, dry_run, judge, read
from minigpt4.curation.pairs import paired
from minigpt4.curation.publish import is_validation, publish

STEPS = ("sample", "pairs")


@pytest.fixture
def server():
    with ChatServer() as server:
        server.behave = lambda text, nth: f"{invents(text)} invents a red ball.\n\n**{better(text)}**"
        yield server


def invents(text):
    """Which of the two answers that a judge reads has the red ball, "A" or "B"."""
    return "A" if "ball" in text.partition("Answer B")[0] else "B"


def better(text):
    return {"A": "B", "B": "A"}[invents(text)]


def endpoint(server, **settings):
    return Endpoint("judge", server.url, key_variable="", **{"concurrency": 3, "retries": 0, "timeout": 5.0, **settings})


def preferred(store):
    return [row["chosen"] for row in store.rows("SELECT chosen FROM preferences")]


def test_every_pair_is_shown_with_its_picture_in_both_orders_and_once_each(tmp_path, server):
    with make_store(tmp_path, 6, STEPS) as store:
        report = judge(store, endpoint(server), temperature=0)
        assert (report.done, report.counts) == (12, {"new preferences": 6}) and preferred(store) == ["first"] * 6
        assert set(server.count().values()) == {1} and len(server.asked) == 12 and server.most_at_once <= 3
        assert sum(invents(text) == "A" for text in server.asked) == 6
        system, user = server.bodies[0]["messages"]
        assert system == {"role": "system", "content": PROMPT} and server.bodies[0]["temperature"] == 0
        kind, _, picture = user["content"][0]["image_url"]["url"].partition(",")
        assert kind == "data:image/png;base64"
        row = store.rows("SELECT * FROM pictures JOIN pairs USING (picture)")[0]
        assert base64.b64decode(picture) in {path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
        assert any(row["question"] in text and row["first"] in text and row["second"] in text for text in server.asked)
        assert judge(store, endpoint(server)).done == 0 and len(server.asked) == 12


def test_a_judge_that_goes_by_the_order_prefers_nothing(tmp_path, server):
    server.behave = lambda text, nth: "A"
    with make_store(tmp_path, 6, STEPS) as store:
        report = judge(store, endpoint(server))
        assert report.done == 12 and preferred(store) == [None] * 6
        with pytest.raises(ValueError, match="no answer was preferred yet; run pairs and judge first"):
            publish(store, tmp_path / "set", "preferences")


def test_ties_and_what_cannot_be_read_are_not_paid_for_again(tmp_path, server):
    said = {0: "TIE", 1: "Both are fine.", 2: "B"}
    server.behave = lambda text, nth: said.get(number(text)) or better(text)
    with make_store(tmp_path, 6, STEPS) as store:
        report = judge(store, endpoint(server))
        assert report.counts == {"ties": 1, "unreadable": 1, "new preferences": 3}
        assert report.done == len(server.asked) == 6 + 4 and preferred(store).count("first") == 3
        assert judge(store, endpoint(server)).done == 0
        assert store.value("SELECT reply FROM readings WHERE NOT readable") == "Both are fine."


def number(text):
    return int(re.search(r"number (\d+)", text)[1])


def test_a_judge_that_never_says_which_is_given_up(tmp_path, server):
    server.behave = lambda text, nth: "What a nice picture!"
    with make_store(tmp_path, 40, STEPS) as store:
        with pytest.raises(Stop, match=r"no reply ends with a line A, B or TIE \(the last: 'What a nice picture!'\); use"):
            judge(store, endpoint(server))
        assert store.count("judge") == ALL_UNREADABLE and len(server.asked) <= ALL_UNREADABLE + 3


def test_a_judge_that_is_down_is_one_line_and_what_it_said_before_is_kept(tmp_path, server):
    with make_store(tmp_path, 12, STEPS) as store:
        with pytest.raises(Stop, match=r"cannot be reached .*; 0 done, the same command continues"):
            judge(store, Endpoint("m", "http://127.0.0.1:1/v1", key_variable="", retries=0))
        good = server.behave
        server.behave = lambda text, nth: "500" if len(server.asked) > 9 else good(text, nth)
        with pytest.raises(Stop, match=r"requests in a row failed; the last: .*status 500"):
            judge(store, endpoint(server))
        kept = store.count("judge")
        assert 0 < kept < 12
        server.behave = good
        assert judge(store, endpoint(server)).done == 24 - kept and preferred(store) == ["first"] * 12


def test_pairs_that_are_not_to_be_compared_are_not_sent(tmp_path, server):
    with make_store(tmp_path, 2, ("sample",)) as store:
        one, other = (row["picture"] for row in store.pending("pairs"))
        rows = [paired({"picture": one}, "What?", "A dog.", "A dog."), paired({"picture": other}, "What?", *two_answers(0))]
        store.record("pairs", store.run("pairs", {}), rows)
        assert judge(store, endpoint(server)).done == 2 and len(server.asked) == 2


@pytest.mark.parametrize(
    ("reply", "better"),
    [
        ("A", "first"),
        ("A invents a dog.\nB invents nothing.\n\n**B**\n", "second"),
        ("Verdict: B.", "second"),
        ("The answer: a", "first"),
        ("TIE", None),
        ("A invents less than B", None),
        ("A or B", None),
        ("", None),
    ],
)
def test_the_last_line_is_the_verdict(reply, better):
    found = read(Reply(reply, 1, 1, True), ORDERS["judge"])
    assert found["better"] == better and found["readable"] == (better is not None or reply == "TIE")
    swapped = read(Reply(reply, 1, 1, True), ORDERS["judge swapped"])["better"]
    assert swapped == {"first": "second", "second": "first"}.get(better)


def test_dry_run_shows_what_would_be_sent_and_sends_nothing(tmp_path, server):
    with make_store(tmp_path, 4, STEPS) as store:
        told = dry_run(store, "m", server.url, prices=(1e6, 1e6))
        row = next(store.pending("judge"))
        assert PROMPT in told and row["second"] in told and "4 requests, about" in told and "in all" in told
        assert not server.asked and store.count("judge") == 0


def test_the_published_set_is_trls_form_of_preferences_and_its_card_counts(tmp_path, server):
    server.behave = lambda text, nth: "TIE" if number(text) == 3 else better(text)
    with make_store(tmp_path, 12, STEPS) as store:
        judge(store, endpoint(server))
        report = publish(store, tmp_path / "set", "preferences", validation=0.4, license="cc-by-4.0")
        splits = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
        assert report.done == 11 == sum(len(split) for split in splits.values()) and set(splits) == {"train", "validation"}
        for name, split in splits.items():
            for row in split:
                assert (name == "validation") == is_validation(row["picture"], 0.4)
                pair = store.rows("SELECT * FROM pairs JOIN pictures USING (picture) WHERE picture = ?", row["picture"])[0]
                assert row["prompt"] == [{"role": "user", "content": pair["question"]}]
                assert row["chosen"] == [{"role": "assistant", "content": pair["first"]}]
                assert row["rejected"] == [{"role": "assistant", "content": pair["second"]}]
                assert [image.tobytes() for image in row["images"]] == [Image.open(pair["path"]).tobytes()]
    card = (tmp_path / "set" / "README.md").read_text("utf-8")
    for line in (
        "license: cc-by-4.0",
        "| answered twice | 12 |",
        "| of them ties at once | 1 |",
        "| of them the same answer preferred | 11 |",
        "| published | 11 |",
        "    model: judge",
    ):
        assert line in card, card
    assert re.search(r"A chosen answer has (\d+) characters on average, a rejected one (\d+)", card)
    assert str(tmp_path) not in card
