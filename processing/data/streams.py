"""Endless, resumable training data: `training_stream(section, stage, ...)` -> TrainingStream.

Every process and each of its loader workers is a unit. In each pass over a source, its shards are shuffled and dealt out to
the units: whole shards as long as every unit gets another one, then the samples of the remaining shards one by one, so that
all units get equally many and no sample goes to two. A unit reads its shards in windows of `shuffle_buffer` samples,
shuffles each window, and decodes samples as it yields them. All this follows from the seed and the window's starting place:
that place and the samples already used are the whole state of the stream. On resuming, the window is read again, encoded.

With `redeal`, another number of units can take over: whatever the units have left to read, up to the end of the most
advanced unit's pass, becomes pieces of shards, which are dealt out in the same way. Later passes are as usual.
"""

import os
import random
from itertools import islice
from typing import NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from .datasets import (
    PictureTexts,
    check_stage,
    check_validation,
    crop_size,
    drawn,
    random_view,
    texts_about,
    validation_data,
)
from .samples import BrokenSample, DroppedSamples, content, decode, held_out, sample_name
from .sources import open_source

MAX_BROKEN_IN_A_ROW = 1000


class StreamError(ValueError):
    """The stream cannot continue; says why in one line, even if raised in a loader's worker process."""

    def __init__(self, message):
        # torch passes the worker's whole traceback as the message of an error of the same class.
        super().__init__(message.strip().splitlines()[-1].removeprefix(f"{__name__}.StreamError: "))


