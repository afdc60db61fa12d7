"""Which precision a device computes fast in, and therefore which one a stored model computes in.

A CPU without bf16 instructions runs bf16 convolutions and matrix products in plain loops: on an AMD Zen 3 the embedded
default's vision tower does 3.7 images/s in bf16 and 35.5 in fp32. So a model stored in bf16 computes in fp32
there. (This package saves it in bf16 again: see light.py.)
"""

import platform

import torch
from transformers.configuration_utils import PreTrainedConfig

# Arguments of `from_pretrained` that say which copy of a repository to read.
_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "code_revision")


def hub_arguments(arguments):
    """The subset of `from_pretrained` arguments that say which copy of a repository to read."""
    return {name: arguments[name] for name in _HUB_ARGUMENTS if arguments.get(name) is not None}


def fast_loading(repo, arguments):
    """Arguments of `from_pretrained`, with `dtype` filled in if it is open (None or "auto") and the config names one.

    That is the dtype in which the weights are stored or, if it is slow on the device, a fast one (see
    `compute_dtype`). The device is that of `device_map`, or else the machine's accelerator, to which the model is
    expected to be moved, or its CPU.
    """
    stored = stored_in(repo, arguments)
    return (
        arguments
        if stored is None
        else {**arguments, "dtype": compute_dtype(stored, device_of(arguments.get("device_map")))}
    )


def stored_in(repo, arguments):
    """The dtype that the config says the weights are stored in, if `from_pretrained` is to choose one; else None."""
    if not all(arguments.get(name) in (None, "auto") for name in ("dtype", "torch_dtype")):
        return None
    config = arguments.get("config")
    if isinstance(config, PreTrainedConfig):
        dtype = config.dtype
    else:
        fields, _ = PreTrainedConfig.get_config_dict(config or repo, **hub_arguments(arguments))
        dtype = fields.get("dtype", fields.get("torch_dtype"))
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def default_device():
    """The `torch.device` of the machine's accelerator, or the CPU where there is none."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def fast_dtype(device):
    """A device's fastest dtype: torch.bfloat16 if it has the instructions, else fp16 or, on a CPU, fp32.

    Args:
        device: as `torch.device` takes it.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32
    if device.type == "cuda":  # emulated is slow
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":  # Metal has bf16 since macOS 14
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
    return torch.bfloat16


def compute_dtype(stored, device):
    """The compute dtype on a device for weights stored as `stored`: never narrower, and no half precision that is slow."""
    fast = fast_dtype(device)
    if stored not in (torch.bfloat16, torch.float16) or (stored == torch.float16 and torch.device(device).type != "cpu"):
        return stored
    return fast


def device_of(device_map):
    """The device that `from_pretrained` puts a model on; without a map, the default device, where it will be moved.

    Args:
        device_map: as `from_pretrained` takes it: None, a device, "auto", "balanced", ..., or {module: device}.
    """
    devices = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    try:
        return torch.device(devices[0]) if devices[0] is not None and len(devices) == 1 else default_device()
    except RuntimeError:  # "auto" and the like
        return default_device()


def _cpu_has_bfloat16():
    """AVX512-BF16, AMX or Arm BF16, and oneDNN that uses it.

    Neither answer suffices: oneDNN's is also yes on AVX-512 without these, where bf16 takes five times as long as fp32,
    and the processor's does not know that ONEDNN_MAX_CPU_ISA forbids them.
    """
    onednn = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not in every build
    if onednn is None or not onednn():
        return False
    instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private: they may disappear
    return platform.machine() in ("aarch64", "arm64") or any(getattr(torch.cpu, name, bool)() for name in instructions)
