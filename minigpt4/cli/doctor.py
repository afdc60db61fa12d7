"""What is installed here, what it runs on, and what works; nothing is downloaded."""

import importlib.metadata
import platform
import time


def add_arguments(parser):
    """`minigpt4 doctor` takes no arguments."""


def run(arguments):
    """Prints what it finds; raises ValueError if something that every command needs is missing."""
    problems = []
    for title, lines in (("Versions", versions), ("Devices", devices), ("Extras", extras), ("Embedded default", embedded)):
        print(title)
        for name, text, fine in lines():
            print(f"  {name:<18}{text}")
            if not fine:
                problems.append(name)
    if problems:
        raise ValueError(f"{', '.join(problems)}: not as required; see above")


def versions():
    """(name, text, whether it meets the requirement) for Python and each package that every command needs."""
    import minigpt4

    yield "minigpt4", minigpt4.__version__, True
    yield "Python", f"{platform.python_version()} on {platform.platform()}", True
    for requirement in _requirements(extra=None):
        yield requirement.name, *_installed(requirement)


def devices():
    """The same for each device: its memory, the precisions it supports, and which of them is used."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    gb = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    yield "cpu", f"{psutil.cpu_count()} cores, {torch.get_num_threads()} threads, {gb}; {_precisions('cpu')}", True
    yield "  precision", _measured("cpu"), True
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = f"cuda:{number}"
        gb = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield name, f"{torch.cuda.get_device_name(number)}, {gb}; {_precisions(name)}", True
        yield "  precision", _measured(name), True
    if torch.backends.mps.is_available():
        yield "mps", _precisions("mps"), True
        yield "  precision", _measured("mps"), True


def extras():
    """The same for each extra of the package: what `pip install -e '.[EXTRA]'` in the clone would add."""
    for extra in importlib.metadata.metadata("minigpt4-hf").get_all("Provides-Extra") or []:
        found = [(requirement.name, *_installed(requirement)) for requirement in _requirements(extra)]
        missing = [f"{name} ({text})" for name, text, fine in found if not fine]
        if missing:
            yield extra, f"without {', '.join(missing)}; run `pip install -e '.[{extra}]'` in the clone", True
        else:
            yield extra, ", ".join(f"{name} {text}" for name, text, _ in found), True


def embedded():
    """The same for the embedded default's parts, and an answer from it if they are here."""
    from ..modeling_minigpt4.parts import PARTS, local_part, unpacked_language_model

    here = True
    for name, part in PARTS.items():
        path = local_part(part)
        if name == "language_model" and (unpacked_language_model() / "config.json").is_file():
            path = unpacked_language_model()
        elif name == "language_model":
            here = False
        here = here and path is not None
        yield name, str(path or f"not here yet: the first use fetches {part.wheel} {part.version}"), True
    if here:
        yield "answers", *_answer()


def _answer():
    """(text, whether it works) for loading the embedded default and asking it about an image."""
    from PIL import Image
    from transformers.utils import logging

    from ..inference.named_models import load

    logging.disable_progress_bar()
    start = time.perf_counter()
    try:
        model, processor = load("embedded")
        chat = model.chat_session(processor, max_new_tokens=20)
        text = chat.ask("Describe this image.", Image.new("RGB", (224, 224), "blue"))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        return f"no: {error}", False
    return f"in {time.perf_counter() - start:.1f} s from the start: {text!r}", True


def _precisions(device):
    """The precisions that a device supports, fast or slow."""
    import torch

    from ..inference.devices import DTYPES, computes

    return " ".join(name for name in DTYPES[1:] if computes(device, getattr(torch, name)))


def _measured(device):
    """Which precision is the default, why, and how fast it and the other one are on the device."""
    import torch

    from ..inference.devices import computes
    from ..modeling_minigpt4.precision import fast_dtype

    used = fast_dtype(device)
    half = used if used != torch.float32 else torch.bfloat16
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in (torch.float32, half) if computes(device, dtype)}
    products = ", ".join(f"{_product(device, dtype) / 1e9:.3g} in {name}" for dtype, name in names.items())
    towers = ", ".join(f"{_tower(device, dtype):.3g} in {name}" for dtype, name in names.items())
    reasons = {
        "cpu": {torch.bfloat16: "has AVX512-BF16, AMX or Arm BF16", torch.float32: "without AVX512-BF16, AMX or Arm BF16"},
        "cuda": {torch.bfloat16: "has bfloat16 units", torch.float16: "would emulate bfloat16"},
        "mps": {torch.bfloat16: "macOS 14 or newer", torch.float16: "macOS older than 14 has no bfloat16"},
    }
    why = reasons[torch.device(device).type][used]
    return f"{str(used).removeprefix('torch.')} ({why}); matrix product: {products} GFLOP/s; vision tower: {towers} images/s"


def _product(device, dtype):
    """FLOP/s of a matrix product."""
    import torch

    size = 512
    square = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _seconds(lambda: square @ square, device)


def _tower(device, dtype):
    """Images per second through the embedded default's vision tower, with random weights."""
    import torch

    from ..configuration.configuration_minigpt4 import EfficientNetLiteConfig
    from ..modeling_minigpt4.vision_tower import EfficientNetLiteModel

    config = EfficientNetLiteConfig()
    tower = EfficientNetLiteModel(config).eval().to(device, dtype)
    pixels = torch.randn(4, 3, config.image_size, config.image_size, device=device)
    with torch.inference_mode():
        return len(pixels) / _seconds(lambda: tower(pixels), device)


def _seconds(run, device, enough=0.3):
    """Mean seconds per call over as many calls as fit in `enough` seconds, not counting the first."""
    import torch

    def wait():
        if torch.device(device).type != "cpu":
            torch.accelerator.synchronize()

    run()
    wait()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < enough:
        run()
        wait()
        calls += 1
    return (time.perf_counter() - started) / calls


def _requirements(extra):
    """The requirements of an extra, or of the package itself (None), without those of other extras."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires("minigpt4-hf"):
        requirement = Requirement(line)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""})
        own = extra is None or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
        if wanted and own and requirement.name != "minigpt4-hf":
            yield requirement


def _installed(requirement):
    """(version and what is wrong with it, whether it meets the requirement)."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed", False
    fine = requirement.specifier.contains(version, prereleases=True)
    return (version if fine else f"{version}, expected {requirement.specifier}"), fine
