"""What the curation tests share: stores with rows, and a chat server that misbehaves on demand.

with ChatServer() as server:
    server.behave = lambda text, nth: "500"        what to do with the nth request about a text; see `_Handler.do_POST`
    server.asked    [text, ...] of every request, in order
"""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from minigpt4.curation.endpoint import Reply
from minigpt4.curation.fix import fixed
from minigpt4.curation.pairs import paired, question
from minigpt4.curation.sample import sample
from minigpt4.curation.store import Store

WORDS = """dog cat horse river mountain street lamp table window garden flower bridge child bicycle market boat cloud tower
    bench forest stone chair bottle train field snow road house bird lake"""


def make_pictures(folder, count, seed=0):
    """`count` small pictures of noise as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{i:04}.png")
    return folder


def description(number):
    """A description of more than 20 words, unlike that of any other number."""
    a, b, c, d, e = np.random.default_rng(number).choice(WORDS.split(), 5, replace=False)
    return (
        f"The picture shows a {a} next to the {b} number {number}, and behind them there is a {c}. "
        f"In front of it one can see a {d} and also the old {e} in the light of the day."
    )


def two_answers(number):
    """Two answers about a picture, the second of which says more than the first."""
    first = description(number)
    return first, f"{first} There is a red ball with the number {number}, too."


def make_store(folder, count, steps=("sample", "generate"), text=description):
    """An open store in `folder` with `count` pictures that went through these steps."""
    store = Store(folder / "store.sqlite", create=True)
    sample(store, make_pictures(folder / "pictures", count), count)
    pictures = [row["picture"] for row in store.rows("SELECT picture FROM pictures ORDER BY name")]
    texts = dict(zip(pictures, map(text, range(count)), strict=True))
    if "generate" in steps:
        rows = [{"picture": p, "first": t, "continued": None, "text": t} for p, t in texts.items()]
        store.record("generate", store.run("generate", {"model": "tiny"}), rows)
    if "fix" in steps:
        rows = [fixed({"picture": p, "answer": f"{t} blah blah"}, Reply(t, 100, 50, True), None) for p, t in texts.items()]
        store.record("fix", store.run("fix", {"model": "tiny"}), rows)
    if "filter" in steps:
        store.record("filter", store.run("filter", {}), [{"picture": p, "rule": None, "detail": None} for p in texts])
    if "pairs" in steps:
        rows = [paired({"picture": p}, question(p), *two_answers(i)) for i, p in enumerate(pictures)]
        store.record("pairs", store.run("pairs", {"model": "tiny"}), rows)
    return store


class ChatServer:
    """An OpenAI-compatible server on a free port; answers with the text it was sent, unless `behave` says otherwise."""

    def __init__(self):
        self.behave = lambda text, nth: text
        self.asked, self.keys, self.bodies, self.at_once, self.most_at_once = [], [], [], 0, 0
        self.closed, self.lock = threading.Event(), threading.Lock()

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.chat, self._server.handle_error = self, lambda *_: None  # a killed client is no error here
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def count(self):
        """{text: requests about it}."""
        return Counter(self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        chat = self.server.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        with chat.lock:
            chat.asked.append(text)
            chat.keys.append(self.headers["Authorization"])
            chat.bodies.append(body)
            nth = chat.asked.count(text)
            chat.at_once += 1
            chat.most_at_once = max(chat.most_at_once, chat.at_once)
        try:
            self._answer(chat, chat.behave(text, nth))
        finally:
            with chat.lock:
                chat.at_once -= 1

    def _answer(self, chat, behaviour):
        """A text is the answer; "429", "500", "401", "404", "hang", "garbage", "html" and "half" are what they say."""
        if behaviour == "hang":
            chat.closed.wait(20)
            self.close_connection = True
        elif behaviour in ("401", "404", "429", "500"):
            quoted = self.headers.get("Authorization", "")
            headers = {"Retry-After": "0.2"} if behaviour == "429" else {}
            self._send(json.dumps({"error": {"message": f"no: {quoted}"}}), int(behaviour), headers)
        elif behaviour == "garbage":
            self._send('{"choices": [}')
        elif behaviour == "html":
            self._send("<html>hello</html>", content_type="text/html")
        else:
            text = "half" if behaviour == "half" else behaviour
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": 100, "completion_tokens": len(text.split()), "total_tokens": 100 + len(text.split())}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}
            self._send(json.dumps(answer), half=behaviour == "half")

    def _send(self, body, status=200, headers=None, content_type="application/json", half=False):
        data = body.encode()
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        self.close_connection = half or self.close_connection
