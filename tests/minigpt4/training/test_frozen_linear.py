"""oneDNN's and FP8 linear layers against PyTorch's own: values, gradients, and what is left to PyTorch."""

import copy

import pytest
import torch
from torch import nn

from minigpt4.training import frozen_linear
from minigpt4.training.frozen_linear import FrozenLinears, frozen_linears
from minigpt4.training.frozen_llm import FrozenLLM

needs_avx2 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="oneDNN is used only on CPUs with AVX2 or AVX-512",
)


@pytest.fixture
def onednn():
    """The context that `frozen_linears` gives on a CPU."""
    return FrozenLinears(frozen_linear._fits_onednn, frozen_linear._OneDNNLinear)


@pytest.fixture
def products(monkeypatch):
    """The shapes that went through oneDNN."""
    shapes, multiply = [], frozen_linear._onednn

    def note(inputs, weight, bias=None):
        shapes.append(tuple(weight.shape))
        return multiply(inputs, weight, bias)

    monkeypatch.setattr(frozen_linear, "_onednn", note)
    return shapes


@needs_avx2
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 24), (24,)])
def test_values_and_gradients_are_pytorchs(shape, bias, products, onednn):
    layer = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    inputs = torch.randn(shape, requires_grad=True)
    weights = torch.randn(*shape[:-1], 40)
    [expected] = torch.autograd.grad((layer(inputs) * weights).sum(), inputs)
    with onednn:
        outputs = layer(inputs)
    [found] = torch.autograd.grad((outputs * weights).sum(), inputs)
    torch.testing.assert_close(outputs, layer(inputs), rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert products == [(40, 24), (24, 40)]


def test_all_else_is_left_to_pytorch(products, onednn):
    frozen = nn.Linear(8, 8).requires_grad_(False)
    with onednn:
        nn.Linear(8, 8, bias=False)(torch.randn(2, 8))  # trained
        half_frozen = nn.Linear(8, 8)
        half_frozen.weight.requires_grad_(False)
        half_frozen(torch.randn(2, 8)).sum().backward()
        assert half_frozen.bias.grad is not None
        frozen.double()(torch.randn(2, 8).double())
        frozen.bfloat16()(torch.randn(2, 8).bfloat16())
        frozen.float()(torch.randn(0, 8))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert frozen(torch.randn(2, 8)).dtype == torch.bfloat16
    assert products == []


@needs_avx2
def test_training_asks_onednn_for_each_frozen_layer(products, original, collator, picture):
    """Forward through tower, Q-Former and LLM, backward only through the LLM; the projection is trained."""
    batch = collator([{"image": picture(), "text": "a cat"}])
    original.train()(**batch)
    assert products == []
    with FrozenLLM(original):
        original(**batch).loss.backward()
    llm = [module for module in original.model.language_model.modules() if isinstance(module, nn.Linear)]
    frozen = [
        module for module in original.modules() if isinstance(module, nn.Linear) and module.weight.requires_grad is False
    ]
    assert len(products) == len(frozen) + len(llm) + 1  # and the head
    assert tuple(original.model.projection.weight.shape) not in products


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
def test_what_is_compiled_or_computed_again_is_left_to_pytorch(original):
    """Backward computes activations again, where no context reaches; a forward pass of another kind would not fit."""
    compiled = copy.deepcopy(original)
    compiled.model.language_model.layers[0].compile()
    assert isinstance(frozen_linears(original), FrozenLinears)
    assert not isinstance(frozen_linears(compiled), FrozenLinears)
    original.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert not isinstance(frozen_linears(original), FrozenLinears)


@pytest.mark.parametrize("bias", [True, False])
def test_float8_is_near(bias):
    layer = nn.Linear(64, 96, bias=bias).bfloat16().requires_grad_(False)
    inputs = torch.randn(2, 32, 64, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(2, 32, 96, dtype=torch.bfloat16)
    expected = layer(inputs)
    [expected_gradient] = torch.autograd.grad((expected * weights).sum(), inputs)
    with FrozenLinears(frozen_linear._fits_float8, frozen_linear._Float8Linear):
        found = layer(inputs)
    [gradient] = torch.autograd.grad((found * weights).sum(), inputs)
    for one, other in ((found, expected), (gradient, expected_gradient)):
        assert 0 < (one - other).norm() < 0.05 * other.norm()


def test_float8_training_is_near(original, collator, picture):
    """In bf16, where a layer's widths are multiples of 16."""
    batch = collator([{"image": picture(), "text": "a cat"}])
    original.bfloat16().train()
    losses = []
    for float8 in (False, True):
        with FrozenLLM(original, float8=float8):
            loss = original(**batch).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
