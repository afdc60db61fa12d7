"""FLOPs of a training step against PyTorch's own count, and the figures between two logs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minigpt4.training.throughput import Throughput, flops


def _counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_flops_are_those_that_pytorch_counts(original):
    image, token, answer = flops(original)
    base = original.model
    pixels = torch.rand(2, 3, 56, 56)
    # Attention's products and the patch embedding's other arithmetic are a large share of a tiny tower, not of a real one.
    assert image == pytest.approx(_counted(lambda: base.get_vision_features(pixels)) / 2, rel=0.6)
    hidden = torch.rand(1, 40, original.config.text_config.hidden_size, requires_grad=True)
    lm = base.language_model.requires_grad_(False)
    linear = _counted(lambda: lm(inputs_embeds=hidden, use_cache=False).last_hidden_state.sum().backward())
    assert 40 * token == pytest.approx(linear, rel=0.35)
    assert 10 * answer == pytest.approx(_counted(lambda: original.lm_head(hidden[0, :10]).sum().backward()), rel=0.01)
    assert flops(original, cached=True)[0] == 0


def test_figures_count_what_was_added(original, monkeypatch):
    clock = iter([10.0, 12.0, 12.0, 13.0, 13.0])
    monkeypatch.setattr("minigpt4.training.throughput.time.monotonic", lambda: next(clock))
    throughput = Throughput(original, processes=2)
    batch = {
        "pixel_values": torch.zeros(3, 3, 56, 56),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]),
        "labels": torch.tensor([[-100, 5, 6, -100]]),
    }
    throughput.counts.add(batch)
    throughput.counts.waited += 0.5
    assert throughput.figures() == {"images_per_second": 3.0, "tokens_per_second": 3.0, "data_wait": 0.25}
    throughput.counts.add({**batch, "vision_features": batch.pop("pixel_values")})
    assert throughput.figures()["images_per_second"] == 6.0
