"""The fix: real HTTP against a server that misbehaves; what comes back is checked; nothing is asked for twice."""

import json

import pytest
from curation import ChatServer, description, make_store

from minigpt4.curation.endpoint import Endpoint, Reply, Stop
from minigpt4.curation.fix import PROMPT, dry_run, fix, problem

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer() as server:
        yield server


def endpoint(server, **settings):
    return Endpoint("fixer", server.url, **{"concurrency": 3, "retries": 2, "timeout": 1.0, **settings})


def test_every_text_is_sent_once_with_the_papers_prompt_and_no_more_at_a_time_than_allowed(tmp_path, server):
    with make_store(tmp_path, 12) as store:
        server.behave = lambda text, nth: text.replace("The picture", "This picture")
        report = fix(store, endpoint(server), temperature=0)
        assert report.done == 12 and report.counts["changed"] == 12
        assert server.count() == dict.fromkeys(map(description, range(12)), 1) and server.most_at_once <= 3
        assert server.bodies[0]["messages"][0] == {"role": "system", "content": PROMPT}
        row = store.rows("SELECT * FROM fixes")[0]
        assert json.loads(row["diff"])[:2] == [["-", "The"], ["+", "This"]] and row["prompt_tokens"] == 100
        assert fix(store, endpoint(server), temperature=0).done == 0 and len(server.asked) == 12


def test_429_500_time_outs_and_broken_connections_are_repeated(tmp_path, server):
    first = dict(zip(map(description, range(4)), ("429", "500", "hang", "half"), strict=True))
    server.behave = lambda text, nth: first.get(text, text) if nth == 1 else text
    with make_store(tmp_path, 6) as store:
        report = fix(store, endpoint(server))
        assert (report.done, report.failures) == (6, 0)
        assert server.count() == {description(i): 2 if i < 4 else 1 for i in range(6)}


def test_what_stays_broken_fails_alone_and_is_tried_again_the_next_time(tmp_path, server, capsys):
    broken = dict(zip(map(description, (1, 3, 5)), ("garbage", "html", "500"), strict=True))
    server.behave = lambda text, nth: broken.get(text, text)
    with make_store(tmp_path, 6) as store:
        report = fix(store, endpoint(server, retries=1))
        assert (report.done, report.failures) == (3, 3)
        lines = capsys.readouterr().err
        assert lines.count("not an answer from an OpenAI-compatible server") == 2 and "500" in lines
        broken.clear()
        assert fix(store, endpoint(server)).done == 3
        assert max(server.count().values()) == 3  # the one that got 500: twice before


@pytest.mark.parametrize(
    ("status", "message"), [("401", "refuses the key in OPENAI_API_KEY"), ("404", "has no model 'fixer'")]
)
def test_what_fails_every_request_stops_at_once_and_never_shows_the_key(tmp_path, server, status, message):
    server.behave = lambda text, nth: status
    with make_store(tmp_path, 20) as store:
        with pytest.raises(Stop, match=message) as stopped:
            fix(store, endpoint(server))
        assert len(server.asked) <= 3 and KEY not in str(stopped.value) and "***" in str(stopped.value)
        assert server.keys[0] == f"Bearer {KEY}"
        store.close()
        assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.glob("store*"))


def test_a_server_that_fails_on_and_on_is_given_up(tmp_path, server):
    server.behave = lambda text, nth: "html"
    with make_store(tmp_path, 40) as store:
        with pytest.raises(Stop, match=r"requests in a row failed; the last: .*not an answer"):
            fix(store, endpoint(server))
        assert len(server.asked) < 12
        with pytest.raises(Stop, match=r"cannot be reached .*; 0 done, the same command continues"):
            fix(store, Endpoint("m", "http://127.0.0.1:1/v1", retries=0))


def test_a_bad_address_or_a_missing_key_is_one_line(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        Endpoint("m")
    with pytest.raises(ValueError, match="not the address of a server"):
        Endpoint("m", "localhost")
    with pytest.raises(ValueError, match="a key in it") as refused:
        Endpoint("m", f"http://me:{KEY}@localhost/v1")
    assert KEY not in str(refused.value)


ORIGINAL = "The image shows a dog on the grass. The image shows a dog on the grass. It is brown and"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The image shows a dog on the grass. It is brown.", None),
        (ORIGINAL, None),
        ("  ", "empty"),
        ("The image shows a dog on the grass. " * 5, "too long"),
        ("As an AI language model, the image shows a dog.", "as an AI"),
        ("I'm sorry, but the image shows a dog.", "refusal"),
        ("I cannot assist with the image of a dog.", "refusal"),
        ("Here is the corrected paragraph: The image shows a dog.", "explanation"),
        ("El perro marrón corre por el campo verde con su amigo", "not English"),
        ("图像显示一只狗在草地上", "not English"),
        ("A cat sleeps in the house while people are eating some soup.", "other words"),
    ],
)
def test_what_comes_back_is_checked(answer, expected):
    assert problem(ORIGINAL, Reply(answer, 1, 1, True)) == expected
    assert problem(ORIGINAL, Reply("The image shows a dog", 1, 1, False)) == "cut off"


def test_a_bad_answer_is_kept_beside_the_original_which_goes_on(tmp_path, server):
    server.behave = lambda text, nth: "As an AI, I can see that."
    with make_store(tmp_path, 1) as store:
        assert fix(store, endpoint(server)).counts == {"kept as they were (as an AI)": 1}
        [row] = store.rows("SELECT * FROM fixes")
        assert (row["text"], row["answer"]) == (description(0), "As an AI, I can see that.")
        assert json.loads(row["diff"]) == [["=", description(0)]]


def test_dry_run_shows_what_would_be_sent_and_sends_nothing(tmp_path, server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with make_store(tmp_path, 4) as store:
        told = dry_run(store, "m", server.url, prices=(1e6, 1e6))
        sent = [row["answer"] for row in store.pending("fix")]
        assert PROMPT in told and sent[0] in told and sent[3] not in told and "4 requests, about" in told
        assert "in all" in told and not server.asked and KEY not in told and store.count("fix") == 0