def training_stream(section, stage, seed=0, rank=0, world_size=1):
    """The stream of a recipe's data section (`DataSection` in recipe.py) for stage 1 or 2.

    Args:
        rank, world_size: of this process.

    Raises:
        ValueError: an invalid path, column or weight; one line.
    """
    if not (section.path or section.sources):
        raise ValueError("data.streaming needs data.path or data.sources; composed scenes are not streamed")
    if section.path and section.sources:
        raise ValueError("data.path and data.sources are both set; expected one of them")
    if section.varied_captions or section.questions or section.conversations:
        raise ValueError(
            "data.varied_captions, questions and conversations need to look at the data first; set data.streaming=false"
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
    stream.held_out, stream.kept_out = _held_out_of(stream)
    return stream


def unit_states(state):
    """The `state_dict`s of a stream's units inside that of a `StatefulDataLoader`, at any depth."""
    if not isinstance(state, dict):
        return []
    if {"unit", "units", "sources"} <= state.keys():
        return [state]
    return [unit for value in state.values() for unit in unit_states(value)]


def is_validated(sample, share):
    """Whether a parsed `Sample` is kept for validation: by the name of its image, so that all rows of an image agree."""
    return held_out(sample.key.partition(" ")[2] or f"{os.path.basename(sample.shard)}/{sample.key}", share)


def _validation_of(stream):
    """The first validation samples of a stream's sources as a `PictureTexts`; the rest of the share is unused.

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
            if row := _row(stream, part, source, sample):
                texts += [{"picture": len(pictures), **text} for text in row["texts"]]
                pictures.append({"image": row["image"]})
    if not texts:
        raise ValueError(f"data.validation_share is {section.validation_share}: no usable sample is among them")
    return PictureTexts(pictures, texts)


def _held_out_of(stream):
    """(rows {"image", "texts"}, their {(source, shard, number), ...}): the first `held_out` usable ones of a stream."""
    section, rows, places = stream.section, [], set()
    for i, (part, source) in enumerate(zip(stream.parts, stream.sources, strict=True)):
        samples = (source.parse(sample) for shard in range(len(source.shards)) for sample in source.read(shard))
        while len(rows) < section.held_out and (sample := next(samples, None)) is not None:
            if is_validated(sample, section.validation_share):
                continue
            if row := _row(stream, part, source, sample):
                rows.append(row)
                places.add((i, sample.shard, sample.index))
    return rows, places


def _row(stream, part, source, sample):
    """{"image", "texts"} of a sample with one image, always with the same texts, or None if it cannot be used."""
    try:
        found = content(sample, part, source.root)
        [picture] = [decode(data, stream.section.image_size) for data in found.pictures]
    except ValueError:  # broken, or several images: counted during training
        return None
    rng = random.Random(f"{sample.shard}/{sample.index}")
    return {"image": picture, "texts": texts_about(found, stream.section, stream.stage, rng)}


class TrainingStream(IterableDataset):
    """Endless items: {"image", "text", "instruction" in stage 2, "key", "pass", "dropped"}, or for conversations
    {"images", "messages", "key", "pass", "dropped"}.

    "key" is SHARD:KEY, "pass" how often its source was read before, "dropped" the samples skipped since the previous
    item: [{"kind", "shard", "key"}, ...]. torchdata's `StatefulDataLoader` saves and restores it.

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
        self.deal = None
        self._loaded = None
        self._drawn = 0
        self._passes = []
        self.validation, self.held_out, self.kept_out = None, [], frozenset()

    def state_dict(self):
        """The stream's position in JSON form: {"unit", "units", "drawn", "sources": numbers for each}; use with `deal`."""
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
        """The next iterator continues from a `state_dict()`."""
        self._loaded = state or None
        self._passes = []

    def redeal(self, states, deal=None):
        """The next iterators share what other units left: no sample is lost, and none comes twice in a pass.

        Afterwards `deal` describes what is shared, in JSON form; save it with the states.

        Args:
            states: the `state_dict()` of every former unit.
            deal: the `deal` of the streams they come from.

        Raises:
            ValueError: the state of a unit is missing, or belongs to other sources.
        """
        units, n = {state["units"] for state in states}, {len(state["sources"]) for state in states}
        found = sorted(state["unit"] for state in states)
        if n != {len(self.sources)} or len(units) != 1 or found != list(range(*units)):
            raise ValueError(
                f"the checkpoint has the places of units {found} (processes x loader workers) in {_or(n)} sources; expected "
                f"all of {_or(units)} in {len(self.sources)}"
            )
        states = sorted(states, key=lambda state: state["unit"])
        left = [self._left_over(i, [state["sources"][i] for state in states], deal) for i in range(len(self.sources))]
        self.deal = {"drawn": max(state["drawn"] for state in states), "sources": left}
        self.load_state_dict(None)

    def _left_over(self, i, states, deal):
        """{"number": the most advanced unit's pass, "pieces": what is unread of it and of earlier ones} for a source."""
        units = [self._passes_of(i, unit, len(states), state, deal) for unit, state in enumerate(states)]
        last = max(unit.begun[0] for unit in units)
        return {"number": last, "pieces": [list(piece) for unit in units for piece in unit.left_over(last)]}

    def _passes_of(self, i, unit, units, state, deal):
        left = deal["sources"][i] if deal else None
        return _Passes(self.sources[i], f"{self.seed}/{i}", unit, units, self.section.shuffle_buffer, state, left)

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
                f"{len(loaded['sources'])} sources, found unit {unit} of {units} in {len(self.sources)}; see `redeal`"
            )
        self._drawn = (loaded or self.deal or {"drawn": 0})["drawn"]
        states = loaded["sources"] if loaded else [None] * len(self.sources)
        self._passes = [self._passes_of(i, unit, units, state, self.deal) for i, state in enumerate(states)]
        return self._items()

    def _items(self):
        weights = [part.weight for part in self.parts]
        unit = self._passes[0].unit
        while True:
            [i] = random.Random(f"{self.seed}/{unit}/{self._drawn}").choices(range(len(weights)), weights)
            self._drawn += 1
            yield self._next(i)

    def _next(self, i):
        """The next item of a source, with the samples skipped before it."""
        dropped = []
        for _ in range(MAX_BROKEN_IN_A_ROW):
            try:
                sample = self._passes[i].next()
            except OSError as error:  # connection or disk; skipping would lose samples
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise StreamError(f"data.path {self.parts[i].path} can no longer be read: {line}") from error
            entry = {"shard": sample.shard, "key": sample.key}
            sample = self.sources[i].parse(sample)
            if (i, sample.shard, sample.index) in self.kept_out or is_validated(sample, self.section.validation_share):
                continue
            try:
                item = self._item(i, sample)
            except BrokenSample as error:
                dropped.append({"kind": str(error), **entry})
                continue
            return {**item, "key": sample_name(entry), "pass": sample.read_before, "dropped": dropped}
        if not dropped:
            raise StreamError(
                f"data.path {self.parts[i].path}: data.validation_share and held_out keep every sample out of training"
            )
        tally = DroppedSamples()
        tally.add(0, dropped)
        raise StreamError(f"{tally}; none between them can")

    def _item(self, i, sample):
        source, section = self.sources[i], self.section
        found = content(sample, self.parts[i], source.root)
        # Random choices for a sample depend on the sample and the pass, not on earlier draws.
        rng = random.Random(f"{self.seed}/{i}/{sample.read_before}/{os.path.basename(sample.shard)}/{sample.index}")
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        smallest = crop_size(section.image_size) if section.random_crop else section.image_size
        pictures = [decode(data, smallest) for data in found.pictures]
        if section.random_crop:
            pictures = [random_view(picture, generator) for picture in pictures]
        if found.messages:
            return {"images": pictures, "messages": found.messages}
        return {"image": pictures[0], **drawn(rng.choice(texts_about(found, section, self.stage, rng)), rng)}


