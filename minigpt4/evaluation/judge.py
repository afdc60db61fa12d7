"""Judges for answers that no rule can score: an LLM behind any OpenAI-compatible endpoint, or a person with a page.

Each judgement is a line in judgements.jsonl: the judge's prompt and reply, its model, temperature and verdict. A judge
that replies with nonsense or not at all is asked again; after that the answer is unjudged, and counts as not right.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from ..durable_files import append_lines
from .data_files import without_duplicates
from .predictions import hash_of, read_lines

ATTEMPTS = 3
TIMEOUT = 120  # seconds
READERS = 8  # questions at once
TEMPERATURE = 0.0


class Judge:
    """An LLM as a judge.

    Args:
        url: an OpenAI-compatible endpoint, up to and including /v1. Its key, if any, is in OPENAI_API_KEY.
        model: the judge's name there.
    """

    def __init__(self, url, model):
        from huggingface_hub import InferenceClient

        if not model:
            raise ValueError(f"--judge {url}: the judge's model is missing; name it with --judge-model")
        self.url, self.model = url, model
        key = os.environ.get("OPENAI_API_KEY")
        self._client = InferenceClient(base_url=url, api_key=key or "none", timeout=TIMEOUT)

    @property
    def record(self):
        """The judge in records: without a password that its URL may contain."""
        address = urlsplit(self.url)
        host = address.netloc.rpartition("@")[2]
        return {
            "url": f"{address.scheme}://{host}{address.path}",
            "model": self.model,
            "temperature": TEMPERATURE,
        }

    def read(self, suite, said, path):
        """{request id: verdict, or None if unjudged} for {request id: answer}; judgements of an earlier run are kept.

        Raises:
            ValueError: the judge could not be asked at all.
        """
        requests = {request.id: request for request in suite.requests}
        questions = {identity: suite.question(request, said[identity]) for identity, request in requests.items()}
        lines = {identity: {"id": identity, "judge": self.record, "told": _told(q)} for identity, q in questions.items()}
        kept = {_key(line): line["verdict"] for line in read_lines(path) if line.get("verdict") is not None}
        verdicts = {identity: kept[_key(line)] for identity, line in lines.items() if _key(line) in kept}
        waiting = [identity for identity in requests if identity not in verdicts]

        def ask(identity):
            return identity, *self._ask(questions[identity], lambda reply: suite.verdict(requests[identity], reply))

        if waiting:
            first = ask(waiting[0])
            if first[2] is None:
                raise ValueError(
                    f"{self.record['url']}: the judge does not answer ({first[3]}); the answers are kept, run again"
                )
            with ThreadPoolExecutor(READERS) as pool, tqdm(total=len(waiting), desc="judge", unit="answer") as bar:
                for identity, verdict, reply, problem in chain([first], pool.map(ask, waiting[1:])):
                    line = {**lines[identity], "said": reply, "verdict": verdict, "problem": problem}
                    append_lines(path, [line])
                    verdicts[identity] = verdict
                    bar.update()
        if all(verdict is None for verdict in verdicts.values()):
            raise ValueError(f"{self.record['url']}: no reply from the judge can be read ({problem}); the answers are kept")
        return verdicts

    def _ask(self, messages, parse):
        """(verdict or None, reply or None, problem or None), after as many attempts as are needed and allowed."""
        reply, problem = None, None
        for attempt in range(ATTEMPTS):
            try:
                answer = self._client.chat_completion(messages, model=self.model, temperature=TEMPERATURE, max_tokens=256)
                reply = str(answer.choices[0].message.content)
            except Exception as error:  # a server may do anything: refuse, disconnect, send something else
                problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
                time.sleep(2**attempt / 2)
                continue
            verdict = parse(reply)
            if verdict is not None:
                return verdict, reply, None
            problem = "its reply is not in the form that was asked for"
        return None, reply, problem


class Person:
    """A person's verdicts, as judge.html saves them: {"answers": their hash, "verdicts": {request id: true or false}}."""

    def __init__(self, path):
        self.path = path
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file, object_pairs_hook=without_duplicates)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read as judgements ({error})") from error
        content = content if isinstance(content, dict) else {}
        self.answers, self.verdicts = content.get("answers"), content.get("verdicts")
        if not isinstance(self.verdicts, dict) or not all(isinstance(v, bool) for v in self.verdicts.values()):
            raise ValueError(f"{path}: not judgements; expected a file that judge.html saved")
        self.record = {"file": os.path.basename(path)}

    def read(self, suite, said, path):
        """{request id: verdict, or None where unjudged}; ValueError for judgements of other answers."""
        others = [identity for identity in self.verdicts if identity not in said]
        if others:
            raise ValueError(f"{self.path}: judges {others[0]!r}, which was not asked; it is of another suite or other data")
        if self.answers != hash_of(said):
            raise ValueError(
                f"{self.path}: judges answers other than those in {os.path.dirname(path)}, of another model, say; judge "
                "these in the judge.html that is written without --judge"
            )
        return {identity: self.verdicts.get(identity) for identity in said}


def judge_of(name, model):
    """The `Judge` of an address, or the `Person` of a file."""
    return Judge(name, model) if name.startswith(("http://", "https://")) else Person(name)


def _key(line):
    """What identifies a judgement: the answer, the judge and its prompt."""
    return json.dumps([line.get("id"), line.get("judge"), line.get("told")], sort_keys=True)


def _told(messages):
    """The messages in recorded form: only the length of each image."""
    return [
        {**message, "content": content if isinstance(content := message["content"], str) else [_short(p) for p in content]}
        for message in messages
    ]


def _short(part):
    return part if part["type"] == "text" else {"type": part["type"], "length": len(part["image_url"]["url"])}
