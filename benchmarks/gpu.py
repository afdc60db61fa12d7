"""python benchmarks/gpu.py [--small] [--only NAME ...] [--minutes 25]

What to measure on a GPU, at full size with random weights, within 25 minutes on one H100 or H200. What a part gives is
written at once to benchmarks/results/gpu.json; one that fails, or for which no time is left, says so there. No GPU was at
hand where this was written: it ran with --small only.

    stage1, stage2     images a second, against Blip2ForConditionalGeneration, memory, synchronisations (peer_step.py)
    split              a stage-1 step by part: tower, Q-Former and projection, LLM forward, LLM backward; MFU
    float8             speed, and the difference of the losses over 200 steps of the same data
    compile            seconds to warm up, speed afterwards
    generate           tokens a second at batch 1 and 32, against the bare LLM; first token of a second question
    quickstart         the embedded default's two stages, seconds
    tests              make test-gpu

--small runs on this CPU with the small form of peer_step.py, to see that the script runs; it writes nothing.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from peer_step import BATCH, Step, build, compile_layers, draw_batch, fastest_product, floor, our_loss, plan_of, seconds

from minigpt4.cli import run_reporting_errors
from minigpt4.durable_files import write_json
from minigpt4.training.run import versions
from minigpt4.training.throughput import peak_flops

RESULTS = Path(__file__).parent / "results" / "gpu.json"
TESTS = [sys.executable, "-m", "pytest", "-q", "-m", "gpu"]


def _batches(model, steps, rows):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch, lengths = draw_batch(model, 1, rows, generator)
        yield {**batch, "plan": plan_of(model, 1, lengths)}, lengths


def _images_per_second(model, rows, steps, float8=False):
    step = Step(model, our_loss(model, float8))
    times = [seconds(partial(step, batch)) for batch, _ in _batches(model, steps + 2, rows)]
    return rows / statistics.median(times[2:])


def against_peer(device, small, stage):
    """What peer_step.py prints, in a separate process."""
    command = [sys.executable, str(Path(__file__).with_name("peer_step.py")), "--stage", str(stage)]
    command += ["--steps", "1", "--batch", "2"] if small else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return [line for line in done.stdout.splitlines() if line.startswith("{")]


def split(device, small):
    """Milliseconds of each part of a stage-1 step, each timed by itself, and MFU of the whole."""
    model, rows = build(device), 2 if small else BATCH[1]
    (batch, lengths), *_ = _batches(model, 1, rows)
    base = model.model
    with torch.no_grad():
        pixels = batch["pixel_values"]
        states = base.vision_tower(pixel_values=pixels).last_hidden_state
    embeds = torch.randn(rows, batch["input_ids"].shape[1], model.config.text_config.hidden_size, device=device)
    embeds = embeds.to(model.get_input_embeddings().weight.dtype).requires_grad_()

    def tower():
        with torch.no_grad():
            base.vision_tower(pixel_values=pixels)

    def forward():
        with torch.no_grad():
            base.language_model(inputs_embeds=embeds, use_cache=False)

    def both():
        base.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state.sum().backward()

    def head():
        with torch.no_grad():
            model.compute_logits(embeds[:, : max(lengths)])

    parts = {"tower": tower, "llm_forward": forward, "llm_forward_and_backward": both, "head": head}
    taken = {
        name: 1000 * statistics.median(seconds(part) for _ in range(2 if small else 10)) for name, part in parts.items()
    }
    speed = _images_per_second(model, rows, 2 if small else 20)
    work = sum(floor(model.config, 1, lengths).values()) / rows
    peak = peak_flops() or fastest_product(device)
    step = 1000 * rows / speed
    rest = step - taken["tower"] - taken["llm_forward_and_backward"]
    return {
        "milliseconds": {name: round(value, 2) for name, value in {**taken, "step": step, "rest": rest}.items()},
        "features": list(states.shape),
        "images_per_second": round(speed, 1),
        "mfu": round(speed * work / peak, 3),
    }


def float8(device, small):
    """Speed with and without, and the largest difference of the losses over the same steps."""
    losses, speed = {}, {}
    rows, steps = (2, 3) if small else (BATCH[1], 200)
    for on in (False, True):
        model = build(device)
        step, taken, losses[on] = Step(model, our_loss(model, on and not small)), [], []
        for batch, _ in _batches(model, steps, rows):
            taken.append(seconds(partial(step, batch)))
            losses[on].append(step.loss)
        speed[on] = rows / statistics.median(taken[1:])
        del model, step
    apart = max(abs(one - other) for one, other in zip(losses[False], losses[True], strict=True))
    return {"images_per_second": {"bf16": round(speed[False], 1), "fp8": round(speed[True], 1)}, "losses_apart": apart}


def compiled(device, small):
    """Seconds until the first step is done with compiled layers, and the speed after that."""
    model, rows = build(device), 2 if small else BATCH[1]
    plain = _images_per_second(model, rows, 1 if small else 20)
    compile_layers(model)
    step = Step(model, our_loss(model))
    warm = sum(seconds(partial(step, batch)) for batch, _ in _batches(model, 2, rows))
    speed = _images_per_second(model, rows, 1 if small else 20)
    return {"plain": round(plain, 1), "compiled": round(speed, 1), "seconds_to_warm_up": round(warm, 1)}


@torch.no_grad()
def generate(device, small):
    """Tokens a second with an image in the prompt, against the bare LLM from embeddings of the same length."""
    from transformers import AutoModelForCausalLM

    model, found = build(device).eval(), {}
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(model.config.text_config, dtype=model.get_input_embeddings().weight.dtype)
    bare.model, bare.lm_head = model.model.language_model, model.lm_head
    tokens = 8 if small else 128
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 2}
    for rows in (1, 2 if small else 32):
        batch, _ = draw_batch(model, 1, rows, torch.Generator().manual_seed(0))
        ids = batch["input_ids"][:, : 1 + model.config.num_image_tokens]
        ours = partial(model.generate, input_ids=ids, pixel_values=batch["pixel_values"], **settings)
        theirs = partial(bare.generate, input_ids=torch.full_like(ids, 5), **settings)
        times = {name: [seconds(run) for _ in range(3)] for name, run in (("ours", ours), ("bare LLM", theirs))}
        found[f"batch {rows}"] = {name: round(rows * tokens / min(taken), 1) for name, taken in times.items()}
    found["first token of a second question"] = _second_question(model, batch)
    return found


def _second_question(model, batch):
    """Milliseconds with what was computed kept, and with everything run again, over 200 tokens of conversation."""
    ids, pixels = batch["input_ids"][:1, : 1 + model.config.num_image_tokens], batch["pixel_values"][:1]
    past = torch.full((1, 200), 5, device=ids.device)
    before = torch.cat([ids, past], 1)
    question = torch.full((1, 20), 6, device=ids.device)

    def kept():
        model(input_ids=question, past_key_values=cache, use_cache=True)
        cache.crop(-question.shape[1])

    def again():
        model(input_ids=torch.cat([before, question], 1), pixel_values=pixels, use_cache=True)

    cache = model(input_ids=before, pixel_values=pixels, use_cache=True).past_key_values
    return {name: round(1000 * min(seconds(run) for _ in range(5)), 2) for name, run in (("kept", kept), ("again", again))}


def quickstart(device, small):
    """The quickstart's own summary, its seconds first."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "minigpt4", "quickstart", "--output", folder, *(["--minutes", "0.02"] if small else [])]
        taken = seconds(lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True))
        summary = json.loads((Path(folder) / "summary.json").read_text("utf-8"))
    return {"seconds": round(taken, 1), **{name: summary[name] for name in ("train_seconds", "stage1", "stage2")}}


