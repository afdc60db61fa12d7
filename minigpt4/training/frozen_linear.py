"""The fastest way to compute frozen linear layers: oneDNN on a CPU, and FP8 on a GPU if requested.

PyTorch multiplies fp32 matrices with MKL, which uses AVX-512 only on Intel: on an AMD EPYC (Zen 5) it reaches 105 GFLOP/s
per core, and oneDNN, which PyTorch also includes, 225 to 250, forward and backward, or 125 if limited to AVX2. The
arithmetic is fp32 either way; only the order of summation may differ.

FP8 rounds weights, inputs and gradients (each row scaled to the range of e4m3) and accumulates in higher precision: two
products in the time of one on Ada, Hopper and later. A frozen weight is rounded once. (torchao's layers for training round
it at each step, and compute a gradient for it.) Experimental: tested on a CPU, not run on a GPU yet.
"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary


def frozen_linears(model, float8=False):
    """A context in which the frozen linear layers of a `MiniGPT4ForConditionalGeneration` run the fastest way, or in FP8.

    It has no effect in compiled code, where the compiler calls oneDNN itself, or when activations are recomputed, which
    happens in the backward pass, outside the context.
    """
    compiled = torch.compiler.is_compiling() or any(module._compiled_call_impl for module in model.modules())
    if compiled or any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return nullcontext()
    if float8:
        return FrozenLinears(_fits_float8, _Float8Linear)
    return FrozenLinears(_fits_onednn, _OneDNNLinear) if model.device.type == "cpu" else nullcontext()


class FrozenLinears(TorchFunctionMode):
    """A context that computes suitable frozen linear layers with the autograd Function `linear`.

    `fits(inputs, weight)` checks the tensors; PyTorch computes layers that are trained, quantized or in autocast.
    """

    def __init__(self, fits, linear):
        super().__init__()
        self.fits, self.linear = fits, linear

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.linear and not kwargs:
            inputs, weight, bias = (*args, None)[:3]
            frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
            plain = type(weight) in (torch.Tensor, nn.Parameter) and inputs.dtype == weight.dtype and inputs.numel() > 0
            if frozen and plain and not torch.is_autocast_enabled(inputs.device.type) and self.fits(inputs, weight):
                return self.linear.apply(inputs, weight, bias)
        return function(*args, **(kwargs or {}))


class _OneDNNLinear(torch.autograd.Function):
    """inputs [..., I], weight [O, I], bias [O] -> [..., O], with a gradient only for the inputs."""

    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(weight)
        return _onednn(inputs, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        [weight] = ctx.saved_tensors
        return _onednn(gradient, weight.t()), None, None


def _fits_onednn(inputs, weight):
    cpu = inputs.device.type == weight.device.type == "cpu" and weight.dtype == torch.float32
    return cpu and torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _onednn(inputs, weight, bias=None):
    """What torch.compile calls for a linear layer on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class _Float8Linear(torch.autograd.Function):
    """As `_OneDNNLinear`, for bf16."""

    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(weight)
        outputs = _float8(inputs, *_frozen_float8(weight)[0])
        return outputs if bias is None else outputs + bias

    @staticmethod
    def backward(ctx, gradient):
        [weight] = ctx.saved_tensors
        return _float8(gradient, *_frozen_float8(weight)[1]), None, None


_ROUNDED = WeakTensorKeyDictionary()


def _fits_float8(inputs, weight):
    return weight.dtype == torch.bfloat16 and all(size % 16 == 0 for size in weight.shape)


def _frozen_float8(weight):
    """A weight [O, I] and its transpose, each as `_round_rows` gives it; rounded when first seen."""
    if weight not in _ROUNDED:
        _ROUNDED[weight] = _round_rows(weight), _round_rows(weight.t().contiguous())
    return _ROUNDED[weight]


def _round_rows(matrix):
    """[R, C] -> e4m3 [R, C] and the scale of each row, fp32 [R, 1]."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    scale = matrix.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / largest
    return (matrix / scale).clamp(-largest, largest).to(torch.float8_e4m3fn), scale


def _float8(inputs, weight, scale):
    """inputs [..., I] in bf16, weight [O, I] in e4m3 with scale [O, 1] -> [..., O] in bf16."""
    rows, row_scale = _round_rows(inputs.reshape(-1, inputs.shape[-1]))
    outputs = torch._scaled_mm(rows, weight.t(), scale_a=row_scale, scale_b=scale.t(), out_dtype=inputs.dtype)
    return outputs.view(*inputs.shape[:-1], -1)
