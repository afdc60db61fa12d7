"""The text of an answer that arrives in pieces."""


class StopText:
    """Takes pieces of text and returns those to show: up to the first of `stops`, holding back a possible start of one."""

    def __init__(self, stops=()):
        self.stops, self.held, self.found = stops, "", False

    def feed(self, piece):
        """The text to show after `piece`; `found` says whether the answer ended with it."""
        text = self.held + piece
        cut = min((text.index(stop) for stop in self.stops if stop in text), default=None)
        if cut is not None:
            self.held, self.found = "", True
            return text[:cut]
        kept = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept]
