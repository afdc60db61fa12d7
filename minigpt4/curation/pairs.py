"""Samples two answers about each image, for `judge` to decide which of them invents less.

The model is the one to be trained with the preferences afterwards, asked in the form in which people, and TRL, ask it. Two
answers that differ in more than what they invent are not compared: one that is cut off or repetitive is not better for
saying less.
"""

import hashlib
from collections import Counter

import torch

from minigpt4.inference.generation import batch_answers, chat_prompt
from minigpt4.metrics.failures import failure

from ..processing.data.scenes import DETAIL_INSTRUCTIONS
from .generate import Describer, in_batches

SAME = "the same answer twice"


def sample_pairs(store, sampler, batch_size=16, seed=0):
    """Has a local model answer twice about every image without a pair; returns a `Report`.

    Args:
        sampler: a `Sampler`. seed: of sampling; a batch's random numbers follow from it and from the batch's first picture.
    """
    problems = Counter()

    def work(rows, pixels):
        pairs = sampler(rows, pixels)
        problems.update(f"not to be compared ({pair['problem']})" for pair in pairs if pair["problem"])
        return pairs

    report = in_batches(store, "pairs", sampler, work, batch_size, seed)
    report.counts.update(problems)
    return report


class Sampler(Describer):
    """A local model that answers twice about each image; the arguments are those of a `Describer`.

    Args:
        temperature: for sampling; above 0, or both answers would be the same.
    """

    def __init__(self, model, processor, name, temperature=1.0, **decoding):
        decoding = {"do_sample": True, "num_beams": 1, "temperature": temperature, **decoding}
        super().__init__(model, processor, name, **decoding)

    def settings(self):
        """What a run records about it."""
        told = super().settings()
        return {key: told[key] for key in ("model", "revision", "decoding")} | {"questions": DETAIL_INSTRUCTIONS}

    @torch.inference_mode()
    def __call__(self, rows, pixels):
        """The rows and pixel_values [N, 3, H, W] of a batch -> the rows to record; pictures are encoded once for both."""
        features = self.model.model.get_vision_features(pixels.to(self.model.device))
        questions = [question(row["picture"]) for row in rows]
        prompts = [chat_prompt(self.processor, asked) for asked in questions]
        firsts, seconds = (batch_answers(self.model, self.processor, prompts, features, **self.decoding) for _ in range(2))
        return list(map(paired, rows, questions, firsts, seconds))


def question(picture):
    """Which of the paper's four instructions is asked about a picture (its sha256): always the same one."""
    return DETAIL_INSTRUCTIONS[int(hashlib.sha256(picture.encode()).hexdigest()[:8], 16) % len(DETAIL_INSTRUCTIONS)]


def paired(row, asked, first, second):
    """The row to record for two answers, with the reason why they cannot be compared, or None."""
    first, second = first.strip(), second.strip()
    same = SAME if first.split() == second.split() else None
    problem = same or failure(first, asked) or failure(second, asked)
    return {"picture": row["picture"], "question": asked, "first": first, "second": second, "problem": problem}
