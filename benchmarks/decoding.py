"""python benchmarks/decoding.py [--images N]

Images per second of one core's time, from encoded JPEG to the 224 x 224 picture that the model sees after a random crop:
with the decoder's own down-scaling, without it, and beside plain PIL (open, convert, the same kind of crop, resize) on the
same pictures, synthetic ones of 512 x 384 and 1024 x 768 pixels with edges, gradients and noise, quality 90.

Writes benchmarks/results/decoding.json; value and peer are those of the larger pictures.
"""

import argparse
import datetime
import io
import platform
import sys
import time
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw

from minigpt4.cli import run_reporting_errors
from minigpt4.durable_files import write_json
from minigpt4.processing.data.datasets import crop_size, random_view
from minigpt4.processing.data.samples import decode
from minigpt4.training.run import versions

SIZES = ((512, 384), (1024, 768))
SIDE = 224


def picture(seed, size):
    """A JPEG of shapes on a gradient with some noise, about as hard to decode as a photograph."""
    rng = np.random.default_rng(seed)
    width, height = size
    shade = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 55, height)[:, None, None] * rng.random(3)
    image = Image.fromarray((shade + rng.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for x, y, radius in zip(rng.integers(0, width, 40), rng.integers(0, height, 40), rng.integers(4, 60, 40), strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.integers(0, 256, 3).tolist()))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def plain(data):
    """What a loader does without this package."""
    return random_view(Image.open(io.BytesIO(data)).convert("RGB"))


def images_per_second(pictures, ways, repeats=5):
    """{name: images per second of processor time}, the best of some rounds in which the ways take turns."""
    fastest = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.process_time()
            for data in pictures:
                way(data).resize((SIDE, SIDE), Image.BICUBIC)
            fastest[name] = min(fastest[name], time.process_time() - started)
    return {name: round(len(pictures) / seconds, 1) for name, seconds in fastest.items()}


def main():
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="pictures of each size (default: 100)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ways = {
        "scaled": lambda data: random_view(decode(data, crop_size(SIDE))),
        "whole": lambda data: random_view(decode(data)),
        "plain PIL": plain,
        "scaled, no crop": lambda data: decode(data, SIDE),
        "whole, no crop": decode,
    }
    sizes = {}
    for size in SIZES:
        sizes[f"{size[0]} x {size[1]}"] = images_per_second([picture(i, size) for i in range(arguments.images)], ways)
    largest = sizes[f"{SIZES[-1][0]} x {SIZES[-1][1]}"]
    result = {
        "name": "JPEG of 1024 x 768 to a random crop of 224 x 224, with the decoder's own down-scaling",
        "value": largest["scaled"],
        "unit": "images/s per core",
        "peer": largest["plain PIL"],
        "ratio": round(largest["scaled"] / largest["plain PIL"], 2),
        "sizes": sizes,
        "device": f"one core, {platform.machine()}",
        "date": datetime.date.today().isoformat(),
        "versions": {**versions(), "pillow": PIL.__version__},
        "command": "python benchmarks/decoding.py",
    }
    print(result)
    write_json(Path(__file__).parent / "results" / "decoding.json", result)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "decoding"))
