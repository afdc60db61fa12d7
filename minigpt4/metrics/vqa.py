"""Answers to questions about pictures: VQA's normalisation and soft accuracy, and the answer inside a sentence.

Normalisation follows the rules of VQA's evaluation (Antol et al. 2015): lower case, punctuation and articles gone, number
words as digits, the apostrophe of contractions put back. The list of contractions is built here from its rules.
"""

import re

import datasets
import evaluate

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_CONTRACTIONS = {
    f"{first}{second}": f"{first}{apostrophe}"
    for second, apostrophe, firsts in (
        ("nt", "n't", "are ca could did does do had has have is might must need should was were wo would"),
        ("ve", "'ve", "could i might must should they we who would you"),
        ("re", "'re", "there they you"),
        ("s", "'s", "that there what where who let he she"),
        ("m", "'m", "i"),
        ("ll", "'ll", "they you"),
    )
    for first in firsts.split()
}
# What stands before the answer in a sentence: "The answer is", "It is", "The background is", "There are".
_LEAD_IN = re.compile(
    r"^(?:(?:so|well|okay),? )?(?:(?:the|a|an|this|that|these|it|they|he|she|there|his|her|its|their|in)\b[\w' ]*?"
    r"\b(?:is|are|was|were|has|have|looks like|appears to be|seems to be)\b|it's|that's|there's|answer:|a:) "
    r"(?:called |wearing |holding )?"
)


def normalise(text):
    """An answer as VQA compares it: "The two dogs!" -> "2 dogs"."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower().replace("\n", " ").replace("\t", " "))
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    text = re.sub(r"[^\w\s.:']", " ", text)
    words = [_DIGITS.get(word, word) for word in text.split() if word not in ("a", "an", "the")]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def short_answer(text):
    """The answer in what a model said, normalised: its first sentence without the words that lead up to the answer.

    "Yes, there is a dog." -> "yes"; "The background is blue." -> "blue"; "A red car." -> "red car".
    """
    lines = text.strip().splitlines()
    sentence = re.split(r"(?<=[.!?])\s", lines[0].strip())[0].strip(" .!?\"'") if lines else ""
    if yes_or_no := re.match(r"(?:yes|no)\b", sentence.lower()):
        return yes_or_no[0]
    return normalise(_LEAD_IN.sub("", sentence.lower()))


def chosen(text, choices):
    """Index of the choice that an answer names first (the longest of those that begin there), its letter, or None."""
    said = normalise(text)
    found = [
        (match.start(), -len(choice), i)
        for i, choice in enumerate(map(normalise, choices))
        if choice and (match := re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", said))
    ]
    if found:
        return min(found)[2]
    letter = re.match(r"\s*\(?([a-z])\s*(?:[).:]|$)", text.lower())
    index = ord(letter[1]) - ord("a") if letter else len(choices)
    return index if index < len(choices) else None


def soft_accuracy(answer, truths):
    """VQA's: full marks if three of the (ten) people said the same; min(1, agreeing / 3)."""
    said = short_answer(answer)
    return min(1.0, sum(normalise(truth) == said for truth in truths) / min(3, len(truths)))


class Vqa(evaluate.Metric):
    """Mean soft accuracy; with a single reference for an answer that is exact match (GQA)."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Antol et al. 2015, arXiv 1505.00468",
            inputs_description="predictions: list of answers; references: list of lists of what people answered",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        scores = [soft_accuracy(answer, truths) for answer, truths in zip(predictions, references, strict=True)]
        return {"accuracy": sum(scores) / len(scores)}
