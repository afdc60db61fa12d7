"""Texts about photographs say what is known of an image, and ask about what is not there as often as about what is."""

import random
import re
from collections import Counter

import pytest

from minigpt4.processing.data.kinds import named_kinds
from minigpt4.processing.data.photo_texts import Statistics, a, details, present, texts

LISTED = {"captions": ["A photo of a cat and a bench."], "objects": ["bench", "cat", "skis"], "made": "from a list"}
LABELLED = {"captions": ["A photo of an hourglass."], "label": "hourglass", "source": "shop"}
GROCERY = {"captions": ["A photo of Kaiser pears in a grocery store."], "label": "Pear, Kaiser", "source": "shop"}
HUMAN = {
    "captions": ["Two dogs chase a red ball.", "Two dogs run.", "A red ball on grass."],
    "objects": ["dog", "sports ball"],
}
BARE = {"captions": ["A woman rides a white horse ."]}
DETAIL = "The image shows a bowl of oatmeal. There are nuts on top."
DETAILED = {"captions": ["This The image shows a bowl of oatmeal.", f"This {DETAIL}"], "detail": f"This {DETAIL}"}
ROWS = (LISTED, LABELLED, GROCERY, HUMAN, BARE, DETAILED)
STATISTICS = Statistics([*ROWS, {"captions": ["x"], "objects": ["cat", "couch"]}, {"captions": ["x"], "objects": ["zebra"]}])


def _drawn(row, n=200):
    return [texts(row, random.Random(seed), STATISTICS) for seed in range(n)]


def _yes_and_no(questions):
    return [pair for pair in questions if re.match(r"(?:Yes|No)\b", pair[1])]


@pytest.mark.parametrize("row", ROWS)
def test_the_same_seed_writes_the_same(row):
    assert _drawn(row, 5) == _drawn(row, 5)


def test_captions_of_people_stay_and_others_come_in_several_wordings():
    assert texts(HUMAN, random.Random(0), STATISTICS)["captions"] == HUMAN["captions"]
    found = texts(LABELLED, random.Random(0), STATISTICS)["captions"]
    assert {"an hourglass", "a photo of an hourglass", "there is an hourglass"} < set(found)
    assert texts(LABELLED, random.Random(0), STATISTICS, wordings=2)["captions"] == found[:2]
    assert "there are Kaiser pears in a grocery store" in texts(GROCERY, random.Random(0), STATISTICS)["captions"]
    assert texts(DETAILED, random.Random(0), STATISTICS)["captions"] == ["A bowl of oatmeal."]


def test_lists_name_what_is_there_in_any_order():
    captions = [caption for drawn in _drawn(LISTED, 20) for caption in drawn["captions"]]
    assert all(set(named_kinds(caption)) == {"bench", "cat", "skis"} for caption in captions)
    assert {"a cat, a bench and skis", "skis, a bench and a cat"} < set(captions)
    begun = {" ".join(caption.split()[:3]) for caption in captions if caption.startswith("there")}
    assert begun == {"there are skis,", "there is a"}


def test_a_description_that_begins_twice_begins_once_and_one_that_ends_in_the_middle_is_none():
    assert details(DETAILED) == [DETAIL]
    assert (
        details({"captions": ["x"], "detail": "The image shows a"}) == details({"captions": [], "detail": "of a dog."}) == []
    )
    assert details(BARE) == []


def test_a_description_is_made_of_what_people_wrote_and_what_is_known_besides():
    captions = ["A black dog runs on the beach.", "There is a dog with a stick near the ocean on a sunny day.", "A dog."]
    row = {"captions": captions, "objects": ["dog", "frisbee", "person"]}
    for drawn in _drawn(row, 20):
        [told] = drawn["details"]
        assert told.startswith("In this image, there is a dog with a stick near the ocean on a sunny day.")
        assert "a black dog runs on the beach." in told and "The dog is black." in told
        assert "a frisbee and a person" in told.lower() or "a person and a frisbee" in told.lower()
        assert re.search(r"(?:near the ocean|on the beach)\.$", told) and told.count(".") == 5
    [told] = texts({"captions": ["A man with a hat by a lake.", "A RED TRUCK."]}, random.Random(0), STATISTICS)["details"]
    assert "a red truck." in told
    for drawn in _drawn(LISTED, 20):
        [told] = drawn["details"]
        assert re.match(r"In this image, there (?:is a|are skis)", told) and told.count(".") == 2
        assert set(named_kinds(told)) == {"bench", "cat", "skis"}
    assert texts(BARE, random.Random(0), STATISTICS)["details"] == []  # nothing is known besides the caption
    for drawn in _drawn(LABELLED, 20):
        assert re.match(r"In this image, there is an hourglass\. [A-Z].*\.$", *drawn["details"])
    assert texts(DETAILED, random.Random(0), STATISTICS)["details"] == [DETAIL]


