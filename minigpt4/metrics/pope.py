"""POPE (Li et al. 2023): "Is there a dog in the image?", answered yes or no; "yes" is the class that F1 is about.

An answer is read as in the authors' evaluate.py, so that figures are those that others publish: up to the first full stop,
without commas, one of the words "No", "no" and "not" makes a no, and everything else a yes: "There isn't one.", too. An
answer without a word, which that code would call a yes, is neither here, and wrong.
"""

import re

import datasets
import evaluate
import numpy as np

from minigpt4.metrics.statistics import ratio


def said(answer):
    """Of an answer: "yes", "no", or None of one without a word."""
    first = answer.strip().partition(".")[0].replace(",", "")
    if not re.search(r"\w", answer):
        return None
    return "no" if {"No", "no", "not"} & set(first.split(" ")) else "yes"


def f1(sums):
    """[..., 2] sums of true positives, and of what is yes or was answered so -> F1: 2 tp / (said yes + is yes)."""
    return 2 * ratio(sums)


def pope_rows(answers, labels):
    """{figure: [a row of sums for each answer]}; `VALUES` makes figures of them. labels: "yes" or "no"."""
    pairs = [(said(answer), label) for answer, label in zip(answers, labels, strict=True)]
    both = [[s == label == "yes", (s == "yes") + (label == "yes")] for s, label in pairs]
    return {
        "accuracy": [[s == label, 1] for s, label in pairs],
        "f1": both,
        "precision": [[s == label == "yes", s == "yes"] for s, label in pairs],
        "recall": [[s == label == "yes", label == "yes"] for s, label in pairs],
        "yes_ratio": [[s == "yes", 1] for s, _ in pairs],
    }


# {figure: function of summed rows, as `statistics.measured` takes it}
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
