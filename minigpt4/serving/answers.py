"""The text of an answer while it comes in pieces: up to a stop text, and nothing that what follows may still change."""

_ROLE = "Assistant:"  # which a model that ends its turns in text may write once more


class AnswerText:
    """Takes pieces of text and gives the pieces to show.

    Args:
        stops: texts that end the answer and do not belong to it.
        turn_markers: the processor's; they are stops, too.
    """

    def __init__(self, stops=(), turn_markers=()):
        self.ends, self.role = [*stops, *turn_markers], _ROLE if turn_markers else ""
        self.text, self.shown, self.stopped = "", 0, False

    def feed(self, piece):
        """The text to show once `piece` is there; `stopped` says whether the answer ended with it."""
        self.text += piece
        cut = min((self.text.index(end) for end in self.ends if end in self.text), default=None)
        self.stopped = cut is not None
        if self.stopped:
            self.text = self.text[:cut]
            return self.finish()
        open_end = max((n for end in self.ends for n in range(1, len(end)) if self.text.endswith(end[:n])), default=0)
        text = self.text[: len(self.text) - open_end].rstrip()
        return "" if self.role and self.role.startswith(text.lstrip()) else self._new(text)

    def finish(self):
        """The rest."""
        return self._new(self.text.rstrip())

    def _new(self, text):
        text = text.lstrip().removeprefix(self.role).lstrip()
        new, self.shown = text[self.shown :], max(self.shown, len(text))
        return new
