"""The embedded default as it ships, on the CPU at hand; `make test-avx2` also runs this file on AVX2 instructions only."""

import copy
import time

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.embedded]


@torch.inference_mode()
def seconds(tower, dtype):
    """The shortest of three times for four pictures, in that precision."""
    tower, pixels = copy.deepcopy(tower).to(dtype), torch.zeros(4, 3, 224, 224, dtype=dtype)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        tower(pixels)
        times.append(time.perf_counter() - started)
    return min(times)


def test_the_vision_tower_does_not_compute_in_a_precision_that_is_slow_here(embedded):
    """On an AVX2 machine bf16 takes ten times as long as fp32."""
    model, _ = embedded
    tower = model.model.vision_tower
    assert seconds(tower, model.dtype) < 3 * min(seconds(tower, torch.float32), seconds(tower, torch.bfloat16))
