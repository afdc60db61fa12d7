"""Metrics: hand-labelled texts fix what each one counts."""

import pytest

from minigpt4.metrics import composed
from minigpt4.metrics.captions import caption_scores
from minigpt4.metrics.failures import failure, failure_rate


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
