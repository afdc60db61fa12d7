"""python benchmarks/curation.py [--rounds N] [--rows N]

Two claims about `minigpt4 curate`, on this machine:

    generation    pictures per second of the generate step against bare `generate` on the same batches, both turns
    store         with N rows (a million): seconds until each step has its first row, its peak memory against one with
                  5,000 rows, and how long the verify page's list and search take

Writes benchmarks/results/curation.json. Each size of store is measured in a separate process, for its memory.
"""

import argparse
import datetime
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from minigpt4.cli import run_reporting_errors
from minigpt4.durable_files import write_json

RESULT = Path(__file__).parent / "results" / "curation.json"
BATCH, TOKENS, SMALL = 16, 40, 5_000


def generation(rounds):
    """(seconds of bare generate, seconds of the step), the medians of a round of two batches; they take turns."""
    from minigpt4.curation.generate import Describer, generate
    from minigpt4.curation.sample import read_picture, sample
    from minigpt4.curation.store import Store
    from minigpt4.inference.named_models import load
    from minigpt4.processing.data.scenes import scenes
    from minigpt4.processing.image_processing_minigpt4 import load_image

    model, processor = load("embedded")
    # All rows are equally long, so that both do the same work.
    describer = Describer(model, processor, "embedded", max_new_tokens=TOKENS, min_new_tokens=TOKENS)
    seconds = {"bare": [], "step": []}
    for number in range(rounds + 1):  # the first one warms up
        with tempfile.TemporaryDirectory() as name, Store(Path(name) / "store.sqlite", create=True) as store:
            pictures = Path(name) / "pictures"
            pictures.mkdir()
            for i, row in enumerate(scenes(2 * BATCH, 77 + number)):
                row["image"].save(pictures / f"{i:05}.jpg")
            sample(store, pictures, 2 * BATCH)
            rows = store.rows("SELECT * FROM pictures ORDER BY picture")
            images = [load_image(read_picture(store, row)) for row in rows]  # the plain way has them at hand
            for way, run in (
                ("bare", partial(bare, describer, images)),
                ("step", partial(generate, store, describer, BATCH)),
            ):
                begun = time.perf_counter()
                run()
                seconds[way].append(time.perf_counter() - begun)
    return [statistics.median(seconds[way][1:]) for way in ("bare", "step")]


def bare(describer, images):
    """Both turns about each image with bare `generate`."""
    import torch

    from minigpt4.curation.generate import CONTINUE, PROMPT
    from minigpt4.inference.generation import batch_answers

    model, processor = describer.model, describer.processor

    def prompt(*later):
        asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
        return processor.apply_chat_template([asked, *later], add_generation_prompt=True)

    for start in range(0, len(images), BATCH):
        with torch.inference_mode():
            features = model.model.get_vision_features(describer.pixels(images[start : start + BATCH]))
        first = batch_answers(model, processor, [prompt()] * len(features), features, **describer.decoding)
        going_on = {"role": "user", "content": CONTINUE}
        prompts = [prompt({"role": "assistant", "content": text}, going_on) for text in first]
        batch_answers(model, processor, prompts, features, **describer.decoding)


def fill(path, rows):
    """A store with that many rows in every step; one picture in a hundred waits for the next step."""
    from minigpt4.curation.store import Store

    words = "the picture shows a road next to the tower and behind them there is a river in the light of the day"
    texts = words.split()

    def text(i):
        return " ".join(texts[(i * k) % len(texts)] for k in range(1, 60)) + f" {i}."

    with Store(path, create=True) as store:
        run = store.run("sample", {})
        keys = sorted(hashlib.sha256(str(i).encode()).hexdigest() for i in range(rows))
        for start in range(0, rows, 20_000):
            part = keys[start : start + 20_000]
            with store.transaction() as execute:
                for i, key in enumerate(part, start):
                    execute("INSERT INTO pictures VALUES (?, ?, ?, ?, ?)", (key, f"{i}.jpg", f"/p/{i}.jpg", run, "t"))
                    for j, (table, values) in enumerate(
                        {
                            "answers": (key, text(i), None, text(i), run, "t"),
                            "fixes": (key, text(i), None, text(i), "[]", 100, 80, run, "t"),
                            "verdicts": (key, None if i % 3 else "repetition", None, run, "t"),
                            "decisions": (key, "accept", text(i), "ann", run, "t"),
                        }.items()
                    ):
                        if start + 20_000 < rows or i < rows - (j + 1) * rows // 400:  # pending rows are at the end
                            execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)


def look(path):
    """Seconds and peak memory of this process over one store."""
    import psutil

    from minigpt4.curation.store import Store
    from minigpt4.curation.verify import PASSED, Desk

    seconds = {}

    def timed(name, run):
        begun = time.perf_counter()
        run()
        seconds[name] = round(time.perf_counter() - begun, 3)

    base = psutil.Process().memory_info().rss
    with Store(path) as store:
        for step in ("generate", "fix", "filter", "verify"):
            timed(
                f"{step}: count what waits, first row",
                lambda step=step: (store.pending_count(step), next(store.pending(step))),
            )
            timed(f"{step}: every waiting row", lambda step=step: sum(1 for _ in store.pending(step)))
        desk = Desk(store)
        timed("verify: first picture of the page", lambda: desk.next("ann"))
        timed("verify: next picture", lambda: desk.next("ann"))
        timed("verify: progress", lambda: desk.progress(PASSED))
        timed("list: 100 rows", lambda: desk.search(limit=100))
        middle = store.value("SELECT picture FROM pictures WHERE picture > '8' ORDER BY picture")
        timed("list: 100 rows from the middle", lambda: desk.search(after=middle, limit=100))
        timed("search: a text that one row has", lambda: desk.search("road 4242.", limit=100))
    status = Path("/proc/self/status").read_text()  # getrusage's peak begins with that of the process that started this one
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return {"seconds": seconds, "memory_mb": round((peak - base) / 1e6, 1)}


def main():
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of 32 pictures (default: 5)")
    parser.add_argument(
        "--rows", type=int, default=1_000_000, metavar="N", help="rows of the large store (default: 1,000,000)"
    )
    parser.add_argument("--look", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.look:
        print(json.dumps(look(arguments.look)))
        return
    stores = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in (SMALL, arguments.rows):
            path = Path(folder) / f"{rows}.sqlite"
            fill(path, rows)
            command = [sys.executable, __file__, "--look", str(path)]
            stores[rows] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            stores[rows]["file_mb"] = round(path.stat().st_size / 1e6)
    bare, step = generation(arguments.rounds)
    import torch

    from minigpt4.training.run import versions

    result = {
        "name": f"generate step of minigpt4 curate, embedded default, batch {BATCH}, two turns of {TOKENS} tokens",
        "value": round(2 * BATCH / step, 3),
        "unit": "pictures/s",
        "peer": round(2 * BATCH / bare, 3),
        "ratio": round(bare / step, 3),
        "stores": stores,
        "device": f"CPU, {torch.get_num_threads()} threads",
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "command": "python benchmarks/curation.py",
    }
    print(json.dumps(result, indent=2))
    write_json(RESULT, result)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "curation"))
