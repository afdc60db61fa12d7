"""python benchmarks/evaluation.py [--scenes N] [--rounds N]

Answers per second of `minigpt4 evaluate` against bare batched `generate` on the same prompts, pictures and lengths, in one
process with the embedded default:

    ours    the runner: reads pictures, batches of similar length, features kept for a picture's next question, lines on disk
    bare    processor(images, text) and model.generate, batch after batch in the order of the questions

The rounds alternate and the best of each counts. Writes benchmarks/results/evaluation.json with the ratio.
"""

import argparse
import datetime
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import PartialState

from minigpt4.cli import run_reporting_errors
from minigpt4.durable_files import write_json
from minigpt4.evaluation.predictions import predict, request_lines
from minigpt4.evaluation.suites import Options, load_suite
from minigpt4.inference.generation import answer_text
from minigpt4.inference.named_models import fingerprint, load
from minigpt4.training.run import versions

BATCH = 64


def bare(model, processor, suite, lines):
    """{request id: answer} by the library's own calls."""
    said = {}
    for start in range(0, len(suite.requests), BATCH):
        batch = suite.requests[start : start + BATCH]
        inputs = processor(
            images=[suite.pictures.open(request.image) for request in batch],
            text=[lines[request.id]["prompt"] for request in batch],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        ids = model.generate(**inputs, max_new_tokens=batch[0].max_new_tokens, do_sample=False)
        answers = [answer_text(processor, row) for row in ids[:, inputs["input_ids"].shape[1] :]]
        said |= dict(zip((request.id for request in batch), answers, strict=True))
    return said


def main():
    """Measures both ways and writes the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24, help="scenes to ask about (default: 24)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each way (default: 3)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise ValueError(f"--rounds is {arguments.rounds}; expected at least 1")
    suite = load_suite("composed", Options(limit=arguments.scenes))
    suite.requests = [request for request in suite.requests if request.instruction is not None]  # captions stop elsewhere
    model, processor = load("embedded")
    lines, state = request_lines(suite, "embedded", model, processor, fingerprint(model)), PartialState(cpu=True)
    seconds, said = {"ours": [], "bare": []}, {}
    for _ in range(arguments.rounds):
        started = time.perf_counter()
        said["bare"] = bare(model, processor, suite, lines)
        seconds["bare"].append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            said["ours"] = predict(model, processor, suite, lines, folder, state, BATCH)
            seconds["ours"].append(time.perf_counter() - started)
    best = {way: len(suite.requests) / min(times) for way, times in seconds.items()}
    result = {
        "name": f"evaluation: {len(suite.requests)} answers of the embedded default, batch {BATCH}",
        "value": round(best["ours"], 2),
        "unit": "answers/s",
        "peer": round(best["bare"], 2),
        "ratio": round(best["ours"] / best["bare"], 2),
        "same_answers": round(sum(said["ours"][i] == text for i, text in said["bare"].items()) / len(suite.requests), 3),
        "device": f"CPU, {torch.get_num_threads()} threads",
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "command": "python benchmarks/evaluation.py",
    }
    print(result)
    write_json(Path(__file__).parent / "results" / "evaluation.json", result)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "evaluation"))
