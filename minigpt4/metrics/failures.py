"""The two failures that the paper's second stage cures (section 4): repetition and broken-off text, and empty answers."""

import re

MAX_REPEATED_SHARE = 0.3  # of an answer's 4-grams that occurred before in it


def failure(text):
    """What is wrong with an answer: "empty", "repetition", "fragment", or None.

    Repetition is a sentence of three words or more that comes twice, or more than 30% repeated 4-grams; a fragment does
    not end with a full stop, an exclamation or question mark, or a closing quote or bracket after one.
    """
    text = text.strip()
    if not re.search(r"\w", text):
        return "empty"
    sentences = [s for s in re.split(r"[.!?\n]+\s*", text.lower()) if len(s.split()) >= 3]
    if len(set(sentences)) < len(sentences) or _repeated_share(text.lower().split()) > MAX_REPEATED_SHARE:
        return "repetition"
    return None if re.search(r"[.!?][\"')\]]*$", text) else "fragment"


def failure_rate(texts):
    """Share of the texts that fail."""
    return sum(failure(text) is not None for text in texts) / len(texts)


def _repeated_share(words):
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
