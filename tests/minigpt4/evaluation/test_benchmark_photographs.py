"""Suites on photographs in tar shards and COCO's instances: what is asked, what answers are worth, what is held out."""

import io
import json

import pytest
from benchmark_files import write_coco
from PIL import Image
from tars import jpeg, write_tar

from minigpt4.evaluation.suites import Options, load_suite
from minigpt4.metrics.objects import names_one
from minigpt4.metrics.statistics import measured
from minigpt4.processing.data.samples import held_out

ROWS = {
    "coco-1": {"captions": ["A dog on a couch."], "objects": ["couch", "person"], "source": "coco"},
    "coco-2": {"captions": ["A man with a kite."], "objects": ["kite", "person"], "source": "coco"},
    "coco-3": {"captions": ["A man."], "objects": ["person"], "source": "coco"},
    "shop-1": {"captions": ["A photo of a leek."], "label": "Leek", "source": "shop"},
    "shop-2": {"captions": ["A photo of Kaiser pears."], "label": "Pear, Kaiser", "source": "shop"},
    "text-1": {"captions": ["A sunset."], "detail": "A sunset.", "source": "text"},
}
RIGHT = {
    "coco-1": "A dog and a cat.",  # the cat is not there, the dog only people named
    "coco-2": "A man flies a kite.",
    "coco-3": "A man.",
    "shop-1": "Leeks.",
    "shop-2": "A pear in a shop.",
}


@pytest.fixture
def shards(tmp_path):
    """ROWS as two tar shards."""
    for shard, keys in enumerate((list(ROWS)[:2], list(ROWS)[2:])):
        samples = {key: {"jpg": jpeg(9), "txt": b"x", "json": json.dumps(ROWS[key]).encode()} for key in keys}
        write_tar(tmp_path / f"{shard}.tar", samples)
    return tmp_path


def _suite(name, *data, **options):
    return load_suite(name, Options(data=tuple(map(str, data)), **options))


def _scores(suite, said):
    figures = suite.figures({request.id: said(request) for request in suite.requests})
    return {way: {name: measured(*figure)["value"] for name, figure in of_way.items()} for way, of_way in figures.items()}


def test_objects_counts_things_but_people_and_shuffles_within_a_source(shards):
    suite = _suite("objects", shards)
    assert suite.n == 5  # a text without a list or label
    assert suite.pictures.open("coco-1").size == (30, 20) and suite.pictures.open("text-1").size == (30, 20)
    found = _scores(suite, lambda r: suite.labels.get(r.id, RIGHT[r.image]))
    assert found["coco"]["named"] == 1 and found["shop"]["named"] == 1 and found["all"]["named"] == 1
    assert found["with a list"] == found["coco"] and found["with a label"] == found["shop"]
    assert found["shop"]["named, shuffled"] == 0 and found["coco"]["named, shuffled"] == 0
    assert found["coco"]["invented"] == pytest.approx(1 / 5)  # dog, cat | person, kite | person
    assert "invented" not in found["shop"]  # a label by itself says nothing about what is absent
    assert found["all"]["accuracy"] == 1 and found["all"]["yes_ratio"] == 0.5
    people = _scores(suite, lambda r: "Yes, a man.")
    assert people["all"]["named"] == 0 and people["all"]["accuracy"] == 0.5 and people["coco"]["yes_ratio"] == 1
    assert measured(*suite.figures({r.id: "" for r in suite.requests})["coco"]["named"])["n"] == 2  # not the man


def test_objects_asks_as_much_about_what_is_there_as_about_what_is_not(shards):
    suite = _suite("objects", shards)
    asked = [request for request in suite.requests if request.id in suite.labels]
    assert [suite.labels[r.id] for r in asked].count("yes") == len(asked) / 2 == 3 * 2 + 2
    for request in asked:
        row = ROWS[request.image]
        thing = request.instruction.removeprefix("Is there ").removesuffix(" in the image?")
        assert names_one(thing, row) or "person" in thing or suite.labels[request.id] == "no"
        if suite.labels[request.id] == "no":
            assert not names_one(thing, row) and thing != "a person"
    again = _suite("objects", shards)
    assert [request.instruction for request in again.requests] == [request.instruction for request in suite.requests]
    assert suite.remark(asked[0], suite.labels[asked[0].id]) == "right"


def test_objects_of_coco_instances(tmp_path, picture):
    folder = write_coco(tmp_path, picture)
    suite = _suite("objects", folder)
    assert suite.n == 3 and suite.truth(suite.requests[0]) == "dog"
    found = _scores(suite, lambda r: {"a.png": "A puppy.", "b.png": "Two men.", "c.png": "A fork."}[r.image])
    assert found["instances"]["named"] == pytest.approx(2 / 3) and found["instances"]["invented"] == 0


def test_failures_of_photographs_in_shards(shards):
    suite = _suite("failures", shards, limit=4)
    assert suite.n == 4 and {request.max_new_tokens for request in suite.requests} == {300}
    suite = _suite("failures", shards)
    said = {"coco-1": "A dog with a dog with a dog with a dog with a dog.", "coco-2": "A man and a"}
    found = _scores(suite, lambda r: said.get(r.image, "It is a leek."))["descriptions"]
    assert found["failures"] == pytest.approx(2 / 6) and found["repetition"] == found["fragment"] == pytest.approx(1 / 6)
    assert found["words_median"] == 4 and found["words"] == pytest.approx((14 + 4 + 4 * 4) / 6)
    assert found["named"] == 1 / 2 and found["invented"] == 0  # of coco-1, coco-2, shop-1, shop-2


def test_only_what_was_held_out_is_asked_about(shards, tmp_path, picture):
    kept_out = {key for key in ROWS if held_out(key, 0.5)} - {"text-1"}
    assert 0 < len(kept_out) < 5
    suite = _suite("objects", shards, holdout_share=0.5)
    assert {request.image for request in suite.requests} == kept_out and "0.5 held out" in suite.data
    with pytest.raises(ValueError, match=r"--holdout-share uses the keys of tar shards"):
        _suite("captions", write_coco(tmp_path / "coco", picture) / "captions.json", holdout_share=0.1)
    with pytest.raises(ValueError, match=r"--holdout-share is 1"):
        _suite("objects", shards, holdout_share=1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": {"txt": b"x"}}, "a cannot be used \\(no picture\\)"),
        ({"a": {"jpg": b"x", "json": b"{"}}, "a cannot be used \\(damaged .json or .txt\\)"),
        ({"a": {"jpg": b"x", "txt": b"x"}}, "no image has a list of things"),
        ({"a": {"jpg": b"x", "json": b'{"objects": [3], "label": 4}'}}, "no image has a list of things"),
    ],
)
def test_shards_that_cannot_be_measured_on(tmp_path, files, message):
    write_tar(tmp_path / "0.tar", files)
    with pytest.raises(ValueError, match=message):
        _suite("objects", tmp_path / "0.tar")


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    write_tar(tmp_path / "0.tar", {"a": {"jpg": b"x", "json": b'{"label": "cat"}'}})
    with pytest.raises(ValueError, match=r"0.tar: a: "):
        _suite("objects", tmp_path).pictures.open("a")


def test_keys_that_come_twice_and_other_files_beside_shards(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    for shard in ("0.tar", "1.tar"):
        write_tar(tmp_path / shard, {"a": {"png": buffer.getvalue(), "json": b'{"label": "cat"}'}})
    with pytest.raises(ValueError, match=r"1.tar: key 'a' appears twice"):
        _suite("objects", tmp_path)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x.json: given with tar shards"):
        _suite("objects", tmp_path / "0.tar", tmp_path / "x.json")
