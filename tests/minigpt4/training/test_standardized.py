"""Training in standardized coordinates is training of the standardized layer."""

import torch
from torch import nn

from minigpt4.training.standardized import OFFSET, StandardizedAdamW


def test_updates_are_those_of_a_layer_with_standardized_inputs():
    torch.manual_seed(0)
    features = torch.randn(50, 4, 6) * torch.tensor([1.0, 5, 0.1, 2, 1, 3]) + torch.arange(6)
    targets = torch.randn(50, 4, 3)
    layer = nn.Linear(6, 3)
    mean, std = features.flatten(0, 1).mean(0), features.flatten(0, 1).std(0, unbiased=False)
    weight = nn.Parameter(layer.weight.detach() * std)
    bias = nn.Parameter((layer.bias.detach() + layer.weight.detach() @ mean) / OFFSET)
    ours = StandardizedAdamW(layer.parameters(), layer, features, lr=1e-2, weight_decay=0.0)
    plain = torch.optim.AdamW([weight, bias], lr=1e-2, weight_decay=0.0)
    for _ in range(20):
        ours.zero_grad()
        (layer(features) - targets).square().mean().backward()
        ours.step()
        plain.zero_grad()
        expected = (features - mean) / std @ weight.T + OFFSET * bias
        (expected - targets).square().mean().backward()
        plain.step()
    torch.testing.assert_close(layer(features), (features - mean) / std @ weight.T + OFFSET * bias, rtol=1e-3, atol=1e-3)


def test_a_channel_that_never_moves_is_no_division_by_zero():
    features = torch.zeros(10, 4)
    layer = nn.Linear(4, 2)
    optimizer = StandardizedAdamW(layer.parameters(), layer, features, lr=1e-2)
    layer(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
