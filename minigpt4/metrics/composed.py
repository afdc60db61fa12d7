"""What a model says about composed scenes (processing/data/scenes.py) against what is in them, from generated text."""

import re
from pathlib import Path

import datasets
import evaluate

from minigpt4.metrics.failures import failure_rate
from minigpt4.processing.data.scenes import BACKGROUNDS, NUMBERS, OBJECTS, plural

HELD_OUT = 160  # scenes that are measured
SHIFT = 7  # the shuffled control: each scene is scored with the answer about the scene this many places later
NOTO_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def caption_hits(row, caption):
    """{figure: (hits, tries)} of a stage-1 caption; "count" only for a scene with a count."""
    hits = {
        "object_recall": named_objects(row, caption),
        "caption_exact": (row["text"] == caption, 1),
        "background": (first_named(caption, BACKGROUNDS) == row["background"], 1),
    }
    if row["kind"] == "count":
        hits["count"] = (first_named(caption, NUMBERS.values()) == NUMBERS[row["count"]], 1)
    return hits


def named_objects(row, text):
    """(how many of a scene's objects the text names, in the singular or the plural; how many there are)."""
    return sum(_find(text, name) is not None for name in row["objects"]), len(row["objects"])


def is_right(question, answer):
    """Whether the first thing of the asked kind that the answer names (object, number, colour) is the true one.

    Only the first counts, so naming everything does not help. `question`: an entry of a scene's `conversation`.
    """
    kinds = {"background": BACKGROUNDS, "count": NUMBERS.values()}
    return first_named(answer, kinds.get(question["question"], OBJECTS)) == question["answer"][0]


def caption_scores(rows, captions):
    """Stage 1: {"object_recall", "caption_exact", "background", "count"}, as shares; the last over scenes with a count."""
    hits = [caption_hits(row, caption) for row, caption in zip(rows, captions, strict=True)]
    names = ("object_recall", "caption_exact", "background", "count")
    return {name: _share(scene[name] for scene in hits if name in scene) for name in names}


def object_recall(rows, texts):
    """Share of the scenes' objects that are named in the text about their scene."""
    return _share(named_objects(row, text) for row, text in zip(rows, texts, strict=True))


def answer_scores(rows, descriptions, questions, answers):
    """Stage 2: {"questions_right", "by_question", "description_recall", "failures"}.

    Args:
        rows, descriptions: scenes, and a detailed description of each.
        questions: entries of the scenes' `conversation` other than descriptions; answers: a text for each.
    """
    right = {}
    for question, answer in zip(questions, answers, strict=True):
        right.setdefault(question["question"], []).append((is_right(question, answer), 1))
    return {
        "questions_right": _share(hit for hits in right.values() for hit in hits),
        "by_question": {kind: _share(hits) for kind, hits in sorted(right.items())},
        "description_recall": object_recall(rows, descriptions),
        "failures": failure_rate([*descriptions, *answers]),
    }


def first_named(text, names):
    """The first of `names` in the text, or None."""
    found = [(match.start(), -len(name), name) for name in names if (match := _find(text, name))]
    return min(found)[2] if found else None


def _find(text, name):
    return re.search(rf"\b(?:{re.escape(name)}|{re.escape(plural(name))})\b", text.lower())


def _share(hits):
    hits = list(hits)
    return sum(hit for hit, _ in hits) / sum(tries for _, tries in hits) if hits else 0.0


class Composed(evaluate.Metric):
    """`caption_scores` of captions of composed scenes."""

    def _info(self):
        scene = {
            "kind": datasets.Value("string"),
            "objects": datasets.Sequence(datasets.Value("string")),
            "count": datasets.Value("int64"),
            "background": datasets.Value("string"),
            "text": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description=__doc__,
            citation="minigpt4-hf",
            inputs_description="predictions: list of captions; references: rows of minigpt4.processing.data.scenes.scenes",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": scene}),
        )

    def _compute(self, predictions, references):
        return caption_scores(references, predictions)
