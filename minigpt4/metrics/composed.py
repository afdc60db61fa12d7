"""What a model says about composed scenes (processing/scenes.py) against what is in them; everything from generated text."""

import re

from ..processing.scenes import BACKGROUNDS, NUMBERS, OBJECTS, plural
from .failures import failure_rate


def caption_scores(rows, captions):
    """Stage 1: {"object_recall", "caption_exact", "background", "count"}, each a share; the last over scenes that count."""
    counted = [(row, caption) for row, caption in zip(rows, captions, strict=True) if row["kind"] == "count"]
    return {
        "object_recall": object_recall(rows, captions),
        "caption_exact": _mean(row["text"] == caption for row, caption in zip(rows, captions, strict=True)),
        "background": _mean(
            first_named(caption, BACKGROUNDS) == row["background"] for row, caption in zip(rows, captions, strict=True)
        ),
        "count": _mean(first_named(caption, NUMBERS.values()) == NUMBERS[row["count"]] for row, caption in counted),
    }


def object_recall(rows, texts):
    """Share of the scenes' objects that the text about their scene names, in the singular or the plural."""
    return _mean(_names(text, name) for row, text in zip(rows, texts, strict=True) for name in row["objects"])


def answer_scores(rows, descriptions, questions, answers):
    """Stage 2: {"questions_right", "by_question", "description_recall", "failures"}.

    Args:
        rows, descriptions: scenes, and a detailed description of each.
        questions: entries of the scenes' `conversation` other than descriptions; answers: a text for each.

    A question is answered right if the first thing of the asked kind that the answer names (object, number, colour) is
    the true one, so that naming everything does not help.
    """
    right = {}
    for question, answer in zip(questions, answers, strict=True):
        kinds = {"background": BACKGROUNDS, "count": NUMBERS.values()}
        named = first_named(answer, kinds.get(question["question"], OBJECTS))
        right.setdefault(question["question"], []).append(named == question["answer"][0])
    return {
        "questions_right": _mean(hit for hits in right.values() for hit in hits),
        "by_question": {kind: _mean(hits) for kind, hits in sorted(right.items())},
        "description_recall": object_recall(rows, descriptions),
        "failures": failure_rate([*descriptions, *answers]),
    }


def first_named(text, names):
    """The one of `names` that the text names first, or None."""
    found = [(match.start(), -len(name), name) for name in names if (match := _find(text, name))]
    return min(found)[2] if found else None


def _names(text, name):
    return _find(text, name) is not None


def _find(text, name):
    return re.search(rf"\b(?:{re.escape(name)}|{re.escape(plural(name))})\b", text.lower())


def _mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0
