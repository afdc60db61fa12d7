"""The text of an answer while it comes in pieces."""

import threading
from contextvars import ContextVar

import torch

from ..modeling_minigpt4.chat import AnswerStreamer

# Of the request that is being read; None for one without.
SEED = ContextVar("seed", default=None)


class StopText:
    """Takes pieces of text and gives those to show: up to the first of `stops`, and none of what may be one's beginning."""

    def __init__(self, stops=()):
        self.stops, self.held, self.found = stops, "", False

    def feed(self, piece):
        """The text to show once `piece` is there; `found` says whether the answer ended with it."""
        text = self.held + piece
        cut = min((text.index(stop) for stop in self.stops if stop in text), default=None)
        if cut is not None:
            self.held, self.found = "", True
            return text[:cut]
        kept = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept]


class QueueStreamer(AnswerStreamer):
    """An `AnswerStreamer` with the interface of the engine's `DirectStreamer`, whose place it takes.

    It shows the text that a chat session shows. (The engine's own decoding breaks off at bytes that are no letter, and
    shows turn markers.) It sets `SEED` as the answer begins. (The engine sets it as the request comes in, and others are
    answered in between.)
    """

    def __init__(self, processor, tokenizer, loop, queue, response_parser=None):
        def show(piece, _=None):
            loop.call_soon_threadsafe(queue.put_nowait, piece)

        super().__init__(processor, show)
        self._send, self._cancelled, self._seed = show, threading.Event(), SEED.get()

    @property
    def total_tokens(self):
        """Tokens written."""
        return len(self.ids or [])

    def put(self, value):
        """Takes tokens; raises RuntimeError, which ends `generate`, once the answer is cancelled."""
        if self._cancelled.is_set():
            raise RuntimeError("the answer is not wanted any more")
        if self.ids is None and self._seed is not None:
            torch.manual_seed(self._seed)
        super().put(value)

    def end(self):
        """Shows the rest, and that it was the rest."""
        super().end()
        self._send(None)

    def cancel(self):
        """Ends the answer with the next token."""
        self._cancelled.set()
