"""python benchmarks/training_step.py [--steps N]

Seconds of a stage-1 step of the embedded default, this package's way and the usual way, in one process on the same scenes:

    ours    vision features cached, batches of similar length, logits only on the answers, eager attention
    usual   pictures through the tower at each step, random batches padded, logits for every position, SDPA

Writes benchmarks/results/training_step.json with the ratio.
"""

import argparse
import datetime
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from minigpt4 import MiniGPT4DataCollator
from minigpt4.cli import run_reporting_errors
from minigpt4.configuration.recipe import DataSection
from minigpt4.durable_files import write_json
from minigpt4.modeling_minigpt4.embedded import load_embedded
from minigpt4.processing.data.datasets import training_data
from minigpt4.training.frozen_llm import FrozenLLM
from minigpt4.training.run import cache_features, versions
from minigpt4.training.trainer import LengthBuckets

BATCH = 16


def seconds_per_step(model, batches, way=None):
    """Median seconds of forward (in the context `way`), backward, optimizer step; two batches warm up."""
    optimizer = torch.optim.AdamW(model.model.projection.parameters(), lr=1e-3)
    seconds = []
    for make_batch in tqdm(batches):
        start = time.perf_counter()
        with way or nullcontext():
            loss = model(**make_batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def main():
    """Measures both ways and writes the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps of each way (default: 20)")
    steps = parser.parse_args().steps + 2
    if steps < 3:
        raise ValueError(f"--steps is {steps - 2}; expected at least 1")
    model, processor = load_embedded(projection=None)
    data = training_data(DataSection(scenes=steps * BATCH), stage=1)
    collator = MiniGPT4DataCollator(processor, max_answer_tokens=32)

    def batches(order):
        chunks = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        return [lambda chunk=chunk: collator([data[i] for i in chunk]) for chunk in chunks]

    model.train().set_attn_implementation("sdpa")
    usual = seconds_per_step(model, batches(list(range(len(data)))))
    data.features = cache_features(model, processor, data.pictures)
    model.set_attn_implementation("eager")
    lengths = [len(collator.encode(text)[0]) for text in data.texts]
    ours = seconds_per_step(model, batches(list(LengthBuckets(BATCH, lengths=lengths, seed=0))), FrozenLLM(model))

    result = {
        "name": "stage-1 step of the embedded default, batch 16",
        "value": round(ours, 3),
        "unit": "s",
        "peer": round(usual, 3),
        "ratio": round(usual / ours, 2),
        "device": f"CPU, {torch.get_num_threads()} threads",
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "command": "python benchmarks/training_step.py",
    }
    print(result)
    write_json(Path(__file__).parent / "results" / "training_step.json", result)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "training_step"))