@pytest.mark.parametrize("row", ROWS)
def test_as_many_yes_as_no_and_both_are_true(row):
    for drawn in _drawn(row):
        answers = Counter(answer.partition(",")[0].strip(".") for _, answer in _yes_and_no(drawn["questions"]))
        assert answers["Yes"] == answers["No"] == 1
        for question, answer in _yes_and_no(drawn["questions"]):
            asked = named_kinds(question)
            if asked and "label" not in row:
                assert (set(asked) <= present(row)) == answer.startswith("Yes")


def test_absent_things_are_drawn_by_how_often_they_occur_with_those_that_are_there():
    absent = Counter(STATISTICS.absent(LISTED, random.Random(seed)) for seed in range(1000))
    assert set(absent) == {"couch", "dog", "ball", "zebra"}  # none that no row has
    assert absent["couch"] > 500  # the only one that occurs with a cat: half of the draws, and some of the others
    assert {STATISTICS.absent(LABELLED, random.Random(seed)) for seed in range(20)} == {"pear"}
    assert STATISTICS.absent({**LABELLED, "source": "elsewhere"}, random.Random(0)) is None
    assert not present(BARE) & {STATISTICS.absent(BARE, random.Random(seed)) for seed in range(500)}


def test_questions_about_number_and_color_have_the_answers_of_the_captions():
    asked = {pair for drawn in _drawn(HUMAN) for pair in drawn["questions"]}
    assert ("How many dogs are there?", "Two.") in asked and ("What color is the ball?", "Red.") in asked
    assert not any("How many balls" in question for question, _ in asked)  # one caption says "a ball", none a number
    asked = {pair for drawn in _drawn(BARE) for pair in drawn["questions"]}
    assert ("What color is the horse?", "White.") in asked and not any("How many" in question for question, _ in asked)
    groups = {"captions": ["A group of dogs.", "A couple of dogs.", "A herd of dogs."]}
    assert not any("How many" in question for drawn in _drawn(groups) for question, _ in drawn["questions"])


def test_a_conversation_has_one_image_and_takes_up_what_was_not_said():
    crowd = {"captions": ["A cat on a bench."], "objects": ["bench", "cat", "cup", "fork", "knife", "spoon"]}
    for drawn in _drawn(crowd, 50):
        messages = drawn["conversation"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2) and len(
            messages
        ) >= 4
        assert [part["type"] for message in messages for part in message["content"]].count("image") == 1
        assert messages[0]["content"][0] == {"type": "image"}
        first, second = (named_kinds(messages[i]["content"][0]["text"]) for i in (1, 3))
        assert set(first) | set(second) <= set(crowd["objects"]) and not set(first) & set(second)
    nothing = {"captions": ["Clouds."], "objects": []}
    assert all(len(drawn["conversation"]) in (0, 4) for drawn in _drawn({**nothing, "captions": ["A sunset."]}, 5))


def test_articles():
    things = ("dog", "umbrella", "hourglass", "unicycle", "skis", "milk", "glass", "bus")
    assert list(map(a, things)) == ["a dog", "an umbrella", "an hourglass", "a unicycle", "skis", "milk", "a glass", "a bus"]


@pytest.mark.parametrize("row", ROWS)
def test_no_short_answer_begins_as_a_description_does(row):
    begun = re.compile(r"(?:in )?this (?:is an?|image)|the image shows", re.IGNORECASE)
    for drawn in _drawn(row):
        assert not any(begun.match(answer) for _, answer in drawn["questions"])
        assert all(begun.match(told) for told in drawn["details"])
