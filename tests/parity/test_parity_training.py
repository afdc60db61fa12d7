"""Training of both variants against plain loops (reference.py): loss, gradient, and ten steps of the real Trainer."""

import math
from contextlib import nullcontext

import pytest
import torch
from reference import IMAGE

from minigpt4 import MiniGPT4DataCollator
from minigpt4.configuration.recipe import Recipe, TrainSection
from minigpt4.processing.data.datasets import PictureTexts
from minigpt4.training.frozen_llm import FrozenLLM
from minigpt4.training.run import train

INSTRUCTION = "Describe this image in detail."
LONG = "a man and a dog and a cat and a kite on the beach at sunset in the city with people " * 12
TEXTS = [
    "a cat",
    "a dog on a red mat",
    LONG.strip(),
    "the beach",
    "a man with a hat",
    "it is red",
    "people",
    "a clock tower",
]
TOLERANCE = 0.001  # of the change; just leaving out weight decay would exceed it
STAGES = {  # prompt, end of the answer, its longest: of Vicuna and of Llama-2
    ("vicuna", 1): (IMAGE, "\n", 32),
    ("vicuna", 2): (f"###Human: <Img>{IMAGE}</Img> {INSTRUCTION} ###Assistant: ", "###", 160),
    ("llama-2", 1): (IMAGE, "\n", 32),
    ("llama-2", 2): (f"[INST] <Img>{IMAGE}</Img> {INSTRUCTION} [/INST] ", "</s>", 160),
}


class Drawn(PictureTexts):
    """Notes which examples were drawn, in their order."""

    def __init__(self, *args):
        super().__init__(*args)
        self.drawn = []

    def __getitem__(self, index):
        self.drawn.append(index)
        return super().__getitem__(index)


def example(text, stage):
    return {"text": text, "instruction": INSTRUCTION} if stage == 2 else {"text": text}


@pytest.mark.parametrize(("variant", "stage"), STAGES)
def test_loss_and_gradient_are_the_originals(
    variant, stage, original, processor, reference, llama_2, llama_2_processor, llama_2_reference, picture
):
    model, processor, plain = (
        (original, processor, reference) if variant == "vicuna" else (llama_2, llama_2_processor, llama_2_reference)
    )
    prompt, end, longest = STAGES[variant, stage]
    pictures = [picture(seed) for seed in range(4)]
    batch = MiniGPT4DataCollator(processor, max_answer_tokens=longest)(
        [{"image": image, **example(text, stage)} for image, text in zip(pictures, TEXTS, strict=False)]
    )
    features = plain.vision_features(pictures)[:, None]
    rows = [(seen, prompt, text + end, longest) for seen, text in zip(features, TEXTS, strict=False)]
    weight, bias = (tensor.clone().requires_grad_() for tensor in (plain.weight, plain.bias))
    expected = plain.loss(rows, weight, bias)
    expected.backward()
    for way in (nullcontext(), FrozenLLM(model)):  # a plain trainer's and ours
        model.train().zero_grad()
        with way:
            loss = model(**batch).loss
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=0, atol=5e-6)
        torch.testing.assert_close(model.model.projection.weight.grad, weight.grad, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.model.projection.bias.grad, bias.grad, rtol=0, atol=1e-5)


WARM_UP = TrainSection(  # the first ten of stage 1's 5,000 warmup steps
    learning_rate=1e-4, min_learning_rate=8e-5, warmup_learning_rate=1e-6, warmup_steps=5000, max_answer_tokens=32
)
PEAK = TrainSection(  # stage 2 from its peak on, in ten steps down to the lowest
    learning_rate=3e-5, min_learning_rate=1e-5, warmup_learning_rate=1e-6, warmup_steps=0, max_answer_tokens=160
)


def planned_rate(section, step, total):
    """The original's: a line while warming up, else a cosine over all steps."""
    if step < section.warmup_steps:
        return 1e-6 + (section.learning_rate - 1e-6) * step / section.warmup_steps
    low = section.min_learning_rate
    return (section.learning_rate - low) / 2 * (1 + math.cos(math.pi * step / total)) + low


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False], ids=["features", "pictures"])
@pytest.mark.parametrize(("stage", "section"), [(1, WARM_UP), (2, PEAK)], ids=["warm-up", "3e-5"])
def test_ten_steps_change_the_projection_as_plain_adamw_does(
    stage, section, cached, original, processor, reference, picture, tmp_path
):
    """The change, not the weights: those hardly move at such rates and would be equal whatever was done."""
    pictures = [picture(seed) for seed in range(4)]
    texts = [{"picture": index % 4, **example(text, stage)} for index, text in enumerate(TEXTS)]
    dataset = Drawn([{"image": image} for image in pictures], texts)
    recipe = Recipe(stage=stage, output=str(tmp_path / "run"))
    settings = {"steps": 10, "batch_size": 3, "weight_decay": 0.05, "cache_features": cached}
    recipe.train = TrainSection(**{**vars(section), **settings})
    original.config.base_parts = {"model": {"repo": "tiny", "revision": None}}  # what is saved is light
    trained, _, _ = train(recipe, original, processor, dataset)

    prompt, end, longest = STAGES["vicuna", stage]
    features = reference.vision_features(pictures)[:, None]
    weight, bias = (tensor.clone().requires_grad_() for tensor in (reference.weight, reference.bias))
    groups = [{"params": [weight], "weight_decay": 0.05}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, foreach=False)
    batches = epochs(dataset.drawn, len(TEXTS), batch_size=3)
    for step in range(10):
        for group in optimizer.param_groups:
            group["lr"] = planned_rate(recipe.train, step, total=10)
        rows = [(features[index % 4], prompt, TEXTS[index] + end, longest) for index in batches[step]]
        optimizer.zero_grad()
        reference.loss(rows, weight, bias).backward()
        optimizer.step()

    for found, expected, before in (
        (trained.model.projection.weight, weight, reference.weight),
        (trained.model.projection.bias, bias, reference.bias),
    ):
        change, found_change = (expected - before).detach(), (found - before).detach()
        assert (found_change - change).norm() / change.norm() < TOLERANCE


def epochs(drawn, length, batch_size):
    """The batches of examples drawn in their order; the last of an epoch is what is left."""
    whole = [drawn[start : start + length] for start in range(0, len(drawn), length)]
    return [epoch[start : start + batch_size] for epoch in whole for start in range(0, len(epoch), batch_size)]
