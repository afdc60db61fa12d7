"""Streams: endless, each sample once per pass, and after a resume as if there had been no stop."""

import json
import pickle
import random
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice, takewhile

import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from tars import jpeg, write_tar
from torchdata.stateful_dataloader import StatefulDataLoader

from minigpt4.configuration.recipe import DataSection, SourceSection
from minigpt4.processing.data import streams
from minigpt4.processing.data.samples import DroppedSamples
from minigpt4.processing.data.scenes import DETAIL_INSTRUCTIONS
from minigpt4.processing.data.streams import StreamError, training_stream


def _section(path="", **options):
    return DataSection(**{"path": str(path), "streaming": True, "shuffle_buffer": 7, **options})


def _seen(items):
    """What must be the same again: names, texts, and the pixels of the crops."""
    return [(item["key"], item["pass"], item["text"], item["image"].tobytes(), item["dropped"]) for item in items]


@pytest.fixture
def mixture(shards, tmp_path):
    """Three sources of different kinds, one with a broken picture in it."""
    tars = shards(5, 6)
    damaged = {"x": {"jpg": jpeg(1)[:-200], "txt": b"cut"}, "y": {"jpg": jpeg(2), "txt": b"whole"}}
    write_tar(tars / "damaged.tar", damaged)
    features = Features({"image": ImageFeature(), "caption": Value("string")})
    for part in range(2):
        images = [{"bytes": jpeg(i), "path": None} for i in range(9)]
        captions = [f"parquet {part} {i}" for i in range(9)]
        table = Dataset.from_dict({"image": images, "caption": captions}, features=features)
        (tmp_path / "parquet").mkdir(exist_ok=True)
        table.to_parquet(str(tmp_path / "parquet" / f"{part}.parquet"))
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.jpg").write_bytes(jpeg(i * 20, (60, 50)))
    rows = [{"file_name": f"{i}.jpg", "text": f"row {i}"} for i in range(5)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {tars: 3.0, tmp_path / "parquet": 2.0, folder: 1.0}
    sources = [SourceSection(path=str(path), weight=weight) for path, weight in paths.items()]
    return _section(sources=sources, random_crop=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_exactly(mixture, workers):
    def loader(state=None):
        torch.manual_seed(random.randrange(1000))  # nothing is drawn from the global generators
        stream = training_stream(mixture, stage=2, seed=1, rank=1, world_size=2)
        loader = StatefulDataLoader(stream, batch_size=3, num_workers=workers, collate_fn=_seen)
        if state is not None:
            loader.load_state_dict(json.loads(state))
        return loader

    whole = loader()
    batches, states = [], []
    for batch in islice(whole, 45):
        batches.append(batch)
        states.append(json.dumps(whole.state_dict()))
    assert max(map(len, states)) < 2000
    assert len({item[1] for batch in batches for item in batch}) > 3  # passes
    cuts = [0, 3, 4, *random.Random(workers).sample(range(5, 40), 1 if workers else 8)]
    for cut in cuts[-2:] if workers else cuts:
        rest = list(islice(loader(states[cut]), 44 - cut))
        assert rest == batches[cut + 1 :], f"after batch {cut}"


def test_a_resume_decodes_nothing_that_was_given_out(shards, monkeypatch):
    section = _section(shards(2, 20), shuffle_buffer=16)
    stream = iter(training_stream(section, 1))
    loaded = training_stream(section, 1)
    items = iter(loaded)
    list(islice(items, 13))
    decoded = []
    monkeypatch.setattr(streams, "decode", lambda data, smallest: decoded.append(data) or plain(data, smallest))
    plain = __import__("minigpt4.processing.data.samples", fromlist=["decode"]).decode
    resumed = training_stream(section, 1)
    resumed.load_state_dict(loaded.state_dict())
    assert _seen(islice(resumed, 9)) == _seen(list(islice(stream, 22))[13:])
    assert len(decoded) == 9 + 22


@pytest.mark.parametrize(("n", "samples", "world", "workers"), [(7, 3, 2, 1), (2, 9, 3, 2), (1, 3, 2, 2), (4, 2, 2, 2)])
def test_units_share_every_pass_without_overlap(n, samples, world, workers, shards, monkeypatch):
    section = _section(shards(n, samples))
    taken = []
    for rank in range(world):
        for worker in range(workers):
            info = type("Info", (), {"id": worker, "num_workers": workers})
            monkeypatch.setattr(streams, "get_worker_info", lambda info=info: info)
            items = training_stream(section, 1, seed=5, rank=rank, world_size=world)
            taken.append([(item["pass"], item["key"]) for item in takewhile(lambda item: item["pass"] < 3, items)])
    units = world * workers
    every = Counter(sample for unit in taken for sample in unit)
    assert len(every) == 3 * n * samples and set(every.values()) == {1}
    for number in range(3):
        shares = [sum(sample[0] == number for sample in unit) for unit in taken]
        assert max(shares) - min(shares) <= max(1, n % units)


def _go_on(section, world, states, deal, rng):
    """What that many units take, each some samples; their states as JSON keeps them, and how samples are dealt."""
    taken, after = [], []
    for rank in range(world):
        stream = training_stream(section, 1, seed=5, rank=rank, world_size=world)
        if states:
            stream.redeal(states, deal)
        taken += [(item["pass"], item["key"]) for item in islice(stream, rng.randrange(12))]
        after.append(json.loads(json.dumps(stream.state_dict())))
    return taken, after, stream.deal


@pytest.mark.parametrize("holdout_share", [0.0, 0.2])
@pytest.mark.parametrize("buffer", [1, 7, 100])
def test_other_numbers_of_units_take_over_without_loss_or_repeats(buffer, holdout_share, shards):
    section = _section(shards(5, 7), shuffle_buffer=buffer, holdout_share=holdout_share)
    source = training_stream(section, 1).sources[0]
    in_a_pass = sum(1 for shard in range(5) for _ in source.read(shard))
    rng, passes = random.Random(buffer), set()
    for _ in range(6):
        seen, states, deal = [], None, None
        for _ in range(rng.randrange(2, 8)):
            taken, states, deal = _go_on(section, rng.choice([1, 2, 3, 5]), states, deal, rng)
            seen += taken
        rest = training_stream(section, 1, seed=5)
        rest.redeal(states, deal)
        last = rest.deal["sources"][0]["number"]
        seen += [(item["pass"], item["key"]) for item in takewhile(lambda item, last=last: item["pass"] <= last, rest)]
        every = Counter(seen)
        assert set(every.values()) == {1} and len(every) == (last + 1) * in_a_pass
        passes.add(last)
    assert max(passes) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_after_a_redeal_a_stream_resumes_exactly(mixture, workers):
    states = []
    for rank in range(3):
        stream = training_stream(mixture, stage=2, seed=1, rank=rank, world_size=3)
        list(islice(stream, 10 + rank))
        states.append(stream.state_dict())

    def loader(state=None):
        stream = training_stream(mixture, stage=2, seed=1, rank=1, world_size=2)
        stream.redeal(states)
        loader = StatefulDataLoader(stream, batch_size=3, num_workers=workers, collate_fn=_seen)
        if state is not None:
            loader.load_state_dict(json.loads(state))
        return loader

    whole, batches, saved = loader(), [], []
    for batch in islice(whole, 15):
        batches.append(batch)
        saved.append(json.dumps(whole.state_dict()))
    assert list(islice(loader(saved[5]), 9)) == batches[6:]


def test_a_redeal_wants_every_unit(shards):
    section = _section(shards(2, 2))
    stream = training_stream(section, 1, rank=1, world_size=3)
    next(iter(stream))
    other = training_stream(section, 1)
    with pytest.raises(ValueError, match=r"has the places of units \[1\] .* in 1 sources; expected all of 3 in 1"):
        other.redeal([stream.state_dict()])


def test_passes_are_whole_and_shuffled_anew_by_the_seed(shards):
    section = _section(shards(3, 6))
    items = [item["text"] for item in islice(training_stream(section, 1, seed=1), 36)]
    assert sorted(items[:18]) == sorted(items[18:]) and len(set(items[:18])) == 18
    assert items[:18] != items[18:] and items[:18] != sorted(items[:18])
    assert items == [item["text"] for item in islice(training_stream(section, 1, seed=1), 36)]
    assert items != [item["text"] for item in islice(training_stream(section, 1, seed=2), 36)]
    assert items[0].startswith("colour ")  # cleaned
    # The shards come in another order, too: visible where no buffer mixes them.
    unmixed = islice(training_stream(replace(section, shuffle_buffer=1), 1, seed=1), 6 * 18)
    orders = [tuple(dict.fromkeys(item["key"].split(":")[0] for item in islice(unmixed, 18))) for _ in range(6)]
    assert len(set(orders)) > 1


def test_what_is_shown_while_training_is_not_trained_on(shards):
    section = _section(shards(3, 4), held_out=3)
    stream = training_stream(section, 2, rank=1, world_size=2)
    other = training_stream(section, 2, rank=0, world_size=2)
    assert len(stream.held_out) == 3 and [row["texts"] for row in stream.held_out] == [
        row["texts"] for row in other.held_out
    ]
    keys = {item["key"] for part in (stream, other) for item in islice(part, 40)}
    assert len(keys) == 3 * 4 - 3
    assert not keys & {f"{stream.sources[0].shards[0]}:{number:09}" for number in range(3)}
    one = training_stream(_section(shards(1, 2, "few"), held_out=2), 1)
    with pytest.raises(StreamError, match="held_out keep every sample out of training"):
        next(iter(one))


def test_sources_are_drawn_by_weight(shards):
    sources = [
        SourceSection(path=str(shards(2, 4, "laion")), weight=115),
        SourceSection(path=str(shards(2, 4, "cc")), weight=14),
    ]
    items = islice(training_stream(_section(sources=sources), 1), 2000)
    share = sum("/cc/" in item["key"] for item in items) / 2000
    assert abs(share - 14 / 129) < 3 * (14 * 115 / 129**2 / 2000) ** 0.5


def test_broken_samples_are_skipped_and_counted(tmp_path):
    good = {"jpg": jpeg(9), "txt": b"fine"}
    broken = [{"jpg": jpeg(9)[:-200], "txt": b"x"}, {"jpg": jpeg(9), "txt": b" "}, {"txt": b"x"}, {"jpg": jpeg(9)}]
    broken += [{"jpg": b"text", "txt": b"x"}, {"jpg": jpeg(9), "txt": b"\xff\xfe"}, {**good, "json": b"{"}]
    write_tar(tmp_path / "0.tar", {f"g{i}": good for i in range(4)} | {f"b{i}": members for i, members in enumerate(broken)})
    cut = write_tar(tmp_path / "1.tar", {f"c{i}": good for i in range(2)})
    with tarfile.open(cut) as tar:
        end = tar.getmember("c1.jpg").offset_data
    cut.write_bytes(cut.read_bytes()[: end + 100])
    tally = DroppedSamples()
    for item in islice(training_stream(_section(tmp_path, shuffle_buffer=100), 1), 10 + 1):  # two passes of five, and one
        tally.add(1, item["dropped"])
    kinds = {"damaged or truncated picture", "empty text", "no picture", "no text", "not a picture", "damaged .json or .txt"}
    assert set(tally.by_kind) == kinds | {"tar file cut short"}
    assert tally.by_kind["damaged .json or .txt"] >= 4
    names = {(entry["shard"][-5:], entry["key"]) for entry in tally.samples}
    assert names == {("0.tar", f"b{i}") for i in range(7)} | {("1.tar", "c1")}


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_are_broken_throughout_stop_in_one_line(tmp_path, workers):
    write_tar(tmp_path / "0.tar", {"a": {"jpg": b"x", "txt": b"text"}})
    loader = StatefulDataLoader(training_stream(_section(tmp_path), 1), batch_size=1, num_workers=workers)
    with pytest.raises(StreamError, match=r"^1000 of 1000 samples cannot be used: 1000 x not a picture \([^\n]*$"):
        next(iter(loader))


def test_stage_2_draws_an_instruction_for_each_sample_or_takes_the_datas_own(tmp_path, shards):
    items = list(islice(training_stream(_section(shards(2, 10)), 2), 60))
    assert {item["instruction"] for item in items} == set(DETAIL_INSTRUCTIONS)
    assert items[0]["text"].startswith("Colour ") and items[0]["text"].endswith(".")  # untouched
    members = {"jpg": jpeg(1), "json": b'{"question": "Why?", "answer": "So."}'}
    write_tar(tmp_path / "own" / "0.tar", {"a": members})
    section = _section(tmp_path / "own", text_column="answer", instruction_column="question")
    item = next(iter(training_stream(section, 2)))
    assert (item["instruction"], item["text"]) == ("Why?", "So.")


def test_conversations_are_streamed_for_stage_2(tmp_path, collator):
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Two."}]
    features = Features({"images": [ImageFeature()], "messages": [{"role": Value("string"), "content": Value("string")}]})
    images = [[{"bytes": jpeg(i), "path": None}] * (i + 1) for i in range(2)]
    table = Dataset.from_dict({"images": images, "messages": [messages] * 2}, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    section = _section(tmp_path / "saved")
    items = list(islice(training_stream(section, 2), 2))
    assert sorted(len(item["images"]) for item in items) == [1, 2]
    assert collator(items)["pixel_values"].shape[0] == 3
    with pytest.raises(ValueError, match="has conversations, which are learned in stage 2"):
        training_stream(section, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "data.streaming needs data.path or data.sources"),
        ({"path": "x", "sources": [SourceSection(path="y")]}, "both set"),
        ({"sources": [SourceSection(path="x", weight=0)]}, "each needs a path and a weight above 0"),
        ({"sources": [SourceSection()]}, "each needs a path and a weight above 0"),
    ],
)
def test_a_section_that_makes_no_stream_is_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        training_stream(DataSection(streaming=True, **options), 1)


def test_a_state_of_other_processes_is_refused(shards):
    section = _section(shards(2, 2))
    stream = training_stream(section, 1, rank=0, world_size=2)
    next(iter(stream))
    other = training_stream(section, 1, rank=0, world_size=3)
    other.load_state_dict(stream.state_dict())
    with pytest.raises(StreamError, match=r"^the saved place is that of unit 0 of 2 .* found unit 0 of 3"):
        iter(other)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_gone_stops_in_one_line(shards, workers):
    folder = shards(3, 2)
    stream = training_stream(_section(folder), 1)
    (folder / "00001.tar").unlink()
    with pytest.raises(StreamError, match=r"^data.path .* can no longer be read: .*00001.tar'$"):
        next(iter(StatefulDataLoader(stream, batch_size=8, num_workers=workers, collate_fn=list)))


def test_streams_can_be_sent_to_workers_that_are_not_forked(mixture):
    stream = pickle.loads(pickle.dumps(training_stream(mixture, 1, seed=3)))
    assert _seen(islice(stream, 20)) == _seen(islice(training_stream(mixture, 1, seed=3), 20))