class _Piece(NamedTuple):
    """Samples of a shard that are read in sequence in a pass.

    Args:
        number: number of the pass. shard: number of the shard.
        position, index: where it starts, see sources.py.
        every, offset: selects samples whose number % every == offset.
        gone: numbers of samples already used.
    """

    number: int
    shard: int
    position: int | None = 0
    index: int = 0
    every: int = 1
    offset: int = 0
    gone: tuple = ()


class _Passes:
    """One unit's samples of one source, reshuffled in every pass.

    Args:
        seed: a string, the same for all units.
        unit, units: this unit's number among how many.
        buffer: number of samples that are shuffled together.
        state: what `state` returned.
        left: {"number", "pieces"}: what other units left, see `TrainingStream.redeal`. It is read instead of the pass
            with that number, which is then the first.
    """

    def __init__(self, source, seed, unit, units, buffer, state=None, left=None):
        self.source, self.seed, self.unit, self.units, self.buffer, self.left = source, seed, unit, units, buffer, left
        # A place is (pass, number of the unit's piece, position in the shard, number of the sample).
        self.begun = self.ended = tuple(state["begun"]) if state else (left["number"] if left else 0, 0, 0, 0)
        self.gone = [tuple(sample) for sample in state["gone"]] if state else []
        self.window = None
        self.reader = None

    def state(self):
        """{"begun": place where the window starts, "gone": [piece, number of the sample] for those already used}."""
        return {"begun": list(self.begun), "gone": [list(sample) for sample in self.gone]}

    def left_over(self, last):
        """What this unit has left to read until the end of a pass: [`_Piece`, ...]."""
        number, turn, position, index = self.begun
        pieces = self._share(number)[turn:]
        if pieces and index:
            pieces[0] = pieces[0]._replace(position=position, index=index)
        for i, piece in enumerate(pieces):
            gone = {sample for at, sample in self.gone if at == turn + i}
            pieces[i] = piece._replace(gone=sorted(gone.union(piece.gone)))
        later = [piece for after in range(number + 1, last + 1) for piece in self._share(after)]
        return [piece for piece in [*pieces, *later] if piece.position is not None]

    def next(self):
        """The next `Sample`, possibly broken, with its `place`."""
        if self.window is None:
            self._fill()
        taken = len(self.gone)
        sample, self.window[taken] = self.window[taken], None
        self.gone.append((sample.place[1], sample.index))
        if len(self.gone) == len(self.window):
            self.begun, self.gone, self.window = self.ended, [], None
        return sample

    def _fill(self):
        for _ in range(self.units + 2):  # fewer samples than units, or nothing left: a pass may have none for this unit
            self.reader = self.reader or self._read(*self.ended)
            self.window = list(islice(self.reader, self.buffer))
            if self.window:
                break
            self.reader = None
            self.begun = self.ended = (self.ended[0] + 1, 0, 0, 0)
        else:
            raise StreamError(f"{self.source.shards[0]}: contains no samples")
        self.ended = self.window[-1].place
        random.Random(f"{self.seed}/{self.unit}/{self.begun}").shuffle(self.window)

    def _read(self, number, turn, position, index):
        """Samples of a pass, starting at a place."""
        for turn, piece in enumerate(self._share(number)[turn:], turn):  # noqa: B020, PLR1704
            begin, gone = (position, index) if index else (piece.position, piece.index), frozenset(piece.gone)
            for sample in self.source.read(piece.shard, *begin, piece.every, piece.offset):
                if sample.index not in gone:
                    sample.place, sample.read_before = (number, turn, *sample.after), piece.number
                    yield sample
            position = index = 0

    def _share(self, number):
        """This unit's pieces of a pass: whole shards as long as every unit gets another one, the rest sample by sample."""
        if self.left and number == self.left["number"]:
            pieces = [_Piece(*piece) for piece in self.left["pieces"]]
        else:
            order = list(range(len(self.source.shards)))
            random.Random(f"{self.seed}/{number}").shuffle(order)
            pieces = [_Piece(number, shard) for shard in order]
        dealt, turn = len(pieces) // self.units * self.units, (self.unit + number) % self.units
        return pieces[self.unit : dealt : self.units] + [
            piece._replace(every=piece.every * self.units, offset=piece.offset + piece.every * turn)
            for piece in pieces[dealt:]
        ]


def _or(numbers):
    return " or ".join(map(str, sorted(numbers)))
