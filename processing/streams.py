"""Training data without end, which go on where they stopped: `training_stream(section, stage, ...)` -> TrainingStream.

Every process and each of its loader workers is a unit. In a pass over a source its shards are shuffled and dealt out to
the units: whole ones as long as every unit gets one more, the samples of the rest one by one, so that all units have
equally many and no sample has two. A unit reads its shards in windows of `shuffle_buffer` samples, shuffles each, and
decodes what it gives out. All of it follows from the seed and the place where the window began: that place, and how many
samples of the window are gone, are the whole state of the stream. After a resume the window is read again, encoded.
"""

import os
import random
from itertools import islice

import torch
from torch.utils.data import IterableDataset, get_worker_info

from .datasets import PictureTexts, check_stage, check_validation, crop_size, random_view, texts_about, validation_data
from .samples import BrokenSample, DroppedSamples, content, decode, held_out, sample_name
from .sources import open_source

MAX_BROKEN_IN_A_ROW = 1000


class StreamError(ValueError):
    """The stream cannot go on; says why in one line, also when it comes out of a loader's worker process."""

    def __init__(self, message):
        # torch hands over the worker's whole traceback as the message of an error of the same class.
        super().__init__(message.strip().splitlines()[-1].removeprefix(f"{__name__}.StreamError: "))


def training_stream(section, stage, seed=0, rank=0, world_size=1):
    """The stream of a recipe's data section (`DataSection` in recipes.py) for stage 1 or 2.

    Args:
        rank, world_size: this process, among how many.

    Raises:
        ValueError: a path, column or weight that does not do; one line.
    """
    if not (section.path or section.sources):
        raise ValueError("data.streaming needs data.path or data.sources; composed scenes are not streamed")
    if section.path and section.sources:
        raise ValueError("data.path and data.sources are both set; expected one of them")
    if section.held_out:
        raise ValueError("data.held_out keeps pictures of data that are not streamed; set it to 0, or data.streaming=false")
    if section.varied_captions or section.questions or section.conversations:
        raise ValueError(
            "data.varied_captions, questions and conversations need data that are looked at first; set data.streaming=false"
        )
    parts = section.sources or [section]
    if any(not part.path or part.weight <= 0 for part in parts):
        raise ValueError("data.sources: each needs a path and a weight above 0")
    sources = [open_source(part, streaming=True, holdout_share=section.holdout_share) for part in parts]
    for part, source in zip(parts, sources, strict=True):
        check_stage(part, source, stage)
    if stage == 2 and not (section.detailed_answers or section.short_answers or section.plain_captions):
        raise ValueError("data: detailed_answers, short_answers and plain_captions are all 0, so stage 2 has no texts")
    check_validation(section)
    stream = TrainingStream(sources, section, stage, seed, rank, world_size)
    stream.validation = _validation_of(stream) if section.validation_share else validation_data(section, stage)
    return stream


def is_validated(sample, share):
    """Whether a parsed `Sample` is kept for validation: by the name of its picture, so that all of its rows are."""
    return held_out(sample.key.partition(" ")[2] or f"{os.path.basename(sample.shard)}/{sample.key}", share)


def _validation_of(stream):
    """The first samples of a stream's sources that are kept out of it, as a `PictureTexts`; others of the share are unused.

    Raises:
        ValueError: there is none that can be used.
    """
    section, pictures, texts = stream.section, [], []
    for part, source in zip(stream.parts, stream.sources, strict=True):
        samples = (source.parse(sample) for shard in range(len(source.shards)) for sample in source.read(shard))
        for sample in samples:
            if len(pictures) == section.validation_limit:
                break
            if sample.broken or not is_validated(sample, section.validation_share):
                continue
            try:
                found = content(sample, part, source.root)
                [picture] = [decode(data, section.image_size) for data in found.pictures]
            except ValueError:  # broken, or several pictures: counted where it is trained on
                continue
            rng = random.Random(f"{sample.shard}/{sample.index}")
            texts += [{"picture": len(pictures), **text} for text in texts_about(found, section, stream.stage, rng)]
            pictures.append({"image": picture})
    if not texts:
        raise ValueError(f"data.validation_share is {section.validation_share}: no sample that can be used is among them")
    return PictureTexts(pictures, texts)


