"""Answers to questions about images: VQA's normalisation and soft accuracy, and the answer inside a sentence.

Normalisation follows VQA's own evaluation (Antol et al. 2015, vqaEval.py): lower case, no punctuation or articles, number
words as digits, apostrophes of contractions restored. GQA's and AOK-VQA's own scripts compare texts as they are; here both
sides are normalised, so "A T-shirt." matches "t-shirt".
"""

import re

import datasets
import evaluate

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = ("a", "an", "the")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'  # not the apostrophe, the colon, the full stop, or "%", "$", "&"
# Endings, and the words that take them in VQA's list.
_ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who y'all you",
    "'ll": "how it somebody someone something they what who why y'all you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'ve": "could might must not should they we what where who would you",
}
# {a contraction without one of its apostrophes: with all of them}
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in (
        *("y'all", "ma'am", "o'clock", "'twas"),
        *(first + ending for ending, firsts in _ENDINGS.items() for first in firsts.split()),
    )
    for place, letter in enumerate(word)
    if letter == "'"
}
# What precedes the answer in a sentence: "The answer is", "It is", "The background is", "There are".
_LEAD_IN = re.compile(
    r"^(?:(?:so|well|okay),? )?(?:(?:the|a|an|this|that|these|it|they|he|she|there|his|her|its|their|in)\b[\w', ]*?"
    r"\b(?:is|are|was|were|has|have|looks like|appears to be|seems to be)\b|it's|that's|there's|answer:|a:) "
    r"(?:called |wearing |holding )?"
)


def normalise(text):
    """An answer as VQA compares it: "The two dogs!" -> "2 dogs".

    Punctuation next to a space is removed, any other becomes a space ("black/white" is two words); if a number has a comma,
    all of it is removed. A full stop stays only before a digit: "2.5", but "a.m." -> "am".
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    in_number = re.search(r"\d,\d", text)
    marks = {m: "" if in_number or f"{m} " in text or f" {m}" in text else " " for m in _MARKS}
    words = re.sub(r"\.(?!\d)", "", text.translate(str.maketrans(marks))).lower().split()
    words = [_DIGITS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def short_answer(text):
    """The normalised answer in what a model said: its first sentence without the words that lead up to the answer.

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
    """Full marks if three people gave the same answer, as AOK-VQA counts its ten: min(1, agreeing / 3).

    With fewer than three people, all must agree: a single reference is exact match.
    """
    said = short_answer(answer)
    return min(1.0, sum(normalise(truth) == said for truth in truths) / min(3, len(truths)))


class Vqa(evaluate.Metric):
    """Mean soft accuracy; with a single reference per answer, that is exact match (GQA)."""

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
