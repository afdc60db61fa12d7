"""`--device`, `--dtype` and `--load-in`: what they do to a model, and what they say when something cannot be done."""

import subprocess
import sys

import pytest
import torch

from minigpt4.cli import main
from minigpt4.hub.export import export
from minigpt4.inference.devices import computes, find_device, find_dtype, loading
from minigpt4.inference.named_models import fingerprint, load
from minigpt4.modeling_minigpt4.precision import default_device

CUDA, MPS = torch.cuda.is_available(), torch.backends.mps.is_available()


def test_names_become_devices_and_precisions():
    assert find_device() == default_device() and find_device("cpu") == torch.device("cpu")
    assert find_dtype("auto", "cpu") == "auto" and find_dtype("float32", "cpu") == torch.float32
    assert loading("cpu", torch.bfloat16) == {"dtype": torch.bfloat16, "device_map": {"": torch.device("cpu")}}
    assert loading(None) == {"dtype": "auto"}


def test_a_dtype_that_a_device_does_not_compute():
    """No current CPU refuses any of the named dtypes; fp8 serves as one that is refused."""
    assert computes("cpu", torch.float32) and not computes("cpu", torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_computes_in_what_is_asked_for(base, dtype):
    model, _ = load(base, dtype, device="cpu")
    assert model.dtype == getattr(torch, dtype) and model.device == torch.device("cpu")
    assert model.model.projection.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("load_in", "dtype"), [("8bit", torch.int8), ("4bit", torch.uint8)])
def test_quantized(base, load_in, dtype, photo, capsys, monkeypatch):
    # bitsandbytes' kernels for AVX512-BF16 take widths that are multiples of 32; those of the tiny model are not.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    model, _ = load(base, device="cpu", load_in=load_in)
    assert model.model.language_model.layers[0].mlp.up_proj.weight.dtype == dtype
    assert torch.float32 in {model.model.projection.weight.dtype} & {model.lm_head.weight.dtype}
    assert fingerprint(model) != fingerprint(load(base)[0])
    command = ["chat", "--model", base, "--image", photo, "--ask", "What is this?", "--max-new-tokens", "3"]
    assert main([*command, "--device", "cpu", "--load-in", load_in]) == 0
    said = capsys.readouterr()
    assert said.out.strip() and "cast" not in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "device tpu: no such device; expected auto, cpu, cuda or mps (this machine has cpu"),
        (["--device", "cpu:x"], "device cpu:x: no such device"),
        (["--device", "cpu:3"], "device cpu:3: no cpu with this number; cpu is the first"),
        (["--dtype", "float8"], "dtype float8: no such precision; expected auto, float32, bfloat16 or float16"),
        (["--load-in", "2bit"], "load-in 2bit: no such size; expected 8bit or 4bit"),
        pytest.param(["--device", "cuda"], "device cuda: not on this machine", marks=pytest.mark.skipif(CUDA, reason="has")),
        pytest.param(["--device", "mps"], "device mps: not on this machine", marks=pytest.mark.skipif(MPS, reason="has")),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ["chat", "--ask", "x"],
        ["caption", "{folder}", "--output", "{folder}/captions.jsonl"],
        ["evaluate", "--suite", "failures"],
        ["serve"],
        ["web"],
        ["export", "--output", "{folder}/out"],
        ["curate", "generate", "--store", "{folder}/curation.db"],
    ],
    ids=lambda command: command[0],
)
def test_what_cannot_be_done_is_one_line(base, photo, tmp_path, capsys, command, arguments, message):
    if command[0] == "export" and "--load-in" in arguments:
        pytest.skip("an export is not quantized")
    if command[0] == "curate":
        assert main(["curate", "sample", "--store", str(tmp_path / "curation.db"), "--pictures", str(tmp_path)]) == 0
    capsys.readouterr()
    line = [part.format(folder=tmp_path) for part in command]
    assert main([*line, "--model", base, *arguments]) == 2
    [said] = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"minigpt4 {command[0]}: {message}")


@pytest.mark.slow
def test_without_bitsandbytes(base):
    code = "import sys; sys.modules['bitsandbytes'] = None; from minigpt4.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, "chat", "--model", base, "--ask", "x", "--load-in", "4bit"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "minigpt4 chat: load-in 4bit needs bitsandbytes, which is not installed; run `pip install bitsandbytes`"
    )


def test_an_export_stores_the_precision_that_is_asked_for(original, processor, tmp_path):
    original.to(torch.bfloat16).model.projection.float()
    folder, wide = export(original, processor, tmp_path / "half"), tmp_path / "wide"
    assert main(["export", "--model", str(folder), "--output", str(wide), "--dtype", "float32", "--examples"]) == 0
    assert main(["export", "--model", str(folder), "--output", str(tmp_path / "same"), "--examples"]) == 0
    sizes = [(path / "model.safetensors").stat().st_size for path in (folder, tmp_path / "same", wide)]
    assert sizes[0] == sizes[1] < 0.6 * sizes[2]