class TrainingStream(IterableDataset):
    """Infinite items: {"image", "text", "instruction" in stage 2, "key", "pass", "dropped"}, or of a conversation
    {"images", "messages", "key", "pass", "dropped"}.

    "key" is SHARD:KEY, "pass" how often its source was read before, "dropped" the samples that were skipped since the
    item before: [{"kind", "shard", "key"}, ...]. `StatefulDataLoader` of torchdata saves and restores it.

    Args:
        sources: what `open_source` returned, one for each of section.sources (or the section itself).
        section, stage, seed, rank, world_size: see `training_stream`.
    """

    def __init__(self, sources, section, stage, seed=0, rank=0, world_size=1):
        self.sources = sources
        self.section = section
        self.parts = section.sources or [section]
        self.stage = stage
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._loaded = None
        self._drawn = 0
        self._passes = []
        self.validation = None

    def state_dict(self):
        """Where the stream stands: {"unit", "units", "drawn", "sources": a few numbers for each}; fits JSON."""
        if not self._passes:
            return dict(self._loaded or {})
        first = self._passes[0]
        return {
            "unit": first.unit,
            "units": first.units,
            "drawn": self._drawn,
            "sources": [passes.state() for passes in self._passes],
        }

    def load_state_dict(self, state):
        """The next iterator goes on from a `state_dict()`."""
        self._loaded = state or None
        self._passes = []

    def __iter__(self):
        import fsspec

        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        unit, units = self.rank * workers + number, self.world_size * workers
        loaded, self._loaded = self._loaded, None
        if worker:
            fsspec.asyn.reset_lock()  # a forked process cannot use its parent's connections
        if loaded and (loaded["unit"], loaded["units"], len(loaded["sources"])) != (unit, units, len(self.sources)):
            raise StreamError(
                f"the saved place is that of unit {loaded['unit']} of {loaded['units']} (processes x loader workers) in "
                f"{len(loaded['sources'])} sources, found unit {unit} of {units} in {len(self.sources)}; start with as many"
            )
        self._drawn = loaded["drawn"] if loaded else 0
        states = loaded["sources"] if loaded else [None] * len(self.sources)
        self._passes = [
            _Passes(source, f"{self.seed}/{i}", unit, units, self.section.shuffle_buffer, state)
            for i, (source, state) in enumerate(zip(self.sources, states, strict=True))
        ]
        return self._items()

    def _items(self):
        weights = [part.weight for part in self.parts]
        unit = self._passes[0].unit
        while True:
            [i] = random.Random(f"{self.seed}/{unit}/{self._drawn}").choices(range(len(weights)), weights)
            self._drawn += 1
            yield self._next(i)

    def _next(self, i):
        """The next item of a source, with what was skipped before it."""
        dropped = []
        for _ in range(MAX_BROKEN_IN_A_ROW):
            try:
                sample = self._passes[i].next()
            except OSError as error:  # the connection or the disk; skipping would lose samples
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise StreamError(f"data.path {self.parts[i].path} cannot be read any more: {line}") from error
            entry = {"shard": sample.shard, "key": sample.key}
            sample = self.sources[i].parse(sample)
            if is_validated(sample, self.section.validation_share):
                continue
            try:
                item = self._item(i, sample)
            except BrokenSample as error:
                dropped.append({"kind": str(error), **entry})
                continue
            return {**item, "key": sample_name(entry), "pass": sample.place[0], "dropped": dropped}
        if not dropped:
            raise StreamError(
                f"data.path {self.parts[i].path}: data.validation_share keeps every sample out of the training"
            )
        tally = DroppedSamples()
        tally.add(0, dropped)
        raise StreamError(f"{tally}; none between them can")

    def _item(self, i, sample):
        source, section = self.sources[i], self.section
        found = content(sample, self.parts[i], source.root)
        # What is drawn for a sample depends on the sample and the pass, not on what was drawn before.
        rng = random.Random(f"{self.seed}/{i}/{sample.place[0]}/{os.path.basename(sample.shard)}/{sample.index}")
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        smallest = crop_size(section.image_size) if section.random_crop else section.image_size
        pictures = [decode(data, smallest) for data in found.pictures]
        if section.random_crop:
            pictures = [random_view(picture, generator) for picture in pictures]
        if found.messages:
            return {"images": pictures, "messages": found.messages}
        return {"image": pictures[0], **rng.choice(texts_about(found, section, self.stage, rng))}


class _Passes:
    """One unit's samples of one source: pass after pass, each shuffled anew.

    Args:
        seed: a text; all units have the same.
        unit, units: which share of the samples.
        buffer: samples that are shuffled together.
        state: what `state` returned.
    """

    def __init__(self, source, seed, unit, units, buffer, state=None):
        self.source, self.seed, self.unit, self.units, self.buffer = source, seed, unit, units, buffer
        # A place is (pass, which of the unit's shards, position in it, number of the sample).
        self.begun = self.ended = tuple(state["begun"]) if state else (0, 0, 0, 0)
        self.taken = state["taken"] if state else 0
        self.window = None
        self.reader = None

    def state(self):
        """{"begun": place where the window begins, "taken": samples that are gone from it}."""
        return {"begun": list(self.begun), "taken": self.taken}

    def next(self):
        """The next `Sample`, broken ones too, with its `place`."""
        if self.window is None:
            self._fill()
        sample, self.window[self.taken] = self.window[self.taken], None
        self.taken += 1
        if self.taken == len(self.window):
            self.begun, self.taken, self.window = self.ended, 0, None
        return sample

    def _fill(self):
        for _ in range(self.units + 1):  # fewer samples than units: some get none in a pass
            self.reader = self.reader or self._read(*self.ended)
            self.window = list(islice(self.reader, self.buffer))
            if self.window:
                break
            self.reader = None
            self.begun = self.ended = (self.ended[0] + 1, 0, 0, 0)
        else:
            raise StreamError(f"{self.source.shards[0]}: holds no samples")
        self.ended = self.window[-1].place
        random.Random(f"{self.seed}/{self.unit}/{self.begun}").shuffle(self.window)

    def _read(self, number, turn, position, index):
        """Samples of a pass from a place on."""
        order = list(range(len(self.source.shards)))
        random.Random(f"{self.seed}/{number}").shuffle(order)
        dealt = len(order) // self.units * self.units
        shares = [(shard, 1, 0) for shard in order[self.unit : dealt : self.units]]
        shares += [(shard, self.units, (self.unit + number) % self.units) for shard in order[dealt:]]
        for turn, (shard, every, offset) in enumerate(shares[turn:], turn):  # noqa: B020, PLR1704
            for sample in self.source.read(shard, position, index, every, offset):
                sample.place = (number, turn, *sample.after)
                yield sample
            position = index = 0
