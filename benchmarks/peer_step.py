"""python benchmarks/peer_step.py [--stage 2] [--steps N] [--batch N] [--compile] [--float8]

A training step of MiniGPT-4 against `Blip2ForConditionalGeneration` of transformers with a Llama text model, which is the
same architecture: the same weights, pixels and captions, only the projection trained, in turn in one process.

    ours    this package's model, collator and Trainer (its `compute_loss`)
    peer    the usual way: one padded batch, attention mask, logits for every position

Then each in a separate process for its peak memory over the weights. On a GPU: the published sizes (ViT-g, Q-Former, 7B)
with random weights in bf16. Without one: a small form in fp32, where tower, LLM and head have their shares of the full size.

Caption lengths: Conceptual Captions has 10.3 words a caption (standard deviation 4.5, median 9.0: Sharma et al. 2018, table
2), drawn log-normal and taken at 1.3 tokens a word and one for the end; cut at 32. Stage 2: 80 to 160 tokens after a
prompt of 30. Both losses are compared at each step. Writes
benchmarks/results/stage{1,2}_{step,memory}_{cpu_avx2,cpu_avx512,cuda}.json.
"""

import argparse
import ctypes
import datetime
import gc
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from tqdm import tqdm
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    TrainingArguments,
)

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from minigpt4.cli import run_reporting_errors
from minigpt4.configuration.recipe import Recipe
from minigpt4.durable_files import write_json
from minigpt4.training import frozen_llm
from minigpt4.training.run import versions
from minigpt4.training.trainer import MiniGPT4Trainer

RESULTS = Path(__file__).parent / "results"
BATCH = {1: 64, 2: 12}
PROMPT = {1: 0, 2: 30}  # tokens of text before the answer, beside BOS


def config(device):
    """The published sizes, or the small form: 30% of the FLOPs in the vision tower, 2% of the LLM's weights in its head."""
    if device == "cuda":
        full = MiniGPT4Config.preset("vicuna-7b")
        full.vision_config.initializer_range = 0.02  # the published 1e-10 expects weights to be loaded
        return full
    return MiniGPT4Config(
        vision_config=Blip2VisionConfig(
            hidden_size=320, intermediate_size=1396, num_hidden_layers=2, num_attention_heads=5, initializer_range=0.02
        ),
        qformer_config=Blip2QFormerConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1),
        text_config=LlamaConfig(
            vocab_size=640,
            hidden_size=640,
            intermediate_size=1720,
            num_hidden_layers=4,
            num_attention_heads=5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        ),
    )


