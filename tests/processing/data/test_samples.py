"""Samples: what is wrong with one is said in the same words each time, and counted."""

import io

import pytest
from PIL import Image
from tars import jpeg

from minigpt4.configuration.recipe import SourceSection
from minigpt4.processing.data import samples
from minigpt4.processing.data.samples import BrokenSample, DroppedSamples, Sample, clean_caption, content, decode

PICTURE = jpeg(100)


def _content(root=None, section=None, **fields):
    return content(Sample("s", "k", 0, fields, (1, 1)), section or SourceSection(), root)


def test_captions_are_cleaned_as_in_the_original(parity):
    for case in parity("caption_processor_cases.json"):
        assert clean_caption(case["in"]) == case["out"]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"text": "x"}, "no picture"),
        ({"image": {"bytes": None, "path": None}, "text": "x"}, "no picture"),
        ({"image": 3, "text": "x"}, "picture of the wrong type"),
        ({"image": "a.jpg", "text": "x"}, "picture of the wrong type"),
        ({"image": PICTURE}, "no text"),
        ({"image": PICTURE, "text": None}, "no text"),
        ({"image": PICTURE, "text": 7}, "text of the wrong type"),
        ({"image": PICTURE, "captions": ["a", None]}, "text of the wrong type"),
        ({"image": PICTURE, "text": " \n"}, "empty text"),
        ({"image": PICTURE, "text": '"..."'}, "empty text"),
        ({"image": PICTURE, "captions": []}, "empty text"),
        ({"images": [PICTURE, PICTURE], "text": "x"}, "several pictures for one text"),
        ({"images": [PICTURE], "messages": "hello"}, "messages of the wrong type"),
        ({"images": [PICTURE], "messages": [{"role": "user", "content": "hello"}]}, "no text"),
    ],
)
def test_each_kind_of_damage_has_its_words(fields, kind):
    with pytest.raises(BrokenSample, match=f"^{kind}$"):
        _content(**fields)


def test_pictures_that_cannot_be_decoded(monkeypatch):
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noise, "JPEG")
    for data, kind in [
        (b"", "empty picture"),
        (b"GIF is what this is not", "not a picture"),
        (noise.getvalue()[:-300], "damaged or truncated picture"),
    ]:
        with pytest.raises(BrokenSample, match=f"^{kind}$"):
            decode(data, smallest=8)
    monkeypatch.setattr("minigpt4.processing.image_processing_minigpt4.MAX_PIXELS", 100)
    with pytest.raises(BrokenSample, match=r"^picture of too many pixels$"):
        decode(PICTURE, smallest=8)


def test_files_beyond_the_limit_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    assert _content(str(tmp_path), image="a.jpg", text="x").pictures == [PICTURE]
    monkeypatch.setattr(samples, "MAX_BYTES", 100)
    with pytest.raises(BrokenSample, match=r"^file over"):
        _content(str(tmp_path), image="a.jpg", text="x")


def test_columns_are_those_that_are_named():
    section = SourceSection(image_column="b", text_column="title", instruction_column="q")
    found = _content(section=section, image=b"1", b=b"2", text="x", title="y", q="Why?")
    assert (found.pictures, found.captions, found.instruction) == ([b"2"], ["y"], "Why?")
    with pytest.raises(BrokenSample, match="empty text"):
        _content(section=section, b=b"2", title="y", q=" ")


def test_conversations_get_places_for_their_pictures():
    plain = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    found = _content(images=[{"bytes": PICTURE, "path": None}], messages=plain)
    assert found.pictures == [PICTURE]
    assert found.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "What?"}]
    # As arrow returns parts: each one has all the fields.
    parts = [{"type": "text", "text": "What?"}, {"type": "image", "text": None}]
    asked = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]
    assert _content(images=[PICTURE], messages=asked).messages[0]["content"] == [parts[0], {"type": "image"}]
    with pytest.raises(BrokenSample, match="more or fewer places than pictures"):
        _content(images=[PICTURE] * 2, messages=asked)


def test_the_tally_counts_by_kind_and_shard_and_stops_above_the_share():
    tally = DroppedSamples(max_share=0.01)
    tally.add(4, [{"kind": "no text", "shard": "a.tar", "key": str(i)} for i in range(10)])
    tally.check()  # 10 of 14, but of the first thousand no more than its share
    tally.add(0, [{"kind": "no picture", "shard": "b.tar", "key": "x"}])
    with pytest.raises(ValueError, match=r"^11 of 15 samples cannot be used: 10 x no text, 1 x no picture \(a.tar:0,"):
        tally.check()
    again = DroppedSamples(max_share=0.01)
    again.load_state_dict(tally.state_dict())
    again.add(1085, [])
    again.check()  # 11 of 1100
    assert again.state_dict()["by_shard"] == {"a.tar": 10, "b.tar": 1} and again.used == 1089
    assert len(again.state_dict()["samples"]) == 11
    small = DroppedSamples(max_share=0.5, at_least=1)
    small.add(1, [{"kind": "no text", "shard": "a", "key": "1"}])
    small.check()
    small.add(0, [{"kind": "no text", "shard": "a", "key": "2"}])
    with pytest.raises(ValueError, match=r"max_dropped_share=0.5"):
        small.check()


def test_llavas_conversations_are_read_like_messages():
    """`from` and `value`; "<image>" and the line break next to it mark an image's place."""
    turns = [("human", "<image>\nWhat is it?"), ("gpt", "A cat."), ("human", "Is it\nred?"), ("gpt", "No.")]
    fields = {"image": b"picture", "conversations": [{"from": who, "value": text} for who, text in turns]}
    found = content(Sample("shard", "1", 0, fields, ()), SourceSection())
    assert found.messages == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": [{"type": "text", "text": "Is it\nred?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
    ]
    behind = {
        "image": b"picture",
        "conversations": [{"from": "human", "value": "What?\n<image>"}, fields["conversations"][1]],
    }
    found = content(Sample("shard", "1", 0, behind, ()), SourceSection())
    assert found.messages[0]["content"] == [{"type": "text", "text": "What?"}, {"type": "image"}]


@pytest.mark.parametrize("turns", [3, [{"from": "someone", "value": "a"}], [{"from": "gpt"}], [{"from": "gpt", "value": 3}]])
def test_conversations_of_another_form_are_broken(turns):
    with pytest.raises(BrokenSample, match="conversations of the wrong type"):
        content(Sample("shard", "1", 0, {"image": b"picture", "conversations": turns}, ()), SourceSection())
