"""Metrics: hand-labelled texts fix what each one counts, and every one loads as an `evaluate` module."""

import json
from pathlib import Path

import evaluate
import numpy as np
import pytest

from minigpt4.metrics import composed, failures
from minigpt4.metrics.captions import VALUES, _words, caption_rows, caption_scores
from minigpt4.metrics.failures import failure, failure_rate
from minigpt4.metrics.pope import said
from minigpt4.metrics.statistics import difference, measured, median, one_hot
from minigpt4.metrics.vqa import chosen, normalise, short_answer

METRICS = Path(composed.__file__).parent
LABELLED = json.loads((Path(__file__).parents[2] / "fixtures/evaluation/failures.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The image shows a dog on the left and a cat on the right. The background is red.", None),
        ('He says "hello there."', None),
        ("The dog runs on the grass. The dog runs on the grass.", "repetition"),
        ("a dog with a dog with a dog with a dog with a dog with a dog.", "repetition"),
        ("The image shows a dog and a", "fragment"),
        ("", "empty"),
        (" ... ", "empty"),
        ("No. No.", None),  # short answers may come twice
    ],
)
def test_failures(text, expected):
    assert failure(text) == expected


def test_failure_rate():
    assert failure_rate(["A dog runs.", "A dog", ""]) == pytest.approx(2 / 3)


SCENE = {"kind": "pair", "objects": ["dog", "cat"], "count": 2, "background": "red", "relation": "left",
         "text": "a dog to the left of a cat on a red background"}  # fmt: skip
COUNT = {"kind": "count", "objects": ["mouse"], "count": 3, "background": "blue", "relation": "",
         "text": "three mice on a blue background"}  # fmt: skip


def test_caption_scores_of_scenes():
    said = ["a dog above a bird on a red background", "two mice on a blue background"]
    scores = composed.caption_scores([SCENE, COUNT], said)
    assert scores == {"object_recall": pytest.approx(2 / 3), "caption_exact": 0, "background": 1, "count": 0}
    perfect = composed.caption_scores([SCENE, COUNT], [SCENE["text"], COUNT["text"]])
    assert set(perfect.values()) == {1}


def test_an_answer_is_right_if_it_names_the_true_thing_first():
    questions = [{"question": "left", "answer": ["dog"]}, {"question": "background", "answer": ["red"]}]
    right = composed.answer_scores([SCENE], ["A dog and a cat."], questions, ["A dog is on the left.", "It is red."])
    assert (right["questions_right"], right["description_recall"], right["failures"]) == (1, 1, 0)
    hedged = composed.answer_scores([SCENE], ["Birds."], questions, ["A cat and a dog.", "Blue or red."])
    assert (hedged["questions_right"], hedged["description_recall"]) == (0, 0)


def test_names_are_whole_words():
    assert composed.first_named("a carrot beside the bus", ["car", "bus", "carrot"]) == "carrot"
    assert composed.first_named("concatenate", ["cat"]) is None


def test_caption_scores_tell_right_from_wrong():
    references = [["a dog runs on grass", "a dog is running"], ["two men ride bikes", "men on bikes ride"],
                  ["a child eats cake", "a kid eating a cake"]]  # fmt: skip
    good = caption_scores(["A dog runs on grass.", "two men ride bikes", "a child eats cake"], references)
    bad = caption_scores(["two men ride bikes", "a child eats cake", "a dog runs on grass"], references)
    assert good["cider"] > 5 and bad["cider"] < 0.2 and good["bleu4"] > 0.9 and good["repetition"] == 0
    with pytest.raises(ValueError, match="found 1 captions and 3 lists"):
        caption_scores(["a"], references)


@pytest.mark.parametrize("kind", failures.KINDS)
def test_failures_are_found_as_a_reader_finds_them(kind):
    """Precision 1 on 53 labelled texts; recall 1 but for what only the picture (or the sense) could tell."""
    found = [failure(entry["text"], entry["instruction"]) == kind for entry in LABELLED]
    truth = [entry["label"] == kind for entry in LABELLED]
    hits = sum(a and b for a, b in zip(found, truth, strict=True))
    assert sum(truth) >= 4 and hits == sum(found)
    assert hits / sum(truth) >= {"repetition": 10 / 11, "unrelated": 12 / 13}.get(kind, 1)


