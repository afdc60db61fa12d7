"""A training step asks the device for nothing: what it has to know, the collator knew on the host.

PyTorch's meta device has no values, so whatever would wait for one raises there.
"""

from contextlib import nullcontext

import pytest
import torch

from minigpt4.processing.collator import MiniGPT4DataCollator
from minigpt4.training.frozen_llm import FrozenLLM
from minigpt4.training.grouped_loss import answer_places, row_lengths
from minigpt4.training.throughput import Counts


@pytest.fixture
def batch(processor, picture):
    """Four captions of different lengths, one of them empty but for its end, with the collator's plan."""
    texts = ["a cat", "a dog on a red mat beside a very small house", "x", "two people on the beach"]
    collator = MiniGPT4DataCollator(processor, max_answer_tokens=8, plan=True)
    return collator([{"image": picture(i), "text": text} for i, text in enumerate(texts)])


def _to(batch, device):
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _trained(model, batch, tokens_at_once):
    model.zero_grad()
    with FrozenLLM(model, tokens_at_once):
        loss = model(**batch, num_items_in_batch=(batch["labels"] != -100).sum()).loss
    loss.backward()
    return loss, model.model.projection.weight.grad.clone()


def test_a_step_waits_for_no_number_of_the_device(original, batch, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # it does not know the meta device
    monkeypatch.setattr(torch, "autocast", lambda device, enabled: nullcontext())
    model = original.to("meta").train()
    batch = _to(batch, "meta")
    loss, gradient = _trained(model, batch, tokens_at_once=40)
    assert loss.is_meta and gradient.shape == model.model.projection.weight.shape
    del batch["plan"]
    with pytest.raises((RuntimeError, NotImplementedError)):  # without it, numbers are asked for
        _trained(model, batch, tokens_at_once=40)


def test_the_plan_changes_no_number(original, batch):
    model = original.train()
    with_plan = _trained(model, batch, tokens_at_once=40)
    plan = batch.pop("plan")
    for found, expected in zip(with_plan, _trained(model, batch, tokens_at_once=40), strict=True):
        assert torch.equal(found, expected)
    targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    assert plan["lengths"] == row_lengths(targets)
    assert plan["answers"] == (targets != -100).sum(1).tolist()
    assert plan["tokens"] == batch["attention_mask"].sum()
    places = answer_places(targets, sum(plan["answers"]))
    assert torch.equal(places, answer_places(targets)) and torch.equal(places, (targets != -100).flatten().nonzero()[:, 0])


def test_the_counts_of_a_plan_are_those_of_the_tensors(batch):
    with_plan, without = Counts(), Counts()
    with_plan.add(batch)
    without.add({name: value for name, value in batch.items() if name != "plan"})
    assert with_plan == without
