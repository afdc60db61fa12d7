"""The judge: an LLM behind a real server that answers, talks nonsense, fails; and a person's file."""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from benchmark_files import write_coco, write_pictures

from minigpt4.cli import main
from minigpt4.evaluation import judge as judge_module
from minigpt4.evaluation.judge import Judge, Person
from minigpt4.evaluation.predictions import read_lines
from minigpt4.evaluation.suites import Options, load_suite
from minigpt4.hub.export import export

ALL = "1: yes\n2: yes\n3: no"


@contextlib.contextmanager
def endpoint(reply):
    """Serves /v1/chat/completions; reply(request) is the judge's text, or a status to fail with. Yields (url, requests)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**request, "path": self.path, "key": self.headers["Authorization"]})
            said = reply(request)
            message = {"role": "assistant", "content": said}
            body = json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}).encode()
            self.send_response(said if isinstance(said, int) else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch):
    monkeypatch.setattr(judge_module.time, "sleep", lambda seconds: None)


@pytest.fixture
def suite(tmp_path, picture):
    """Coverage of three descriptions."""
    return load_suite("coverage", Options(data=(str(write_coco(tmp_path / "coco", picture) / "captions.json"),)))


@pytest.fixture
def said(suite):
    """An answer to each."""
    return {request.id: f"About {request.image}." for request in suite.requests}


def test_readings_are_kept_with_prompt_model_and_temperature(suite, said, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    path = tmp_path / "judgements.jsonl"
    with endpoint(lambda request: ALL) as (url, asked):
        verdicts = Judge(url, "reader").read(suite, said, path)
        assert verdicts == {identity: [True, True, False] for identity in said}
        assert len(asked) == 3 and {(r["path"], r["model"], r["temperature"], r["key"]) for r in asked} == {
            ("/v1/chat/completions", "reader", 0.0, "Bearer secret")}  # fmt: skip
        line = read_lines(path)[0]
        assert line["judge"] == {"url": url, "model": "reader", "temperature": 0.0} and line["said"] == ALL
        assert line["told"][1]["content"].startswith("Test: About a.png.\n1: a dog runs")
        assert "secret" not in path.read_text()
        assert Judge(url, "reader").read(suite, said, path) == verdicts and len(asked) == 3  # nothing is asked twice
        Judge(url, "another").read(suite, said, path)
        Judge(url, "reader").read(suite, {**said, suite.requests[0].id: "Something else."}, path)
        assert len(asked) == 7  # another judge reads all, a new answer is read


def test_nonsense_is_asked_again_and_then_unjudged(suite, said, tmp_path):
    first, second, third = (request.image for request in suite.requests)
    replies = {first: iter(["what?", ALL]), second: iter(["1: yes"] * 3), third: iter([500, 500, ALL])}

    def reply(request):
        return next(next(replies[name] for name in replies if f"About {name}" in request["messages"][1]["content"]))

    path = tmp_path / "judgements.jsonl"
    with endpoint(reply) as (url, asked):
        verdicts = Judge(url, "reader").read(suite, said, path)
        assert [verdicts[request.id] for request in suite.requests] == [[True, True, False], None, [True, True, False]]
        assert len(asked) == 2 + 3 + 3
        replies[second] = iter([ALL])  # the next run asks again only for what is unjudged
        assert Judge(url, "reader").read(suite, said, path)[suite.requests[1].id] == [True, True, False]
        assert len(asked) == 9


@pytest.mark.parametrize(("reply", "message"), [(503, "does not answer"), ("nonsense", "reply from the judge can be read")])
def test_a_judge_that_is_no_use_is_one_line(suite, said, tmp_path, reply, message):
    with endpoint(lambda request: reply) as (url, _), pytest.raises(ValueError, match=message) as raised:
        Judge(url, "reader").read(suite, said, tmp_path / "judgements.jsonl")
    assert "\n" not in str(raised.value) and "kept" in str(raised.value)
    with pytest.raises(ValueError, match="does not answer"):
        Judge("http://127.0.0.1:9/v1", "reader").read(suite, said, tmp_path / "judgements.jsonl")  # nothing listens there


def test_coverage_from_the_command_line(suite, original, processor, tmp_path, capsys):
    model = str(export(original, processor, tmp_path / "tiny"))
    said = iter([ALL, "", "", "", "1: no\n2: no\n3: yes"])
    command = ["evaluate", "--model", model, "--suite", "coverage", "--data", *suite.options.data, "--max-new-tokens", "4"]
    with endpoint(lambda request: next(said)) as (url, _):
        judge_module.READERS, readers = 1, judge_module.READERS
        assert main([*command, "--output", str(tmp_path / "out"), "--judge", url, "--judge-model", "reader"]) == 0
        judge_module.READERS = readers
    assert "1 of 3 answers are unjudged and count as wrong" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    covered = results["scores"]["descriptions"]["captions_covered"]
    assert covered["value"] == pytest.approx((2 + 0 + 1) / 3) and covered["n"] == 3
    assert results["unjudged"] == 1 and results["judge"]["model"] == "reader"
    assert "unjudged" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_person_judges_on_a_page(original, processor, picture, tmp_path, capsys):
    names = [f"{ability}/{i}.png" for ability in ("memes", "recipes", "advertisements", "poems") for i in range(2)]
    write_pictures(tmp_path / "data", picture, names)
    model, out = str(export(original, processor, tmp_path / "tiny")), tmp_path / "out"
    command = [
        "evaluate",
        "--model",
        model,
        "--suite",
        "advanced",
        "--data",
        str(tmp_path / "data"),
        "--max-new-tokens",
        "4",
    ]
    command += ["--output", str(out)]
    assert main(command) == 0 and not (out / "results.json").exists()
    page = (out / "judge.html").read_text("utf-8")
    assert page.count('type="radio"') == 16 and all(f'name="{name}"' in page for name in names)
    judged = tmp_path / "judgements.json"
    [answers] = re.findall(r'answers: "(sha256:\w+)"', page)

    def judge(verdicts, answers=answers):
        judged.write_text(json.dumps({"answers": answers, "verdicts": verdicts}))

    judge({name: name.startswith("poems") for name in names if name != "memes/0.png"})
    assert main([*command, "--judge", str(judged)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["scores"]["poems"]["fulfilled"]["value"] == 1 and results["scores"]["all"]["fulfilled"]["value"] == 0.25
    assert results["unjudged"] == 1 and results["judge"] == {"file": "judgements.json"}
    judge({names[0]: True}, "sha256:0")  # of what another model said
    assert main([*command, "--judge", str(judged)]) == 2
    assert "judges answers other than those in" in capsys.readouterr().err
    judge({"cats/1.png": True})
    assert main([*command, "--judge", str(judged)]) == 2
    assert "judges 'cats/1.png', which was not asked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "not judgements"),
        ('{"verdicts": {"a": "yes"}}', "not judgements"),
        ('{"verdicts": {"a": 1}}', "not judgements"),
        ('{"verdicts": {"a": true, "a": false}}', "'a' appears twice"),
    ],
)
def test_files_that_are_no_judgements(tmp_path, content, message):
    (tmp_path / "judged.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Person(str(tmp_path / "judged.json"))
