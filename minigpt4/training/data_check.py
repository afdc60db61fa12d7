"""Checks a folder of training data before a GPU has to wait for it: faults, captions, images, decoding speed."""

import statistics
import time
from dataclasses import dataclass, field
from itertools import islice

import torch

from ..processing.data.datasets import crop_size, random_view
from ..processing.data.samples import BrokenSample, DroppedSamples, content, decode
from ..processing.data.sources import open_source

CPUS_FOR_TRAINING = 1  # of each GPU's processor cores: its own process


@dataclass
class Found:
    """What `check` found.

    Args:
        shards: how many. dropped: `DroppedSamples`, which also counts the usable ones.
        words: number of words of each caption. sides: shorter side of each image, in pixels.
        seconds: time for decoding, cropping and resizing on one core.
        whole: whether every sample was checked.
    """

    shards: int
    dropped: DroppedSamples
    words: list = field(default_factory=list)
    sides: list = field(default_factory=list)
    seconds: float = 0.0
    whole: bool = True

    @property
    def images_per_second(self):
        """Images per second that one core decodes to the model's size."""
        return len(self.sides) / self.seconds if self.seconds else 0.0

    def workers(self, images_per_second):
        """How many loader workers keep up with a number of images per second."""
        return max(1, -(-images_per_second // max(1, int(self.images_per_second))))


def check(section, image_size=224, limit=None):
    """Reads a data section's samples as training would, each once: `Found`.

    Args:
        section: a `SourceSection`. image_size: side in pixels that the model sees.
        limit: check this many samples, the first of each shard in turn; None: all.

    Raises:
        ValueError: no known format; one line.
    """
    source = open_source(section, streaming=True)
    found = Found(len(source.shards), DroppedSamples(at_least=1))
    generator = torch.Generator().manual_seed(0)
    samples = _in_turn(source) if limit else (s for shard in range(len(source.shards)) for s in source.read(shard))
    for sample in islice(samples, limit):
        try:
            inside = content(source.parse(sample), section, source.root)
            started = time.process_time()
            for data in inside.pictures:
                image = decode(data, crop_size(image_size))
                found.sides.append(min(image.size))
                random_view(image, generator).resize((image_size, image_size))
            found.seconds += time.process_time() - started
        except BrokenSample as error:
            found.dropped.add(0, [{"kind": str(error), "shard": sample.shard, "key": sample.key}])
            continue
        found.dropped.add(1, [])
        found.words += [len(caption.split()) for caption in inside.captions]
    found.whole = limit is None or found.dropped.used + found.dropped.dropped < limit
    return found


def report(found, images_per_second):
    """Lines for a person.

    Args:
        images_per_second: training speed of one GPU.
    """
    seen = found.dropped.used + found.dropped.dropped
    yield f"{'samples':<32}{seen:,} in {found.shards:,} shards{'' if found.whole else ', the first of them'}"
    yield f"{'that can be used':<32}{found.dropped.used:,}"
    for kind, number in found.dropped.by_kind.most_common():
        yield f"  {kind:<30}{number:,} ({number / seen:.2%})"
    if found.words:
        yield f"{'words of a caption':<32}{_spread(found.words)}"
    if found.sides:
        yield f"{'shorter side, decoded':<32}{_spread(found.sides)} pixels"
        workers = found.workers(images_per_second)
        yield f"{'decoding':<32}{found.images_per_second:.0f} images/s on one core of this machine"
        cores = workers + CPUS_FOR_TRAINING
        yield f"{'for a GPU that eats':<32}{images_per_second} images/s: train.workers={workers}, {cores} cores"


def _in_turn(source):
    """One sample of each shard, then the next of each."""
    readers = [source.read(shard) for shard in range(len(source.shards))]
    while readers:
        for reader in list(readers):
            sample = next(reader, None)
            if sample is None:
                readers.remove(reader)
            else:
                yield sample


def _spread(values):
    ordered = sorted(values)
    high = ordered[int(0.95 * (len(ordered) - 1))]
    return f"{ordered[0]} to {ordered[-1]}, median {statistics.median(ordered):g}, 95% up to {high}"
