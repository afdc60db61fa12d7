"""python benchmarks/streaming.py [--samples N]

A pass over a million tiny samples (8 x 8 JPEG, .txt, .json) in tar shards: resident memory at 10% and at 100% of it, which
must be flat, and images per second over 1, 4 and 16 parts of the data (the last all of it), which must be equal within 5%.
The three streams take turns in blocks of a thousand samples, in one process, so that whatever else the machine does hits
them alike; a block is timed by the processor's time and the median block counts. Sixteen shards are written, and linked
under as many names as are needed.

Writes benchmarks/results/streaming.json; value is images per second over all of the data, ratio that to 1/16 of it.
"""

import argparse
import datetime
import io
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from collections import deque
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from tqdm import tqdm

from minigpt4.cli import run_reporting_errors
from minigpt4.configuration.recipe import DataSection
from minigpt4.durable_files import write_json
from minigpt4.processing.data.streams import training_stream
from minigpt4.training.run import versions

PER_SHARD = 2500
WRITTEN = 16
PARTS = (1, 4, 16)
BLOCK = 1000
EVERY = 8  # blocks of all the data between two of the smaller parts


def write_shards(folder, shards):
    """Tar files as img2dataset writes them, the same sixteen again and again."""
    for shard in range(shards):
        if shard >= WRITTEN:
            (folder / f"{shard:05}.tar").hardlink_to(folder / f"{shard % WRITTEN:05}.tar")
            continue
        with tarfile.open(folder / f"{shard:05}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            buffer = io.BytesIO()
            colour = np.random.default_rng(shard).integers(0, 256, 3, dtype=np.uint8)
            Image.fromarray(np.tile(colour, (8, 8, 1))).save(buffer, "JPEG")
            for key in range(PER_SHARD):
                members = {"jpg": buffer.getvalue(), "txt": b"A picture of number %d." % key, "json": b'{"width": 8}'}
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"{shard:05}{key:05}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def measure(folder, shards):
    """({parts: seconds of each block}, {"10%": MB, "100%": MB}): the first pass over all shards, the others beside it."""
    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    sections = {parts: DataSection(path=paths[: parts * shards // PARTS[-1]], streaming=True) for parts in PARTS}
    streams = {parts: iter(training_stream(section, stage=1)) for parts, section in sections.items()}
    blocks = shards * PER_SHARD // BLOCK
    seconds, resident = {parts: [] for parts in PARTS}, {}

    def block(parts):
        started = time.process_time()
        last = deque(islice(streams[parts], BLOCK), maxlen=1)[0]
        seconds[parts].append(time.process_time() - started)
        return last

    for i in tqdm(range(1, blocks + 1), desc="streaming", unit="block"):
        assert block(PARTS[-1])["pass"] == 0
        if i % EVERY == 0:
            for parts in PARTS[:-1]:
                block(parts)
        if i in (blocks // 10, blocks):
            resident[f"{round(100 * i / blocks)}%"] = round(psutil.Process().memory_info().rss / 1e6, 1)
    assert next(streams[PARTS[-1]])["pass"] == 1
    return seconds, resident


def main():
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples in all the data (default: a million)")
    shards = max(1, parser.parse_args().samples // PER_SHARD // PARTS[-1]) * PARTS[-1]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), shards)
        seconds, resident = measure(Path(folder), shards)
    rates = {parts: BLOCK / statistics.median(blocks) for parts, blocks in seconds.items()}
    result = {
        "name": f"a pass over {shards * PER_SHARD:,} tiny samples in tar shards",
        "value": round(rates[PARTS[-1]]),
        "unit": "images/s per core",
        "peer": round(rates[1]),
        "ratio": round(rates[PARTS[-1]] / rates[1], 3),
        "images_per_second": {f"{parts}x": round(rate) for parts, rate in rates.items()},
        "resident_mb": resident,
        "device": f"one core, {platform.machine()}",
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "command": "python benchmarks/streaming.py",
    }
    print(result)
    write_json(Path(__file__).parent / "results" / "streaming.json", result)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "streaming"))
