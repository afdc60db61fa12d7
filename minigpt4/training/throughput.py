"""Training speed: images and tokens per second, the share of time spent waiting for data, and MFU.

MFU (model FLOPs utilisation, PaLM, arXiv 2204.02311) counts only what the recipe needs: the frozen vision parts
forward, the LLM forward and backward to its input (no weight gradients, it is frozen), the head on the answers.
"""

import time
from dataclasses import dataclass

import torch

# Dense bf16 FLOP/s from the manufacturers, by a part of `torch.cuda.get_device_name()`.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass
class Counts:
    """What training consumed in one process: images, tokens (without padding), answer tokens and seconds."""

    images: int = 0
    tokens: int = 0
    answers: int = 0
    waited: float = 0.0

    def add(self, batch):
        """Counts a batch of the collator."""
        pictures = batch.get("pixel_values", batch.get("vision_features"))
        self.images += 0 if pictures is None else len(pictures)
        if plan := batch.get("plan"):  # known on the host, wherever the tensors are
            self.tokens, self.answers = self.tokens + plan["tokens"], self.answers + sum(plan["answers"])
            return
        self.tokens += int(batch["attention_mask"].sum())
        self.answers += int((batch["labels"] != -100).sum())


class Throughput:
    """Figures for the time between two calls of `figures`.

    Args:
        model: the model that is trained.
        processes: how many train in parallel; the figures are for all of them together.
        cached: whether the vision parts' output is computed beforehand and costs nothing in a step.
    """

    def __init__(self, model, processes=1, cached=False):
        self.image_flops, self.token_flops, self.answer_flops = flops(model, cached)
        self.processes = processes
        self.peak = peak_flops()
        self.restart()

    def restart(self):
        """Resets the counts."""
        self.counts, self.since = Counts(), time.monotonic()

    def figures(self):
        """{name: value} since the last call; `mfu` on devices whose peak is known."""
        counts, seconds = self.counts, max(time.monotonic() - self.since, 1e-9)
        found = {
            "images_per_second": self.processes * counts.images / seconds,
            "tokens_per_second": self.processes * counts.tokens / seconds,
            "data_wait": counts.waited / seconds,
        }
        if self.peak is not None:
            work = counts.images * self.image_flops + counts.tokens * self.token_flops + counts.answers * self.answer_flops
            found["mfu"] = work / seconds / self.peak
        self.restart()
        return {name: round(value, 4 if value < 1 else 1) for name, value in found.items()}


def flops(model, cached=False):
    """(FLOPs per image, per token in the LLM, per answer token in the head) in a training step.

    Two FLOPs for each weight that a token meets; attention's own products, below 2% at these lengths, are left out.
    """
    base, config = model.base_model, model.config
    image = 0
    if not cached:
        image = 2 * _weights(base.vision_tower) * (config.num_patches + 1)
        if base.qformer is not None:
            image += 2 * _weights(base.qformer) * config.num_query_tokens
    embeddings = base.language_model.get_input_embeddings().weight.numel()
    token = 4 * (_weights(base.language_model) - embeddings)
    answer = 4 * config.text_config.vocab_size * config.text_config.hidden_size
    return image, token, answer


def peak_flops():
    """FLOP/s of this process's GPU in bf16, or None if there is none or it is unknown."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def _weights(module):
    return sum(parameter.numel() for parameter in module.parameters())