def build(device):
    """Our model with random weights, ready to train: bf16 on a GPU but for the projection, fp32 on a CPU."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        model = MiniGPT4ForConditionalGeneration(config(device))
    torch.set_default_dtype(torch.float32)
    model.model.projection.float()
    return model.train()


def peer_of(ours):
    """The peer on the same tensors, except for its projection."""
    sizes = ours.config
    parts = {name: getattr(sizes, name).to_dict() for name in ("vision_config", "qformer_config", "text_config")}
    with torch.device("meta"):
        peer = Blip2ForConditionalGeneration(
            Blip2Config(**parts, num_query_tokens=sizes.num_query_tokens, image_token_index=sizes.image_token_id)
        )
    names = {
        "model.vision_tower.": "vision_model.",
        "model.projection.": "language_projection.",
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.": "",
    }
    weights = {}
    for name, tensor in ours.state_dict().items():
        start = next(start for start in names if name.startswith(start))
        weights[names[start] + name.removeprefix(start)] = tensor
    for name in ("language_projection.weight", "language_projection.bias"):
        weights[name] = weights[name].to(ours.get_input_embeddings().weight.dtype, copy=True)
    peer.load_state_dict(weights, assign=True)
    peer.language_model.model.rotary_emb = ours.model.language_model.rotary_emb  # its buffers are in no state_dict
    peer.vision_model.post_layernorm.eps = ours.model.vision_tower.post_layernorm.eps
    peer.requires_grad_(False).language_projection.requires_grad_(True)
    peer.train().qformer.eval()  # without its dropout, so that the losses can be compared
    return peer


def draw_lengths(stage, rows, generator):
    """Tokens of each answer; see the module."""
    if stage == 2:
        return torch.randint(80, 161, (rows,), generator=generator).tolist()
    words = torch.exp(2.245 + 0.418 * torch.randn(rows, generator=generator)).round().clamp(min=3)
    return ((1.3 * words).round() + 1).clamp(max=32).int().tolist()


def draw_batch(model, stage, rows, generator):
    """A padded batch as `MiniGPT4DataCollator` makes it, of random pixels and tokens: (batch, answer lengths)."""
    sizes, lengths = model.config, draw_lengths(stage, rows, generator)
    visual, prompt = sizes.num_image_tokens, PROMPT[stage]
    start = 1 + visual + prompt
    shape = rows, start + max(lengths)
    input_ids = torch.randint(3, sizes.text_config.vocab_size, shape, generator=generator)
    input_ids[:, 0], input_ids[:, 1 + prompt // 2 :][:, :visual] = 1, sizes.image_token_id
    position, length = torch.arange(shape[1]), torch.tensor(lengths)[:, None]
    attention_mask = (position < start + length).long()
    input_ids[attention_mask == 0] = sizes.text_config.pad_token_id
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": torch.where((position >= start) & (attention_mask == 1), input_ids, -100),
        "pixel_values": torch.randn(rows, 3, *[sizes.vision_config.image_size] * 2, generator=generator),
    }
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].to(model.get_input_embeddings().weight.dtype)
    return batch, lengths


def plan_of(model, stage, lengths):
    """What `MiniGPT4DataCollator(plan=True)` says of such a batch."""
    start = 1 + model.config.num_image_tokens + PROMPT[stage]
    return {
        "lengths": [start + length - 1 for length in lengths],
        "answers": lengths,
        "tokens": sum(start + length for length in lengths),
    }


def synchronisations(step, batch):
    """How often a step makes the host wait for the GPU, as PyTorch counts it; the loss is not looked at."""
    step(batch)  # what happens once only: memory, the optimizer's state
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step.run(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in said)


def floor(sizes, stage, lengths):
    """FLOPs that a batch cannot do without, by part (two for a multiplication and addition), counting only real tokens.

    The frozen LLM runs forward and, to its inputs, backward; its head where an answer token is predicted; the last token
    of an answer predicts nothing. Norms and activations are not counted.
    """
    vision, qformer, text = sizes.vision_config, sizes.qformer_config, sizes.text_config
    width, patches, queries = vision.hidden_size, 1 + sizes.num_patches, sizes.num_image_tokens
    block = 4 * width**2 + 2 * width * vision.intermediate_size
    tower = vision.num_hidden_layers * (2 * patches * block + 4 * patches**2 * width)
    tower += 2 * sizes.num_patches * 3 * vision.patch_size**2 * width
    inner = qformer.hidden_size
    looking = 2 * queries * 2 * inner**2 + 2 * patches * 2 * width * inner + 4 * queries * patches * inner
    block = 2 * queries * (4 * inner**2 + 2 * inner * qformer.intermediate_size) + 4 * queries**2 * inner
    bridge = qformer.num_hidden_layers * block + -(-qformer.num_hidden_layers // qformer.cross_attention_frequency) * looking
    projection = 2 * 2 * queries * inner * text.hidden_size
    block = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    tokens = [queries + PROMPT[stage] + length for length in lengths]  # BOS and no last token
    llm = sum(text.num_hidden_layers * (4 * n * block + 6 * n**2 * text.hidden_size) for n in tokens)
    return {
        "vision tower": tower * len(lengths),
        "Q-Former and projection": (bridge + projection) * len(lengths),
        "LLM": llm,
        "head": 4 * sum(lengths) * text.hidden_size * text.vocab_size,
    }


def weights_read(model):
    """GB of weights that a step reads at least: vision forward, LLM and head forward and backward."""
    size = {name: weight.numel() * weight.element_size() for name, weight in model.named_parameters()}
    twice = sum(bytes_ for name, bytes_ in size.items() if name.startswith(("model.language_model.layers", "lm_head")))
    return (sum(size.values()) + twice) / 1e9


def fastest_product(device):
    """FLOP/s of the fastest large matrix product that the device was seen to do, in the precision of the run."""
    size = 8192 if device == "cuda" else 1024
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    products = [lambda: one @ one]
    if device == "cpu" and torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(one, one, None, "none", [], ""))
    return 2 * size**3 / min(seconds(product) for product in products for _ in range(20))


def seconds(run):
    """Wall-clock seconds of run()."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Step:
    """Forward, backward and AdamW on what a model trains; `loss` is the last one's. `loss_of(batch)`: by default plain."""

    def __init__(self, model, loss_of=None, context=nullcontext, learning_rate=1e-4):
        self.loss_of, self.context = loss_of or (lambda batch: model(**batch).loss), context
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=learning_rate)

    def __call__(self, batch):
        self.loss = self.run(batch).item()

    def run(self, batch):
        """The same without looking at the loss, which is returned."""
        with self.context():
            loss = self.loss_of(batch)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def our_loss(model, float8=False):
    """The loss of a batch as our Trainer computes it."""
    recipe = Recipe()
    recipe.train.float8 = float8
    arguments = TrainingArguments(tempfile.gettempdir(), report_to="none", use_cpu=model.device.type == "cpu")
    return partial(MiniGPT4Trainer(model=model, args=arguments, recipe=recipe).compute_loss, model)


