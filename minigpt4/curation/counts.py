"""A step's report of its work: a line for each failure as it happens, and counts at the end."""

import itertools
import sys
from collections import Counter

from tqdm.auto import tqdm


class Report:
    """Counts of one step in one run: `done` now, `already` done before, `failures`, and any other counts."""

    def __init__(self, step):
        self.step, self.done, self.already, self.failures, self.counts = step, 0, 0, 0, Counter()

    def failed(self, error):
        """Records that an image failed; it is retried when the step runs again."""
        self.failures += 1
        self.note(error)

    def note(self, text):
        """Prints a line on stderr, without breaking the progress bar."""
        lines = str(text).strip().splitlines() or [type(text).__name__]
        tqdm.write(f"{self.step}: {lines[0]}", file=sys.stderr)

    def count(self, what, n=1):
        """Adds to a count; adding 0 has no effect."""
        if n:
            self.counts[what] += n

    def __str__(self):
        parts = [f"{self.done} done"]
        if self.already:
            parts.append(f"{self.already} before")
        parts += [f"{n} {what}" for what, n in sorted(self.counts.items(), key=lambda item: -item[1])]
        if self.failures:
            parts.append(f"{self.failures} failed (the same command tries them again)")
        return f"{self.step}: {', '.join(parts)}"


def chunks(rows, size):
    """Lists of `size` rows, the last one shorter."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk
