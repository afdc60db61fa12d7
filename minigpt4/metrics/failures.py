"""Failures of generated text: what the paper's second stage cures (section 4), each with a definition and a threshold.

    empty        no words
    repetition   a sentence, or a line, of three words or more comes twice, or more than 30% of the 4-grams came before
    fragment     no end: no full stop, exclamation or question mark (a closing quote or bracket may follow); in verse, whose
                 lines may end without one: a comma, a hyphen, or a word that cannot end a line ("the", "of")
    unrelated    not about the image: the model speaks of itself, refuses or apologises; a turn of another speaker, code,
                 a URL or a form with blanks; the instruction again; no verse for a poem

The first that applies counts. tests/fixtures/evaluation/failures.json has hand-labelled texts that pin them down.
"""

import re

import datasets
import evaluate

MAX_REPEATED_SHARE = 0.3  # of an answer's 4-grams that occurred earlier in it
VERSE_LINES = 3  # the minimum for a poem
KINDS = ("empty", "repetition", "fragment", "unrelated")

_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]*_]*$")
_BROKEN_LINE = re.compile(
    r"(?:[,;:(\-\u2013\u2014]|\b(?:an?|the|of|and|or|in|on|at|to|with|by|for|from|as|is|are|was|its|their|his|her))$",
    re.IGNORECASE,
)
_OFF_TOPIC = re.compile(
    r"\bas an? (?:ai|language model|assistant)\b|\bi(?:'m| am) (?:an ai|a language model|just an?\b)"
    r"|\bi(?:'m| am) (?:sorry|unable|not able)\b|\bi (?:apologi[sz]e|can(?:no|')t (?:see|view|describe|help|write|provide))"
    r"|\bmy apologies\b|\b(?:please|could you) (?:provide|upload|share|attach)\b|\bno image (?:was|is|has been)\b"
    r"|\bhow (?:can|may) i (?:help|assist)\b|\bthank you for your question\b"
    r"|^#{1,6} ?(?:human|assistant)\b|^(?:human|user|assistant|question|answer) ?:|<\|?/?\w+\|?>"
    r"|```|https?://|\bwww\.|\[[a-z]+_[a-z_]+\]|\bimport \w+\n|\bdef \w+\(|\[(?:your|insert)\b",
    re.IGNORECASE | re.MULTILINE,
)


def failure(text, instruction=None):
    """The first of `KINDS` that applies to an answer, or None.

    Args:
        text: the answer.
        instruction: the request; without it nothing is unrelated.
    """
    text = text.strip()
    if not re.search(r"\w", text):
        return "empty"
    if _repeats(text):
        return "repetition"
    poem = instruction is not None and re.search(r"\b(?:poem|verse|rap|haiku)\b", instruction, re.IGNORECASE)
    verse = poem and len([line for line in text.splitlines() if line.strip()]) >= VERSE_LINES
    if _BROKEN_LINE.search(text) if verse else not _END.search(text):
        return "fragment"
    if instruction is None:
        return None
    own_words = re.sub(r"[\"\u201c][^\"\u201d\n]*[\"\u201d]", "", text)  # a quoted sign is not a refusal
    off_topic = _OFF_TOPIC.search(own_words) or _words(instruction) == _words(text)
    return "unrelated" if off_topic or (poem and not verse) else None


def failure_rate(texts):
    """Share of the texts that are empty, repeat or do not end."""
    return sum(failure(text) is not None for text in texts) / len(texts)


def _repeats(text):
    # A full stop inside a number or an abbreviation does not end a sentence.
    sentences = [s.strip(" \"'\u201d\u2019)*-") for s in re.split(r"[.!?]+[\"'\u201d\u2019)\]]*(?:\s+|$)|\n+", text.lower())]
    sentences = [s for s in sentences if len(s.split()) >= 3]
    return len(set(sentences)) < len(sentences) or _repeated_share(text.lower().split()) > MAX_REPEATED_SHARE


def _repeated_share(words):
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _words(text):
    return re.findall(r"\w+", text.lower())


class Failures(evaluate.Metric):
    """Share of answers that fail, overall and of each kind; `instructions` (optional): equally many texts, "" for none."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Zhu et al. 2023, arXiv 2304.10592, section 4",
            inputs_description="predictions: list of answers; references: list of the instructions, '' where there is none",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions, references):
        found = [failure(text, asked or None) for text, asked in zip(predictions, references, strict=True)]
        return {"failures": sum(kind is not None for kind in found) / len(found)} | {
            kind: found.count(kind) / len(found) for kind in KINDS
        }
