"""Training data: webdataset shards and scenes become the collator's examples."""

import io
import json
import random
import tarfile
from collections import Counter
from itertools import islice

import pytest
import torch
from tars import jpeg, write_tar

from minigpt4 import MiniGPT4ImageProcessor
from minigpt4.configuration.recipe import DataSection, SourceSection
from minigpt4.processing.data.datasets import (
    SHORT_INSTRUCTIONS,
    PictureTexts,
    crop_size,
    joined_answer,
    random_view,
    read_pictures,
    training_data,
)
from minigpt4.processing.data.samples import held_out
from minigpt4.processing.data.scenes import DETAIL_INSTRUCTIONS
from minigpt4.processing.data.streams import training_stream
from minigpt4.processing.image_processing_minigpt4 import load_image


@pytest.fixture
def shards(tmp_path, picture):
    """Two shards of three pictures with two captions each, as img2dataset writes them."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:04}.tar", "w") as tar:
            for key in range(3):
                buffer = io.BytesIO()
                picture(10 * shard + key).save(buffer, "JPEG")
                captions = [f"A dog ({shard}) number {key} .", "Two dogs!"]
                members = {
                    "jpg": buffer.getvalue(),
                    "txt": captions[0].encode(),
                    "json": json.dumps({"captions": captions}).encode(),
                }
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"{shard}{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return tmp_path


def test_stage1_has_every_caption_cleaned(shards):
    data = training_data(DataSection(path=str(shards)), stage=1)
    assert len(data) == 12 and len(data.pictures) == 6
    assert data[0]["text"] == "a dog 0 number 0" and data[1]["text"] == "two dogs"
    assert data[0]["image"].size == (30, 20)


def test_stage2_has_detailed_and_short_answers_and_plain_captions(shards):
    section = DataSection(path=str(shards / "0000.tar"), detailed_answers=2, short_answers=3, plain_captions=1)
    texts = training_data(section, stage=2).texts
    assert len(texts) == 3 * (2 + 3 + 1)
    detailed = [text for text in texts if text.get("instruction") in DETAIL_INSTRUCTIONS]
    short = [text for text in texts if text.get("instruction") in SHORT_INSTRUCTIONS]
    plain = [text for text in texts if "instruction" not in text]
    assert (len(detailed), len(short), len(plain)) == (6, 9, 3)
    assert detailed[0]["text"] in ("A dog (0) number 0. Two dogs!", "Two dogs! A dog (0) number 0.")
    assert short[0]["text"] in ("A dog (0) number 0.", "Two dogs!")
    assert plain[0]["text"] in ("a dog 0 number 0", "two dogs")


def test_scenes_are_never_mirrored():
    with pytest.raises(ValueError, match=r"a cropped scene no longer matches its text"):
        training_data(DataSection(views=2, scenes=3), stage=1)


def test_an_answer_joins_the_captions_that_add_most():
    captions = ["a dog runs .", "a dog", "a brown hound on wet grass", "the dog"]
    for seed in range(5):
        answer = joined_answer(captions, random.Random(seed), 2)
        assert len(answer.split(". ")) == 2 and answer.endswith(".") and answer[0].isupper()
        assert "A brown hound on wet grass." in answer


def test_features_take_the_place_of_pictures_and_views_vary():
    features = torch.arange(2 * 3).float().reshape(2, 3, 1, 1)
    data = PictureTexts([None, None], [{"picture": 1, "text": "x"}], features)
    drawn = []
    for epoch in range(50):
        data.set_epoch(epoch)
        assert data[0]["vision_features"] == data[0]["vision_features"]
        drawn.append(data[0]["vision_features"].item())
    assert set(drawn) == {3.0, 4.0, 5.0}
    assert "image" not in data[0]


def test_dropped_features_are_zero_and_the_rest_scaled_up():
    data = PictureTexts([None], [{"picture": 0, "text": "x"}], torch.ones(1, 1, 100, 100), feature_dropout=0.2)
    values, counts = data[0]["vision_features"].unique(return_counts=True)
    assert values.tolist() == [0, 1.25] and abs(counts[0] / 10_000 - 0.2) < 0.02


def test_random_views_keep_area_and_shape_within_bounds(picture):
    torch.manual_seed(0)
    source = picture(size=(200, 300))
    for _ in range(50):
        view = random_view(source)
        assert 0.45 <= view.width * view.height / (200 * 300) <= 1
        assert 0.7 <= view.width / view.height <= 1.4


@pytest.mark.parametrize("name", ["a_75x50", "b_40x90", "c_gray_30x30"])
def test_random_view_is_the_originals_crop(name, parity, parity_dir):
    """The training transform at the same seed, to the pixel: crop, then bicubic to a square."""
    expected = parity("out_image_processors_v1.pth")[f"{name}/train_seed123"]
    torch.manual_seed(123)
    view = random_view(load_image(parity_dir / "images" / f"{name}.png"))
    pixel_values = MiniGPT4ImageProcessor(size={"height": 56, "width": 56})(view, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values[0], expected, rtol=0, atol=1e-6)


def test_own_pictures_may_be_held_out_and_have_several_rows(tmp_path, picture):
    for name in range(6):
        picture(name).save(tmp_path / f"{name}.png")
    lines = [f"{name}.png,Text {row} of {name}\n" for name in range(6) for row in range(2)]
    (tmp_path / "captions.csv").write_text("file_name,caption\n" + "".join(lines) + "7.png,missing\n")
    section = DataSection(path=str(tmp_path), held_out=2, max_dropped_share=0.1)
    data = training_data(section, stage=1)
    assert len(data.pictures) == 6 and len(data) == 8
    shown = {text["text"] for row in data.held_out for text in row["texts"]}
    assert len(data.held_out) == 2 and len(shown) == 4 and data.held_out[0]["image"].size == (30, 20)
    assert not shown & {data[i]["text"] for i in range(len(data))}
    assert data.dropped.by_kind == {"missing picture": 1}
    with pytest.raises(ValueError, match=r"1 of 13 samples cannot be used: 1 x missing picture \(.*7.png\); more than"):
        training_data(DataSection(path=str(tmp_path)), stage=1)
    with pytest.raises(ValueError, match="none is left"):
        training_data(DataSection(path=str(tmp_path), held_out=6, max_dropped_share=1), stage=1)


def test_single_captions_of_stage_2_stay_as_they_are(tmp_path, picture):
    (tmp_path / "image").mkdir()
    picture().save(tmp_path / "image" / "2.jpg")
    caption = "The image shows a dog, \n maybe two.  It is (very) calm"
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": [{"image_id": "2", "caption": caption}]}))
    data = training_data(DataSection(path=str(tmp_path), detailed_answers=3), stage=2)
    assert [text["text"] for text in data.texts] == [caption] * 3
    assert {text["instruction"] for text in data.texts} <= set(DETAIL_INSTRUCTIONS)


def test_several_sources_are_mixed_by_weight(tmp_path):
    for name, n in (("many", 8), ("few", 2)):
        samples = {f"{name}{i}": {"jpg": jpeg(10 * i + n), "txt": f"{name} {i}".encode()} for i in range(n)}
        write_tar(tmp_path / name / "0.tar", samples)
    sources = [SourceSection(path=str(tmp_path / name), weight=weight) for name, weight in (("many", 1), ("few", 3))]
    data = training_data(DataSection(sources=sources), stage=1)
    counts = Counter(text["text"].split()[0] for text in data.texts)
    assert len(data) == 10 and counts == {"many": 2, "few": 8} and data.dropped.used == 10
    for i, text in enumerate(data.texts):  # pictures are numbered consecutively
        name, number = text["text"].split()
        assert data[i]["image"].getpixel((5, 5))[0] == pytest.approx(10 * int(number) + {"many": 8, "few": 2}[name], abs=2)
    with pytest.raises(ValueError, match="weight above 0"):
        training_data(DataSection(sources=[sources[0], SourceSection(path=sources[1].path, weight=0)]), stage=1)
    with pytest.raises(ValueError, match="both set"):
        training_data(DataSection(path="x", sources=sources), stage=1)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_share_of_the_keys_is_held_out_the_same_everywhere(tmp_path, streaming):
    samples = {f"key{i:03}": {"jpg": jpeg(i), "txt": b"text %d" % i} for i in range(60)}
    write_tar(tmp_path / "0.tar", {key: samples[key] for key in list(samples)[:30]})
    write_tar(tmp_path / "1.tar", {key: samples[key] for key in list(samples)[30:]})
    kept_out = {f"text {i}" for i in range(60) if held_out(f"key{i:03}", 0.2)}
    assert 4 <= len(kept_out) <= 20
    section = DataSection(path=str(tmp_path), holdout_share=0.2)
    assert {found.captions[0] for [found] in read_pictures(section, only_held_out=True).contents} == kept_out
    if streaming:
        learned = Counter(item["text"] for item in islice(training_stream(section, 1), 2 * (60 - len(kept_out))))
    else:
        data = training_data(section, stage=1)
        learned = Counter(data[i]["text"] for i in range(len(data)) for _ in range(2))
        assert data[5]["image"].getpixel((5, 5))[0] == pytest.approx(int(data[5]["text"].split()[1]), abs=2)
    assert learned == {f"text {i}": 2 for i in range(60) if f"text {i}" not in kept_out}


def test_holding_out_needs_keys_and_a_share(tmp_path, picture):
    picture().save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("file_name,caption\na.png,a dog\n")
    with pytest.raises(ValueError, match=r"uses the keys of tar shards"):
        training_data(DataSection(path=str(tmp_path), holdout_share=0.1), stage=1)
    with pytest.raises(ValueError, match=r"holdout_share is 1; expected a share from 0 to below 1"):
        training_data(DataSection(path=str(tmp_path), holdout_share=1), stage=1)


def test_what_is_known_of_a_picture_becomes_captions_questions_and_conversations(tmp_path):
    """Shards whose .json has lists, labels and descriptions; a class number is no label."""
    rows = {
        "a": {
            "captions": ["A photo of a cat and a bench."],
            "objects": ["cat", "bench"],
            "made": "from a list",
            "source": "x",
        },
        "b": {"captions": ["A photo of a fox."], "label": "red fox", "source": "y"},
        "c": {"captions": ["A photo of an owl."], "label": "owl", "source": "y"},
        "d": {"captions": ["The image shows a tree."], "detail": "The image shows a tree. It is green."},
        "e": {"captions": ["A dog runs .", "a dog"], "label": 3, "objects": [7]},
    }
    samples = {k: {"jpg": jpeg(10 * i), "json": json.dumps(row).encode()} for i, (k, row) in enumerate(rows.items())}
    write_tar(tmp_path / "0.tar", samples)

    def texts(stage=2, **options):
        data = training_data(DataSection(path=str(tmp_path), **options), stage)
        of = [[text for text in data.texts if text["picture"] == i] for i in range(len(rows))]
        return dict(zip(rows, of, strict=True))

    plain = texts(stage=1, varied_captions=3)
    assert [len(plain[key]) for key in rows] == [3, 3, 3, 1, 2] and plain["e"][0]["text"] == "a dog runs"
    assert {"a fox", "an image of a fox"} < {text["text"] for text in texts(stage=1, varied_captions=9)["b"]}
    detailed = texts(detailed_answers=2)
    assert [len(detailed[key]) for key in rows] == [0, 0, 0, 2, 2]  # not of a label or a list
    assert {text["text"] for text in detailed["d"]} == {"The image shows a tree. It is green."}
    assert not texts(detailed_answers=2, joined_captions=0, plain_captions=1)["e"][1:]
    asked = texts(detailed_answers=0, questions=9, conversations=1.0)
    answers = [[text["text"] for text in asked[key] if "text" in text] for key in rows]
    assert sum(text.startswith("Yes") for of in answers for text in of) == sum(
        text.startswith("No") for of in answers for text in of
    )
    assert "messages" in asked["a"][-1] and sum("messages" in text for of in asked.values() for text in of) >= 3
    with pytest.raises(ValueError, match=r"set data.streaming=false"):
        training_stream(DataSection(path=str(tmp_path), questions=1), stage=2)


def test_data_without_a_text_or_a_stream_that_is_none(tmp_path, shards):
    with pytest.raises(ValueError, match="are all 0"):
        training_data(DataSection(path=str(shards), detailed_answers=0), stage=2)


def test_a_crop_of_a_picture_that_was_scaled_down_keeps_the_models_size(picture):
    torch.manual_seed(0)
    assert crop_size(224) == 366
    source = picture(size=(366, 366))
    assert min(min(random_view(source).size) for _ in range(300)) >= 224


def test_an_instruction_is_drawn_for_each_use(picture):
    texts = [{"picture": 0, "instruction": "a", "instructions": ["a", "b", "c"], "text": "t"}] * 3
    data = PictureTexts([{"image": picture()}], texts)
    used = []
    for epoch in range(20):
        data.set_epoch(epoch)
        used.append([data[i]["instruction"] for i in range(3)])
        assert used[-1] == [data[i]["instruction"] for i in range(3)]  # what a resumed run draws
    assert {asked for epoch in used for asked in epoch} == {"a", "b", "c"} and len({tuple(epoch) for epoch in used}) > 10
    assert set(data[0]) == {"instruction", "text", "image"}
