"""Models by name: `load("embedded")`, `load("outputs/quickstart/model")`, `load("NAME/ON-THE-HUB")`."""

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Any

SAMPLED = 4096  # approximate number of values of a tensor that `fingerprint` reads
# Without any of them transformers would silently build a tokenizer without a vocabulary.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load(name, dtype="auto", device=None, load_in=None):
    """(model, processor), ready to answer, in eval mode.

    Args:
        name: "embedded" for the included default; the folder of a full or a light model, as `export`, training and
            quickstart write it; or an id on the Hub. No code from there runs, only this package's own.
        dtype: "bfloat16", "float16", "float32", or "auto": the stored precision or, if the device is slow in it, a fast one
            (modeling_minigpt4/precision.py).
        device: "cpu", "cuda", "mps", or "auto": the GPU if there is one. None: in memory, for a Trainer to move it.
        load_in: "8bit" or "4bit": quantize the frozen linear layers with bitsandbytes.

    Raises:
        ValueError: one line that names the model and says what is wrong: no such folder, not a model, another kind of
            model, weights that are missing, damaged or of other dimensions; no such device, or one that cannot do this.
        OSError: the Hub, or a part of the embedded default, cannot be reached.
    """
    from safetensors import SafetensorError

    from ..modeling_minigpt4.embedded import load_embedded
    from .devices import loading

    arguments = loading(device, dtype, load_in)
    if name == "embedded":
        return load_embedded(loading=arguments)
    _check_config(str(name))
    try:
        model = _load_weights(str(name), arguments)
    except SafetensorError as error:
        raise ValueError(f"{name}: its weights are damaged ({error}); copy or export it again") from error
    processor = _load_processor(str(name))
    if processor.num_image_tokens != model.config.num_image_tokens:
        raise ValueError(
            f"{name}: its processor writes {processor.num_image_tokens} image tokens for a picture, its config.json says "
            f"{model.config.num_image_tokens}; they are from different models"
        )
    return model, processor


def load_config(name):
    """The `MiniGPT4Config` of a folder or an id on the Hub; nothing else is read or downloaded.

    Raises: as `load` does.
    """
    from .. import MiniGPT4Config

    _check_config(name)
    with _naming(name):
        return MiniGPT4Config.from_pretrained(name)


def fingerprint(model):
    """A hash that identifies a model's weights, independent of their place and their split into files: "sha256:...".

    It covers the name, type, shape and stored values of every tensor; for a large one, about 4,096 evenly spread values,
    since training and merged adapters change them all. It takes 0.1 s for the embedded default.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.flatten()
        values = values[:: max(1, len(values) // SAMPLED)].to("cpu", model.stored_dtype(name, tensor)).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {values.dtype}".encode())
        digest.update(values.view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()[:16]}"


def public_name(name):
    """A model's name in records: "embedded", its id on the Hub, or the last two parts of its folder's path.

    The rest of a path says something about one machine and nothing about the model.
    """
    folder = Path(name)
    return "/".join(folder.resolve().parts[-2:]) if name != "embedded" and folder.is_dir() else str(name)


@contextlib.contextmanager
def _naming(name):
    """Turns errors in a model's config into one line with the model's name."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{name}: its config.json does not describe a MiniGPT-4 ({reason})") from error
    except ValueError as error:
        reason = _first_line(error)
        raise ValueError(reason if reason.startswith(name) else f"{name}: {reason}") from error


def _check_config(name):
    """Raises ValueError unless `name` has the config of a MiniGPT-4."""
    from huggingface_hub.errors import RepositoryNotFoundError
    from transformers.configuration_utils import PreTrainedConfig

    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{name}: a folder that is not a model: no config.json in it")
    if folder.is_file():
        raise ValueError(f"{name}: is a file; expected the folder of a model, an id on the Hub, or 'embedded'")
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(f"{name}: no such folder; expected the folder of a model, an id on the Hub, or 'embedded'")
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except OSError as error:
        where = "its config.json cannot be read" if folder.is_dir() else "no such folder, and the Hub does not provide it"
        hidden = isinstance(error.__cause__, RepositoryNotFoundError)  # the Hub does not distinguish private from absent
        hint = "; check the name, and if it is private, log in with `hf auth login`" if hidden else ""
        raise OSError(f"{name}: {where} ({_first_line(error)}){hint}") from error
    if config.get("model_type") != "minigpt4":
        raise ValueError(f"{name}: its config.json says model_type {config.get('model_type')!r}, expected 'minigpt4'")


def _load_weights(name, arguments):
    from huggingface_hub.errors import HTTPError
    from transformers.utils import logging

    from .. import MiniGPT4ForConditionalGeneration

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # one line instead of transformers' table of mismatches
    try:
        with _naming(name):
            loaded: Any = MiniGPT4ForConditionalGeneration.from_pretrained(
                name, **arguments, output_loading_info=True, ignore_mismatched_sizes=True
            )
            model, info = loaded
    except (OSError, HTTPError) as error:  # also a download that breaks off
        raise OSError(f"{name}: its weights cannot be read ({_first_line(error)})") from error
    finally:
        logging.set_verbosity(verbosity)
    for tensor, found, expected in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"{name}: tensor {tensor} has shape {tuple(found)}, expected {tuple(expected)} according to its config.json; "
            "the weights are from another model"
        )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{name}: incomplete; missing weights: {missing[0]}, the first of {len(missing)}")
    return model.eval()


def _load_processor(name):
    from .. import MiniGPT4Processor

    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in VOCABULARIES):
        raise ValueError(f"{name}: no tokenizer in it, expected {' or '.join(VOCABULARIES)}; export the model again")
    try:
        return MiniGPT4Processor.from_pretrained(name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{name}: its processor or tokenizer cannot be read ({_first_line(error)}); export the model again"
        ) from error


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