def test_good_answers_pass():
    good = [entry for entry in LABELLED if entry["label"] is None]
    assert len(good) >= 15 and all(failure(entry["text"], entry["instruction"]) is None for entry in good)


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("failures", ["A dog runs.", "A dog"], ["", ""], {"failures": 0.5, "fragment": 0.5, "empty": 0}),
        ("captions", ["a dog runs", "a cat"], [["a dog runs"], ["two birds"]], {"rouge_l": 0.5, "repetition": 0}),
        ("chair", ["a dog and a cat"], [["dog"]], {"chair_i": 0.5, "chair_s": 1, "recall": 1, "words": 5}),
        ("objects", ["a man and a cat", "a dog"], [["person", "dog"], ["dog"]], {"named": 0.5, "invented": 1 / 3}),
        ("pope", ["Yes.", "no"], ["yes", "yes"], {"accuracy": 0.5, "recall": 0.5, "yes_ratio": 0.5, "f1": 2 / 3}),
        ("vqa", ["It is red.", "two"], [["red"], ["2", "3", "3"]], {"accuracy": (1 + 1 / 3) / 2}),
        ("composed", ["a dog on a red background"], "scene", {"object_recall": 0.5, "background": 1, "caption_exact": 0}),
    ],
)
def test_every_metric_loads_with_evaluate(name, predictions, references, expected, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    metric = evaluate.load(str(METRICS / f"{name}.py"))
    if references == "scene":
        references = [{key: SCENE[key] for key in ("kind", "objects", "count", "background", "text")}]
    found = metric.compute(predictions=predictions, references=references)
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_captions_are_tokenized_as_coco_does():
    """Each as pycocoevalcap's PTBTokenizer, which needs Java, returned it."""
    for text, expected in (
        ("A man's t-shirt is red.", "a man 's t-shirt is red"),
        ("It costs 3.50 and 1,000 people; at 10:30", "it costs 3.50 and 1,000 people at 10:30"),
        ('Two dogs, don\u2019t bark! 50% of a "caf\u00e9"', "two dogs do n't bark 50 % of a caf\u00e9"),
        ("the dogs' bowls -- and/or black-and-white", "the dogs bowls and/or black-and-white"),
    ):
        assert _words(text) == expected


def test_bleu_is_that_of_coco():
    """The same figure as pycocoevalcap's own Bleu, where 4-grams match."""
    from pycocoevalcap.bleu.bleu import Bleu

    captions = ["a dog runs on the green grass", "two men ride bikes down the road", "a cat"]
    references = [["a dog runs on the grass", "the dog runs on the green lawn"],
                  ["two men ride bikes on a road"], ["a cat sits", "one cat"]]  # fmt: skip
    theirs, _ = Bleu(4).compute_score(dict(enumerate(references)), {i: [text] for i, text in enumerate(captions)}, verbose=0)
    rows = caption_rows(captions, references)["bleu4"]
    assert VALUES["bleu4"](np.sum(rows, 0)) == pytest.approx(theirs[3], abs=1e-6) and theirs[3] > 0.3


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes, there is a dog.", "yes"),
        ("No.", "no"),
        ("There is, to be sure, no dog", "no"),
        ("There is. No more.", "yes"),
        ("There isn't one.", "yes"),  # being comparable with what others publish comes before being right
        ("NO", "yes"),
        (" . ", None),
    ],
)
def test_pope_reads_an_answer_as_its_authors_do(answer, expected):
    assert said(answer) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The background is blue.", "blue"),
        ("Two dogs!", "2 dogs"),
        ("Yes, it is.", "yes"),
        ("It is a red car. It is parked.", "red car"),
        ("In the picture, the man is wearing a hat.", "hat"),
        ("dont know", "don't know"),
        ("1,000", "1000"),
        ("2.5", "2.5"),
        ("", ""),
    ],
)
def test_short_answers(text, expected):
    assert short_answer(text) == expected == normalise(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The black/white T-shirt!", "black white t shirt"),
        ("1,000 - or more", "1000 or more"),  # next to a space a mark is dropped; with a number's comma, all of them are
        ("5%, $2.50, a.m.", "5% $2.50 am"),
        ("None of an apple", "0 of apple"),
        ("dont, shouldntve couldn'tve youd've oclock", "don't shouldntve couldn't've you'd've o'clock"),
        ("im its Joe's", "im its joe's"),  # not on VQA's list
    ],
)
def test_answers_are_normalised_as_vqa_does(text, expected):
    """Compared once with the code of lmms-eval (mmf's) on 20,000 texts of marks, numbers and all its contractions."""
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("It is a red car.", 1), ("(C)", 2), ("b.", 1), ("car", 0), ("a bus or a car", 3), ("nothing", None), ("", None)],
)
def test_choices(text, expected):
    assert chosen(text, ["car", "red car", "train", "bus"]) == expected


def test_medians_of_counts():
    for numbers in ([3], [1, 2], [0, 5, 5, 9], [4, 4, 1, 7, 30]):
        assert median(one_hot(numbers).sum(0)) == np.median(numbers)
        assert measured(one_hot(numbers), range(len(numbers)), median)["value"] == np.median(numbers)
    both = np.stack([one_hot([1, 2, 8]).sum(0), one_hot([0, 0, 8]).sum(0)])
    assert median(both).tolist() == [2, 0]
    assert difference(one_hot([1, 2, 8]), one_hot([1, 3, 30]), ["a", "b", "c"], median)["value"] == -1


def test_intervals_cover_and_are_of_pictures():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        # 60 pictures, each asked about five times with the same luck.
        hits = np.repeat(rng.random(60) < 0.7, 5)
        found = measured([[hit, 1] for hit in hits], np.repeat(np.arange(60), 5), seed=trial)
        covered += found["interval"][0] <= 0.7 <= found["interval"][1]
    assert covered >= 88  # of 95 to be expected; with answers drawn one by one it is some 60
    same = difference([[1, 1], [0, 1]], [[1, 1], [0, 1]], ["a", "b"])
    assert same == {"value": 0, "n": 2, "interval": [0, 0]}
    assert measured([[0, 0]], ["a"])["value"] is None
    # Wilson's, of pictures with one answer each: none of 20 may still be one of seven.
    assert measured([[0, 1]] * 20, range(20))["interval"] == pytest.approx([0, 0.1611], abs=1e-4)
    with pytest.raises(ValueError, match="found 0 examples"):
        measured([], [])
