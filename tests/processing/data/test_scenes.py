"""Composed scenes: seeded, split by combination, and their texts match what is drawn."""

import numpy as np
import pytest

from minigpt4.processing.data.scenes import (
    BACKGROUNDS,
    NUMBERS,
    OBJECTS,
    combination,
    openmoji,
    plural,
    scenes,
    split_of,
    with_article,
)


def test_at_least_a_hundred_objects_each_with_artwork_of_its_own():
    pictures = {name: openmoji(name) for name in OBJECTS}
    assert len(pictures) >= 100
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)
    assert all(picture.mode == "RGBA" and picture.width == picture.height > 90 for picture in pictures.values())


def test_the_same_seed_gives_the_same_scenes_and_another_others():
    rows, again, other = scenes(6, seed=1), scenes(6, seed=1), scenes(6, seed=2)
    assert rows.with_format(None)[:] == again.with_format(None)[:] != other.with_format(None)[:]
    assert np.array_equal(np.asarray(rows[3]["image"]), np.asarray(again[3]["image"]))
    assert rows[0]["image"].size == (224, 224)


def test_train_and_test_share_no_combination():
    train, test = (scenes(1500, split=split).with_format(None) for split in ("train", "test"))
    assert not {combination(row) for row in train} & {combination(row) for row in test}
    assert {split_of(row) for row in test} == {"test"}
    assert {row["kind"] for row in test} == {"single", "count", "pair"}


def test_texts_say_what_is_drawn():
    for row in scenes(300, seed=3).with_format(None):
        assert row["text"].endswith(f"on {with_article(row['background'])} background")
        drawn = len(row["boxes"])
        assert drawn == row["count"]
        if row["kind"] == "pair":
            first, second = row["boxes"]
            axis = 0 if row["relation"] == "left" else 1
            assert first[axis] < second[axis], "the first object is the left or upper one"
            sides = {entry["question"]: entry["answer"] for entry in row["conversation"]}
            near, far = ("left", "right") if row["relation"] == "left" else ("top", "bottom")
            assert (sides[near], sides[far]) == ([row["objects"][0]], [row["objects"][1]])
        else:
            count = next(entry for entry in row["conversation"] if entry["question"] == "count")
            assert count["answer"] == [NUMBERS[drawn]]
        for entry in row["conversation"]:
            assert all(word in entry["text"].lower() or plural(word) in entry["text"] for word in entry["answer"])


def test_the_background_has_the_named_colour():
    for row in scenes(40, seed=4):
        corner = np.asarray(row["image"], dtype=float)[:, :2].mean((0, 1))  # objects stay away from the left edge
        nearest = min(BACKGROUNDS, key=lambda name: np.abs(corner - BACKGROUNDS[name]).sum())
        assert nearest == row["background"]


@pytest.mark.parametrize(
    ("name", "several"),
    [("dog", "dogs"), ("mouse", "mice"), ("sheep", "sheep"), ("butterfly", "butterflies"), ("bus", "buses")],
)
def test_plurals(name, several):
    assert plural(name) == several
