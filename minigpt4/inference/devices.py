"""Device, precision and quantization by name, for `--device`, `--dtype` and `--load-in`: checked before use."""

import importlib.util
import logging

import torch

from ..modeling_minigpt4.precision import default_device, fast_dtype

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
LOAD_IN = ("8bit", "4bit")


def find_device(name="auto"):
    """The `torch.device` of a name: "auto" is the accelerator if there is one.

    Args:
        name: one of DEVICES, or "cuda:1" with several GPUs; a `torch.device` is returned as it is.

    Raises:
        ValueError: no such device, or none on this machine.
    """
    if isinstance(name, torch.device):
        return name
    kind, _, index = name.partition(":")
    here = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(["mps"] if torch.backends.mps.is_available() else [])]
    if kind == "auto" and not index:
        return default_device()
    if kind not in DEVICES or (index and not index.isdigit()):
        raise ValueError(f"device {name}: no such device; expected {_either(DEVICES)} (this machine has {_both(here)})")
    if kind not in here:
        raise ValueError(f"device {name}: not on this machine, as PyTorch {torch.__version__} sees it; it has {_both(here)}")
    if index and int(index) >= (torch.cuda.device_count() if kind == "cuda" else 1):
        raise ValueError(f"device {name}: no {kind} with this number; {kind} is the first")
    return torch.device(name)


def find_dtype(name, device):
    """The `torch.dtype` of a name, or "auto" as it is.

    Raises:
        ValueError: no such dtype, or the device cannot compute in it.
    """
    if name == "auto":
        return name
    if name not in DTYPES:
        raise ValueError(f"dtype {name}: no such precision; expected {_either(DTYPES)}")
    dtype = getattr(torch, name)
    if not computes(device, dtype):
        works = [other for other in DTYPES[1:] if computes(device, getattr(torch, other))]
        raise ValueError(f"dtype {name}: {device} does not compute in it; expected {_either(['auto', *works])}")
    return dtype


def computes(device, dtype):
    """Whether a device can multiply matrices and convolve in a dtype, even if slowly."""
    try:
        square = torch.ones(8, 8, dtype=dtype, device=device)
        images = torch.ones(1, 1, 8, 8, dtype=dtype, device=device)
        return bool((square @ square == 8).all() and (torch.nn.functional.conv2d(images, images) == 64).all())
    except (RuntimeError, TypeError):  # MPS rejects some dtypes altogether
        return False


def loading(device: str | torch.device | None = "auto", dtype="auto", load_in=None):
    """Arguments of `from_pretrained`: dtype, device_map and quantization_config.

    Args:
        device: as for `find_device`; None: the model stays where it is loaded, for a Trainer to move it.
        dtype: as for `find_dtype`, or a `torch.dtype`.
        load_in: one of LOAD_IN: the frozen linear layers in that many bits, by bitsandbytes.

    Raises:
        ValueError: one line that says what is available.
    """
    place = default_device() if device is None else find_device(device)
    arguments = {"dtype": find_dtype(str(dtype).removeprefix("torch."), place)}
    if device is not None:
        arguments["device_map"] = {"": place}
    if load_in is not None:
        arguments["quantization_config"] = _quantization(load_in, place)
    return arguments


def _quantization(load_in, device):
    from transformers import BitsAndBytesConfig

    if load_in not in LOAD_IN:
        raise ValueError(f"load-in {load_in}: no such size; expected {_either(LOAD_IN)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"load-in {load_in} needs bitsandbytes, which is not installed; run `pip install bitsandbytes`")
    import bitsandbytes

    if device.type not in bitsandbytes.supported_torch_devices:
        known = sorted(bitsandbytes.supported_torch_devices)
        raise ValueError(
            f"load-in {load_in}: bitsandbytes {bitsandbytes.__version__} does not run on {device.type}, only on "
            f"{', '.join(known)}; use the cpu, or leave out load-in"
        )
    # For every layer and token it warns that it casts to fp16, which is how its 8-bit layers work.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=fast_dtype(device))


def _either(names):
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _both(names):
    return " and ".join(names)