def without_onednn():
    """A context in which our frozen layers are computed the usual way."""
    return mock.patch.object(frozen_llm, "frozen_linears", lambda model, float8: nullcontext())


def compile_layers(model):
    """Each layer of tower and LLM on its own, for any batch and length."""
    for layer in [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]:
        layer.compile(dynamic=True)


def measure_steps(device, stage, arguments):
    """{name: [seconds of each step]} in turn on the same batches, our model, the floors of the batches, the losses."""
    ours = build(device)
    loss_of = our_loss(ours, arguments.float8)
    ways = {"ours": Step(ours, loss_of), "peer": Step(peer_of(ours))}
    if device == "cpu":  # the weights are those of "ours"
        ways["ours without oneDNN"] = Step(ours, loss_of, without_onednn, learning_rate=0.0)
    if arguments.compile:
        compile_layers(ours)
    generator = torch.Generator().manual_seed(0)
    taken, floors, losses = {name: [] for name in ways}, [], []
    for step in tqdm(range(arguments.steps + 2)):  # the first two warm up
        batch, lengths = draw_batch(ours, stage, arguments.batch, generator)
        planned = {**batch, "plan": plan_of(ours, stage, lengths)}
        times = {name: seconds(partial(way, batch if name == "peer" else planned)) for name, way in ways.items()}
        if step >= 2:
            floors.append(floor(ours.config, stage, lengths))
            losses.append((ways["ours"].loss, ways["peer"].loss))
            for name in ways:
                taken[name].append(times[name])
    return taken, ours, floors, losses


