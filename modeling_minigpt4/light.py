"""Light repositories: the trained tensors, and a config that says where the frozen parts come from.

config.json          `base_parts` {part: {"repo", "revision"}} and the dimensions
model.safetensors    what was trained: 3 MB for the embedded default, 12 MB for MiniGPT-4 7B
"""

import contextlib

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from .parts import BASE_PARTS, language_model, vision_tower_weights

# Arguments of `from_pretrained` that say which copy of a repository to read.
_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "code_revision")


def is_light(repo, arguments):
    """Whether a folder or Hub repository holds only trained tensors. `arguments`: those of `from_pretrained`."""
    if repo is None or arguments.get("state_dict") is not None:
        return False
    config, _ = PreTrainedConfig.get_config_dict(repo, **_hub_arguments(arguments))
    return config.get("base_parts") is not None


def load_light(cls, repo, config=None, **arguments):
    """Builds `cls` from a light repository: frozen parts from their sources, trained tensors from the repository."""
    hub = _hub_arguments(arguments)
    arguments = {name: value for name, value in arguments.items() if name not in hub}
    config = config or cls.config_class.from_pretrained(repo, **hub)
    trained = load_file(cached_file(repo, SAFE_WEIGHTS_NAME, **hub))
    loaded = assemble(cls, config, trained, source=str(repo), **arguments)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    with contextlib.suppress(OSError):  # there may be none
        model.generation_config = GenerationConfig.from_pretrained(repo, **hub)
    return loaded


def assemble(cls, config, trained, source="the trained tensors", **arguments):
    """A model from the parts that `config.base_parts` names and a dict of trained tensors.

    Args:
        cls: `MiniGPT4ForConditionalGeneration`, or a class with the same parts.
        trained: {name in the model: tensor}; what is not given is drawn afresh (a projection before training).
        source: named in errors.
        arguments: further arguments of `from_pretrained` (dtype, device_map, ...).

    Raises:
        ValueError: base parts that are not known here, or a trained tensor that does not fit the model.
    """
    with torch.device("meta"):
        expected = cls(config).state_dict()
    for name, tensor in trained.items():
        if name not in expected:
            raise ValueError(f"{source}: holds a tensor {name!r} that a MiniGPT-4 with this config does not have")
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{source}: tensor {name!r} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}; "
                "it was trained for another vision tower or LLM"
            )
    weights = {**_frozen_weights(cls, config.base_parts, source), **trained}
    return cls.from_pretrained(None, config=config, state_dict=weights, **arguments)


def _frozen_weights(cls, base_parts, source):
    """{name in the model: tensor} of what the base parts hold: the embedded default's, or those of a whole model."""
    if base_parts == BASE_PARTS:
        llm, _ = language_model()
        weights = {f"model.vision_tower.{name}": tensor for name, tensor in vision_tower_weights().items()}
        return {**weights, **{f"model.language_model.{name}": tensor for name, tensor in llm.model.state_dict().items()}}
    if list(base_parts) == ["model"]:
        base = base_parts["model"]
        return cls.from_pretrained(base["repo"], revision=base["revision"]).state_dict()
    raise ValueError(f"{source}: its base parts are {base_parts}; those known here are {BASE_PARTS}, or a whole model's")


def trained_tensors(model):
    """{name: tensor} of the parameters that training moves, on the CPU: what a light repository stores."""
    return {
        name: parameter.detach().to("cpu").contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _hub_arguments(arguments):
    return {name: arguments[name] for name in _HUB_ARGUMENTS if arguments.get(name) is not None}
