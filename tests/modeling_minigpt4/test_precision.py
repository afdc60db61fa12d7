"""Which precision a device computes fast, and that what is stored does not change with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigpt4 import MiniGPT4ForConditionalGeneration
from minigpt4.inference.named_models import fingerprint
from minigpt4.modeling_minigpt4 import precision
from minigpt4.modeling_minigpt4.light import own_tensors
from minigpt4.modeling_minigpt4.lora import add_lora
from minigpt4.modeling_minigpt4.precision import compute_dtype, default_device, device_of, fast_dtype

CPUINFO = Path("/proc/cpuinfo")
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.mark.skipif(not CPUINFO.is_file(), reason="needs Linux, which says what the processor has")
def test_bfloat16_on_a_cpu_that_has_it():
    line = next(line for line in CPUINFO.read_text().splitlines() if line.startswith(("flags", "Features")))
    has_it = {"avx512_bf16", "amx_bf16", "bf16"} & set(line.split())
    assert fast_dtype("cpu") == (torch.bfloat16 if has_it else torch.float32)


def test_float32_where_onednn_may_not_use_what_the_processor_has():
    ask = "from minigpt4.modeling_minigpt4.precision import fast_dtype; print(fast_dtype('cpu'))"
    answer = subprocess.run([sys.executable, "-c", ask], env={**os.environ, **AVX2}, capture_output=True, check=True)
    assert answer.stdout.split() == [b"torch.float32"]


def test_a_model_is_never_narrowed():
    assert compute_dtype(torch.float32, "cpu") == torch.float32
    assert compute_dtype(torch.bfloat16, "cpu") == compute_dtype(torch.float16, "cpu") == fast_dtype("cpu")


def test_the_device_of_a_map():
    assert device_of("cpu") == device_of({"": "cpu"}) == device_of(torch.device("cpu")) == torch.device("cpu")
    for several in (None, "auto", "balanced", {"model": 0, "lm_head": "cpu"}):
        assert device_of(several) == default_device()


@pytest.fixture
def half(original, tmp_path):
    """The tiny model stored in bf16, its projection in fp32, as a folder."""
    original.to(torch.bfloat16).model.projection.float()
    original.save_pretrained(tmp_path / "half")
    return tmp_path / "half"


def dtypes_in(folder):
    """Every dtype that a config.json names."""
    config = json.loads((folder / "config.json").read_text())
    return {part["dtype"] for part in (config, *(config[f"{name}_config"] for name in ("text", "vision", "qformer")))}


def test_what_was_stored_in_bfloat16_is_stored_so_again(half, tmp_path):
    model = MiniGPT4ForConditionalGeneration.from_pretrained(half)
    assert model.dtype == compute_dtype(torch.bfloat16, default_device())
    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(folder / "model.safetensors") for folder in (half, tmp_path / "again"))
    assert before.keys() == after.keys() and dtypes_in(tmp_path / "again") == {"bfloat16"}
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16, torch.float32}
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    exact = MiniGPT4ForConditionalGeneration.from_pretrained(half, dtype=torch.bfloat16)
    assert fingerprint(exact) == fingerprint(model)


def test_a_dtype_that_is_asked_for_is_stored(half, tmp_path, monkeypatch):
    model = MiniGPT4ForConditionalGeneration.from_pretrained(half, dtype="float32")
    model.save_pretrained(tmp_path / "wide")
    assert {tensor.dtype for tensor in load_file(tmp_path / "wide" / "model.safetensors").values()} == {torch.float32}
    assert dtypes_in(tmp_path / "wide") == {"float32"}
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: False)  # so that it computes in another dtype than is stored
    model = MiniGPT4ForConditionalGeneration.from_pretrained(half, device_map="cpu").to(torch.float16)
    model.save_pretrained(tmp_path / "cast")
    assert "bfloat16" not in dtypes_in(tmp_path / "cast")


def test_what_is_trained_keeps_its_precision(half, tmp_path):
    model = MiniGPT4ForConditionalGeneration.from_pretrained(half)
    model.config.base_parts = {"model": {"repo": str(half), "revision": None}}
    model.config.trained_parts = ["projection", "qformer"]
    add_lora(model.freeze(), rank=2)
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    model.save_pretrained(tmp_path / "light")
    stored = load_file(tmp_path / "light" / "model.safetensors")
    assert stored.keys() == own_tensors(model).keys() and "model.query_tokens" in stored
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    adapters = load_file(tmp_path / "light" / "lora" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapters.values()} == {torch.float32}
    assert dtypes_in(tmp_path / "light") == {"bfloat16"}
