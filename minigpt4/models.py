"""Models by name: "embedded", a folder, or a repository on the Hub.

model, processor = load("embedded")
"""

from pathlib import Path


def load(name):
    """(model, processor), ready to answer: in eval mode, in the precision that was stored.

    Args:
        name: "embedded" for the default that ships; a folder that holds a full or a light model, as `export`, training
            and quickstart write it; or an id on the Hub. No code from there runs, only this package's own.

    Raises:
        ValueError: one line that names the model and says what is wrong: no such folder, not a model, another kind of
            model, weights that are missing, damaged or of other dimensions.
        OSError: the Hub, or a part of the embedded default, cannot be reached.
    """
    from safetensors import SafetensorError

    from .modeling_minigpt4.embedded import load_embedded

    if name == "embedded":
        return load_embedded()
    _check_config(str(name))
    try:
        return _load_weights(str(name)), _load_processor(str(name))
    except SafetensorError as error:
        raise ValueError(f"{name}: its weights are damaged ({error}); copy or export it again") from error


def _check_config(name):
    """Raises ValueError unless `name` has the config of a MiniGPT-4."""
    from transformers.configuration_utils import PreTrainedConfig

    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{name}: a folder that is not a model: no config.json in it")
    if folder.is_file():
        raise ValueError(f"{name}: is a file; expected the folder of a model, an id on the Hub, or 'embedded'")
    if not folder.is_dir() and _is_path(name):
        raise ValueError(f"{name}: no such folder; expected the folder of a model, an id on the Hub, or 'embedded'")
    config, _ = PreTrainedConfig.get_config_dict(name)
    if config.get("model_type") != "minigpt4":
        raise ValueError(f"{name}: its config.json says model_type {config.get('model_type')!r}, expected 'minigpt4'")


def _is_path(name):
    """Whether a name that no folder has can only mean one: an id on the Hub is NAME or OWNER/NAME."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _load_weights(name):
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils import logging

    from . import MiniGPT4ForConditionalGeneration

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # in place of transformers' table of what does not fit, one line
    try:
        model, info = MiniGPT4ForConditionalGeneration.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{name}: its config.json does not describe a MiniGPT-4 ({reason})") from error
    finally:
        logging.set_verbosity(verbosity)
    for tensor, found, expected in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"{name}: tensor {tensor} has shape {tuple(found)}, expected {tuple(expected)} by its config.json; "
            "the weights are of another model"
        )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{name}: {len(missing)} weights are missing, {missing[0]} the first; the folder is not complete")
    return model.eval()


def _load_processor(name):
    from . import MiniGPT4Processor

    try:
        return MiniGPT4Processor.from_pretrained(name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name}: its processor or tokenizer cannot be read ({reason})") from error