def measured_memory(side, device, stage, arguments):
    """Peak MB over the weights of two steps of "ours" or "peer" in a separate process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_memory, (side, device, stage, arguments))


def _measure_memory(side, device, stage, arguments):
    model = build(device)
    if side == "peer":
        model, ours = peer_of(model), model
        ours.requires_grad_(False)
    step = Step(model, our_loss(model) if side == "ours" else None)
    generator = torch.Generator().manual_seed(0)
    model_for_batch = ours if side == "peer" else model
    batches = [draw_batch(model_for_batch, stage, arguments.batch, generator)[0] for _ in range(2)]
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what building left behind
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _resident("VmRSS")
    for batch in batches:
        step(batch)
    after = torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")
    return (after - before) / 1e6


def _resident(field):
    [line] = [line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def main():
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1)
    parser.add_argument("--steps", type=int, default=10, help="steps of each way (default: 10)")
    parser.add_argument("--batch", type=int, help="rows per step (default: 64 in stage 1, 12 in stage 2)")
    parser.add_argument("--compile", action="store_true", help="compile our layers")
    parser.add_argument(
        "--float8", action="store_true", help="experimental: our frozen layers in FP8 (on a GPU that has it)"
    )
    arguments = parser.parse_args()
    arguments.batch = arguments.batch or BATCH[arguments.stage]
    if arguments.steps < 1 or arguments.batch < 1:
        raise ValueError(f"--steps is {arguments.steps}, --batch {arguments.batch}; expected at least 1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.float8 and (device == "cpu" or arguments.compile):
        raise ValueError("--float8 needs a GPU, and layers that are not compiled; leave out --float8 or --compile")
    if device == "cpu":
        print("no GPU: the small form, in fp32")
        instructions = torch.backends.cpu.get_cpu_capability()
        where, machine = f"CPU with {instructions}, {torch.get_num_threads()} threads", f"cpu_{instructions.lower()}"
    else:
        where, machine = torch.cuda.get_device_name(), device

    stage, batch = arguments.stage, arguments.batch
    taken, model, floors, losses = measure_steps(device, stage, arguments)
    pairs = {name: list(zip(taken["peer"], taken[name], strict=True)) for name in taken}
    ratio = {name: statistics.median(peer / own for peer, own in pairs[name]) for name in pairs}
    speed = {name: batch / statistics.median(taken[name]) for name in taken}
    work = {part: statistics.mean(one[part] for one in floors) / batch / 1e9 for part in floors[0]}
    fastest = fastest_product(device)
    limits = [f"{name}={os.environ[name]}" for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA") if name in os.environ]
    common = {
        "device": where,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "command": " ".join([*limits, "python", "benchmarks/peer_step.py", *sys.argv[1:]]),
    }
    step = {
        "name": f"stage {stage}, batch {batch}: images a second against Blip2ForConditionalGeneration",
        "value": round(speed["ours"], 1),
        "unit": "images/s",
        "peer": round(speed["peer"], 1),
        "ratio": round(ratio["ours"], 2),
        **common,
        "largest_difference_of_losses": max(abs(one - other) for one, other in losses),
        "floor": {
            "gflop_an_image": {part: round(gflop, 2) for part, gflop in work.items()},
            "vision_share": round(work["vision tower"] / sum(work.values()), 3),
            "weights_read_gb_a_step": round(weights_read(model), 2),
            "fastest_product_gflop_s": round(fastest / 1e9),
            "share_of_it_reached": round(speed["ours"] * sum(work.values()) * 1e9 / fastest, 3),
            "share_of_it_reached_by_peer": round(speed["peer"] * sum(work.values()) * 1e9 / fastest, 3),
        },
    }
    if stage == 2:
        step["seconds_for_400_steps"] = round(400 * statistics.median(taken["ours"]), 1)
    if "ours without oneDNN" in ratio:
        step["ratio_without_onednn"] = round(ratio["ours without oneDNN"], 2)
    if device == "cuda":
        drawn, lengths = draw_batch(model, stage, batch, torch.Generator().manual_seed(0))
        planned = {**drawn, "plan": plan_of(model, stage, lengths)}
        step["synchronisations_in_a_step"] = synchronisations(Step(model, our_loss(model, arguments.float8)), planned)
    print(step)
    write_json(RESULTS / f"stage{stage}_step_{machine}.json", step)

    del model
    gc.collect()
    torch.cuda.empty_cache()
    peaks = {side: measured_memory(side, device, stage, arguments) for side in ("ours", "peer")}
    memory = {
        "name": f"stage {stage}, batch {batch}: peak memory over the weights",
        "value": round(peaks["ours"]),
        "unit": "MB",
        "peer": round(peaks["peer"]),
        "ratio": round(peaks["ours"] / peaks["peer"], 2),
        **common,
    }
    print(memory)
    write_json(RESULTS / f"stage{stage}_memory_{machine}.json", memory)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "peer_step"))
