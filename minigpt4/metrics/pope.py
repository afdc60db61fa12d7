"""POPE (Li et al. 2023): "Is there a dog in the image?", answered yes or no; "yes" is the positive class for F1.

An answer is read as in the authors' evaluate.py, so figures are comparable with published ones: up to the first full stop,
without commas, one of the words "No", "no" and "not" makes it a no, and anything else a yes, even "There isn't one.". An
answer without a word, which that code would count as a yes, is neither here, and wrong.
"""

import re

import datasets
import evaluate
import numpy as np

from minigpt4.metrics.statistics import ratio


def said(answer):
    """The reading of an answer: "yes", "no", or None if it has no words."""
    first = answer.strip().partition(".")[0].replace(",", "")
    if not re.search(r"\w", answer):
        return None
    return "no" if {"No", "no", "not"} & set(first.split(" ")) else "yes"


def f1(sums):
    """[..., 2] sums of true positives, and of true plus answered yes -> F1: 2 tp / (said yes + is yes)."""
    return 2 * ratio(sums)


def pope_rows(answers, labels):
    """{figure: [a row of sums for each answer]}, which `VALUES` turns into figures. labels: "yes" or "no"."""
    pairs = [(said(answer), label) for answer, label in zip(answers, labels, strict=True)]
    both = [[s == label == "yes", (s == "yes") + (label == "yes")] for s, label in pairs]
    return {
        "accuracy": [[s == label, 1] for s, label in pairs],
        "f1": both,
        "precision": [[s == label == "yes", s == "yes"] for s, label in pairs],
        "recall": [[s == label == "yes", label == "yes"] for s, label in pairs],
        "yes_ratio": [[s == "yes", 1] for s, _ in pairs],
    }


# {figure: function of summed rows, for `statistics.measured`}
VALUES = {"accuracy": ratio, "f1": f1, "precision": ratio, "recall": ratio, "yes_ratio": ratio}


class Pope(evaluate.Metric):
    """Accuracy, F1, precision, recall and the share of yes."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Li et al. 2023, arXiv 2305.10355",
            inputs_description='predictions: list of answers; references: list of "yes" and "no"',
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions, references):
        rows = pope_rows(predictions, references)
        return {name: float(VALUES[name](np.sum(rows[name], 0, dtype=float))) for name in VALUES}
