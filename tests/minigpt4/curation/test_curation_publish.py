"""Publishing: the data set loads, contains what was accepted and edited, and its card has counts and no keys."""

import json
import os
import subprocess
import sys

import pytest
from curation import make_store
from datasets import load_dataset
from local_hub import local_hub
from PIL import Image

from minigpt4.configuration.recipe import DataSection
from minigpt4.curation.publish import check_output, is_validation, publish
from minigpt4.curation.verify import Desk
from minigpt4.processing.data.datasets import training_data
from minigpt4.processing.data.scenes import DETAIL_INSTRUCTIONS

STEPS = ("sample", "generate", "fix", "filter")


@pytest.fixture
def store(tmp_path):
    """Twelve pictures: one rejected, one edited, one not decided on."""
    with make_store(tmp_path, 12, STEPS) as store:
        desk = Desk(store)
        for i, row in enumerate(list(store.pending("verify"))[:11]):
            decision = {0: "reject", 1: "edit"}.get(i, "accept")
            desk.decide("ann", row["picture"], decision, "Edited *by* <b>hand</b>." if i == 1 else "")
        yield store


def test_the_data_set_has_the_accepted_pairs_split_by_picture(store, tmp_path):
    report = publish(store, tmp_path / "set", validation=0.4)
    splits = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert report.done == 10 == sum(len(split) for split in splits.values()) and set(splits) == {"train", "validation"}
    rows = {row["picture"]: (name, row) for name, split in splits.items() for row in split}
    decided = {row["picture"]: row["text"] for row in store.rows("SELECT * FROM decisions WHERE decision != 'reject'")}
    assert {picture: row["text"] for picture, (_, row) in rows.items()} == decided
    assert "Edited *by* <b>hand</b>." in decided.values()
    for picture, (name, row) in rows.items():
        assert (name == "validation") == is_validation(picture, 0.4)
        path = store.value("SELECT path FROM pictures WHERE picture = ?", picture)
        assert row["image"].tobytes() == Image.open(path).tobytes()


@pytest.mark.parametrize("layout", ["datasets", "cc_sbu_align"])
def test_stage_2_trains_from_it_by_its_folder_with_one_of_the_papers_instructions(store, tmp_path, layout):
    report = publish(store, tmp_path / "set", layout, validation=0.4)
    data = training_data(DataSection(path=str(tmp_path / "set")), stage=2)
    assert {item["text"] for item in data.texts} <= {row["text"] for row in store.rows("SELECT text FROM decisions")}
    assert {item["instruction"] for item in data.texts} <= set(DETAIL_INSTRUCTIONS)
    assert len({item["text"] for item in data.texts}) == report.counts["for train"]
    assert data[0]["image"].size == (32, 24)


def test_the_card_counts_every_step_and_shows_models_and_samples_as_they_are(store, tmp_path):
    publish(store, tmp_path / "set", license="cc-by-4.0", credit="Pictures: nobody's.")
    card = (tmp_path / "set" / "README.md").read_text("utf-8")
    for line in (
        "license: cc-by-4.0",
        "Pictures: nobody's.",
        "| pictures drawn | 12 |",
        "| accepted | 9 |",
        "| accepted with an edited text | 1 |",
        "| rejected in verification | 1 |",
        "| published | 10 |",
        "    model: tiny",
        "    published: Edited *by* <b>hand</b>.",
    ):
        assert line in card, card
    assert "5,000 described, about 3,500 kept" in card and "ann" not in card and str(tmp_path) not in card


def test_the_originals_layout(store, tmp_path):
    assert publish(store, tmp_path / "align", "cc_sbu_align").done == 10
    annotations = json.loads((tmp_path / "align" / "filter_cap.json").read_text())["annotations"]
    assert [a["image_id"] for a in annotations] == [str(i) for i in range(10)]
    decided = store.rows("SELECT text FROM decisions WHERE decision != 'reject' ORDER BY picture")
    assert [a["caption"] for a in annotations] == [row["text"] for row in decided]
    for annotation in annotations:
        with Image.open(tmp_path / "align" / "image" / f"{annotation['image_id']}.jpg") as image:
            assert image.format == "JPEG" and image.size == (32, 24)


def test_a_vanished_picture_is_left_out_and_an_earlier_publication_replaced_as_a_whole(store, tmp_path, capsys):
    publish(store, tmp_path / "set")
    (tmp_path / "set" / "data" / "left-over.parquet").write_bytes(b"x")
    path = store.value("SELECT path FROM decisions JOIN pictures USING (picture) WHERE decision = 'accept'")
    store.place(path).unlink()
    report = publish(store, tmp_path / "set")
    assert (report.done, report.failures) == (9, 1) and "the picture is gone" in capsys.readouterr().err
    assert not (tmp_path / "set" / "data" / "left-over.parquet").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_other_folders_are_not_touched(store, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="has files that are not from an earlier publication"):
        publish(store, tmp_path / "home")
    with pytest.raises(ValueError, match="is a file"):
        check_output(tmp_path / "home" / "thesis.txt")
    with store.transaction() as execute:
        execute("DELETE FROM decisions")
    with pytest.raises(ValueError, match="no picture was accepted yet"):
        publish(store, tmp_path / "set")


@pytest.mark.slow
def test_what_is_pushed_is_a_data_set_of_the_hub(store, tmp_path):
    publish(store, tmp_path / "set", validation=0.4)
    code = "import sys; from minigpt4.curation.publish import push; push(sys.argv[1], 'tester/curated', True)"
    with local_hub() as hub:
        environment = {**os.environ, **hub.environment}  # read when huggingface_hub is imported, so in another process
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "set")], env=environment, check=True, capture_output=True)
        [commit] = hub.commits
        assert hub.private["tester/curated"]
    for path, data in commit["files"].items():
        (tmp_path / "fetched" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fetched" / path).write_bytes(data)
    fetched, local = (load_dataset(str(tmp_path / name), cache_dir=str(tmp_path / "cache")) for name in ("fetched", "set"))
    assert {name: split["text"][:] for name, split in fetched.items()} == {name: s["text"][:] for name, s in local.items()}