def suite(device, small):
    """The last line of the test suite's GPU leg."""
    done = subprocess.run([*TESTS, "--collect-only"] if small else TESTS, capture_output=True, text=True, check=False)
    return {"status": done.returncode, "said": done.stdout.strip().splitlines()[-1:]}


PARTS = {
    "stage1": partial(against_peer, stage=1),
    "stage2": partial(against_peer, stage=2),
    "split": split,
    "float8": float8,
    "compile": compiled,
    "generate": generate,
    "quickstart": quickstart,
    "tests": suite,
}


def main():
    """Runs the parts one after the other, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the small form on this CPU, to check that the script runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=25, help="no part starts later than this (default: 25)")
    arguments = parser.parse_args()
    if not (arguments.small or torch.cuda.is_available()):
        raise ValueError("PyTorch sees no GPU here; expected one, or --small to try the script on this CPU")
    device = "cpu" if arguments.small else "cuda"
    results = {
        "device": "CPU" if arguments.small else torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }
    started = time.monotonic()
    for name in arguments.only:
        if time.monotonic() - started > 60 * arguments.minutes:
            results[name] = f"not run: {arguments.minutes:g} minutes were over"
            continue
        begun = time.monotonic()
        try:
            results[name] = PARTS[name](device, arguments.small)
        except Exception as error:  # the other parts are worth having
            results[name] = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        print(f"{name} ({time.monotonic() - begun:.0f} s): {results[name]}", flush=True)
        if not arguments.small:
            torch.cuda.empty_cache()
            write_json(RESULTS, results)
    failed = [name for name in arguments.only if str(results[name]).startswith("failed")]
    if failed:
        raise ValueError(f"{len(failed)} of {len(arguments.only)} parts failed: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "gpu"))
