"""Light repositories: the trained tensors, and a config that says where the other parts come from.

config.json          `base_parts` {part: {"repo", "revision"}} and the dimensions
model.safetensors    what no base part provides: 3 MB for the embedded default, 12 MB for MiniGPT-4 7B
lora/                adapters of the LLM, if it was trained with any (see lora.py)

A part is named as in `MiniGPT4Model`: "vision_tower", "qformer" (with its queries and BLIP-2's `ln_vision`, which were
trained with it), "language_model" (with its head); or it is "model": a whole MiniGPT-4. Its repository is a Hub id, a
folder, or one of the wheels in parts.py.
"""

import contextlib
import copy
import re
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import is_fsdp_enabled, is_local_dist_rank_0
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from .lora import LORA, has_lora, is_adapter, load_lora, plain_name, plain_state_dict, save_lora
from .modeling_minigpt4 import MiniGPT4ForConditionalGeneration as FullMiniGPT4
from .parts import BASE_PARTS, language_model, vision_tower_weights
from .precision import fast_loading, hub_arguments, stored_in
from .repositories import StoredTensors, common_prefix, shape_of

# The published projections, by shape [out, in].
_VARIANTS = {
    (4096, 768): "MiniGPT-4 with Vicuna-7B",
    (5120, 768): "MiniGPT-4 with Vicuna-13B",
    (4096, 5632): "MiniGPT-4 with Llama-2-7B-chat, without Q-Former",
}

# How the names of the LLM's tensors begin.
_OF_THE_LLM = ("model.language_model.", "lm_head.")


class MiniGPT4ForConditionalGeneration(FullMiniGPT4):
    """The model as this package and the code of a light repository define it.

    A full repository needs only the base class, which has the same name there. This class adds loading and saving of light
    repositories and LoRA adapters, building a model from parts, and saving in the precision that the model was stored in,
    even if it computes in another.
    """

    _stored_as: dict = {}  # {dtype it computes in: dtype it is stored in}, if the first was chosen here

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Loads a full or a light repository, as `PreTrainedModel.from_pretrained` does, and freezes it for training.

        Without `dtype`, or with "auto", it computes in a fast one (see `fast_loading`) and is saved in its stored one.
        """
        repo = pretrained_model_name_or_path
        if is_light(repo, kwargs):
            loaded = load_light(cls, repo, **kwargs)  # calls this method again, with the tensors
            model = loaded[0] if isinstance(loaded, tuple) else loaded
        else:
            loaded: Any = super().from_pretrained(repo, *model_args, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            stored = stored_in(repo, kwargs)
            if stored is not None and kwargs.get("quantization_config") is None:
                model._stored_as = {fast_loading(repo, kwargs)["dtype"]: stored}
        if repo is not None and LORA in model.config.trained_parts:
            load_lora(model, repo, **hub_arguments(kwargs))
        return loaded

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, **kwargs):
        """Saves what no part of `config.base_parts` provides, or every weight if it names none, and any LoRA adapters."""
        own = None
        if state_dict is None:
            own = own_tensors(self) if self.config.base_parts is not None else None
            state_dict = own or (plain_state_dict(self) if has_lora(self) else None)
            if has_lora(self) and is_main_process:
                save_lora(self, save_directory)
        unpacked = bool(own) and getattr(self, "hf_quantizer", None) is not None
        stored = None if unpacked else self._stored_as.get(self.dtype)
        if stored is not None:
            state_dict = self._as_stored(self.state_dict() if state_dict is None else state_dict)
        saved = super()
        if stored is not None or unpacked or has_lora(self):  # else the library would save the adapters only
            saved = super(MiniGPT4ForConditionalGeneration, self._without_weights(stored))
        saved.save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    def push_to_hub(self, repo_id, **arguments):
        """Uploads the model in one commit with its code, card and `auto_map`; see `export.push_model`.

        Together with `processor.push_to_hub` this makes the same repository as `minigpt4 export --push`. If this package
        is not installed, it is `PreTrainedModel.push_to_hub`.
        """
        try:
            from minigpt4.hub.export import push_model
        except ImportError:
            return super().push_to_hub(repo_id, **arguments)
        return push_model(self, repo_id, **arguments)

    @classmethod
    def from_parts(cls, vision, text, **arguments):
        """Builds a model from base models on the Hub or in folders ("ID", "ID@REVISION" or a path) and a projection.

        Args:
            vision: a BLIP-2 (for its tower and, by default, its Q-Former), or any vision tower.
            text: any causal LLM whose head is one linear layer plus arithmetic (see own_head); from a vision-language LLM
                the text model is taken. Its logits on a few tokens are compared with those of its own class.
            qformer: another BLIP-2 to take the Q-Former from, or None for the variant without one.
            projection: a file, the original's or safetensors; by default a new one is initialised, to be trained.
            image_token: the LLM's token that represents an image; by default its <unk>, a reserved special token or an
                unused row of its embedding table.
            template: its conversation template, see `MiniGPT4Processor.for_model`; pass the same there.
            config: fields of `MiniGPT4Config` that do not follow from the parts: patch_merge, projection_layers, ...
            arguments: arguments of `from_pretrained`: dtype, device_map, quantization_config, token, ...

        Raises:
            OSError: a repository or file does not exist.
            ValueError: a part is missing, damaged or has another shape; with what was found and expected.
            ImportError: this code runs from a repository, and the package is not installed.
        """
        try:
            from minigpt4.hub.from_parts import from_parts
        except ImportError as error:
            raise ImportError("from_parts needs the package; run `pip install minigpt4-hf`") from error
        return from_parts(cls, vision, text, **arguments)

    def draw_projection(self):
        """Reinitialises the projection with PyTorch's default for linear layers, as the paper's was."""
        for layer in self.model.projection.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.is_meta:
                layer.reset_parameters()

    def stored_dtype(self, name, tensor):
        """The dtype in which a tensor of the state is saved: the repository's, if the model computes in another."""
        part = name.removeprefix("model.").split(".")[0]
        trained = {"projection", *self.config.trained_parts}
        precise = part in trained or is_adapter(name) or (part == "query_tokens" and "qformer" in trained)
        return tensor.dtype if precise or tensor.dtype != self.dtype else self._stored_as.get(tensor.dtype, tensor.dtype)

    def _as_stored(self, tensors):
        """{name: tensor} in the dtypes that they are saved in."""
        saved, done = {}, {}
        for name, tensor in tensors.items():
            place = tensor.data_ptr(), tensor.shape  # tied weights stay tied
            if place not in done:
                done[place] = tensor.to(self.stored_dtype(name, tensor))
            saved[name] = done[place]
        return saved

    def _without_weights(self, stored):
        """The model without weights, adapters or quantization: what the library needs to save given tensors.

        Its config names the dtype `stored`, if any, for every part.
        """
        config = copy.deepcopy(self.config)
        config.__dict__.pop("quantization_config", None)
        if stored is not None:
            for part in (config, *(getattr(config, name) for name in config.sub_configs)):
                if part is not None:
                    part.dtype = stored
        with torch.device("meta"):
            bare: Any = MiniGPT4ForConditionalGeneration(config)
            bare = bare.to(stored or self.dtype)
        bare.generation_config = self.generation_config
        return bare


def is_light(repo, arguments):
    """Whether a folder or Hub repository takes parts from others. `arguments`: those of `from_pretrained`."""
    if repo is None or arguments.get("state_dict") is not None:
        return False
    config, _ = PreTrainedConfig.get_config_dict(repo, **hub_arguments(arguments))
    return config.get("base_parts") is not None


def load_light(cls, repo, config=None, **arguments):
    """Builds `cls` from a light repository: the base parts from their sources, the other tensors from the repository."""
    hub = hub_arguments(arguments)
    arguments = {name: value for name, value in arguments.items() if name not in hub}
    config = config or cls.config_class.from_pretrained(repo, **hub)
    trained = load_file(cached_file(repo, SAFE_WEIGHTS_NAME, **hub))  # pyright: ignore[reportArgumentType]
    token = {name: hub[name] for name in ("token", "cache_dir", "local_files_only") if name in hub}
    loaded = assemble(cls, config, trained, source=str(repo), hub=token, **arguments)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.stored = frozenset(trained)
    with contextlib.suppress(OSError):  # there may be none
        model.generation_config = GenerationConfig.from_pretrained(repo, **hub)
    return loaded


def assemble(cls, config, given, source="the trained tensors", hub=None, **arguments):
    """Builds a model from the parts that `config.base_parts` names and a dict of tensors that belong to no base part.

    Tensors of base parts are read one by one into their place, in their final dtype: no part is in memory twice.

    Args:
        cls: `MiniGPT4ForConditionalGeneration`, or a class with the same parts.
        given: {name in the model: tensor}; a missing projection is initialised.
        source: where `given` comes from, for error messages.
        hub: how base parts are fetched: token, cache_dir, local_files_only.
        arguments: further arguments of `from_pretrained` (dtype, device_map, quantization_config, ...).

    Raises:
        ValueError: unknown base parts, or a tensor that does not fit the model, with both shapes.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in cls(config).state_dict().items()}
    for name in sorted(given, reverse=True):  # a weight's shape says more than its bias's
        if name not in expected:
            raise ValueError(f"{source}: has a tensor {name!r} that a MiniGPT-4 with this config does not have")
        _check_shape(name, given[name], expected[name], source)
    weights = {}
    for part, origin in sorted((config.base_parts or {}).items(), key=lambda item: item[0] == "qformer"):
        tensors = _part_tensors(part, origin, config, expected, hub or {})  # the Q-Former's last, for its norm
        for name, tensor in tensors.items():
            if name in expected and name not in given:
                _check_shape(name, tensor, expected[name], origin["repo"])
        weights.update(tensors)
    weights.update(_norm_without_qformer(config))
    config.dtype = config.dtype or config.text_config.dtype or torch.float32  # what "auto" starts from
    if is_fsdp_enabled() and not is_local_dist_rank_0() and not arguments.get("quantization_config"):
        weights = {name: _unread(tensor, arguments.get("dtype")) for name, tensor in weights.items()}
    with_info = arguments.pop("output_loading_info", False)
    model, info = cls.from_pretrained(
        None, config=config, state_dict={**weights, **given}, output_loading_info=True, **arguments
    )
    drawn = "model.projection." if not any(name.startswith("model.projection.") for name in given) else None
    missing = sorted(name for name in info["missing_keys"] if drawn is None or not name.startswith(drawn))
    if missing:
        raise ValueError(f"{source}: incomplete with its base parts; missing: {missing[0]}, the first of {len(missing)}")
    if unused := sorted(name for name in info["unexpected_keys"] if name.startswith(_OF_THE_LLM)):
        llm = type(model.model.language_model).__name__
        raise ValueError(f"{llm}: does not use the tensor {unused[0]!r} of its repository, the first of {len(unused)}")
    _round(model)
    return (model, info) if with_info else model


def _unread(tensor, dtype):
    """A placeholder of a tensor's shape that takes no memory: with FSDP2 one process per machine reads for the others."""
    dtype = dtype if isinstance(dtype, torch.dtype) else tensor[:0].dtype
    return torch.zeros((), dtype=dtype).expand(shape_of(tensor))


@torch.no_grad()
def _round(model):
    """Rounds weights to their stored precision: base parts may be more precise, and every device gets the same model."""
    for name, parameter in model.named_parameters():
        stored = model.stored_dtype(name, parameter)
        if stored.itemsize < parameter.dtype.itemsize:
            parameter.copy_(parameter.to(stored))


def _norm_of_qformer(config):
    """The name of the tower's last norm if it was trained with a Q-Former (BLIP-2's `ln_vision`), else None."""
    return "model.vision_tower.post_layernorm" if config.vision_config.model_type == "blip_2_vision_model" else None


def _norm_without_qformer(config):
    """The authors' variant without Q-Former leaves that norm as initialised."""
    name, width = _norm_of_qformer(config), config.feature_width
    if name is None or config.qformer_config is not None:
        return {}
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def variant_of(shape):
    """The published model that has a projection of this shape [out, in], or None."""
    return _VARIANTS.get(tuple(shape))


def own_parameters(model):
    """{name: parameter} of what no base part provides, what is trained, and what was stored before; no adapters (lora.py).

    Raises:
        ValueError: one of them is quantized.
    """
    stored = getattr(model, "stored", frozenset())  # includes layers that were unfrozen by hand and saved
    own = {
        plain_name(name): parameter
        for name, parameter in model.named_parameters()
        if not is_adapter(name)
        and (parameter.requires_grad or plain_name(name) in stored or not _is_given(name, model.config))
    }
    if quantized := [name for name, tensor in own.items() if not tensor.is_floating_point()]:
        raise ValueError(f"{quantized[0]} is quantized, and no base part has it; load the model without quantization")
    return own


def own_tensors(model):
    """{name: tensor} of `own_parameters` on the CPU; every process must call it if FSDP2 has sharded the model."""
    return {name: _whole(parameter.detach()).to("cpu").contiguous() for name, parameter in own_parameters(model).items()}


def _whole(tensor):
    """A tensor in one piece, gathered if it is spread over processes (a DTensor)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _check_shape(name, tensor, expected, source):
    found = shape_of(tensor)
    if found == expected:
        return
    reason = "it was trained for another vision tower or LLM"
    if name.endswith("projection.weight") and (variant := variant_of(found)):
        reason = f"this projection is that of {variant}, so take the parts of that model"
    raise ValueError(f"{source}: tensor {name!r} has shape {found}, expected {expected}; {reason}")


def _part_tensors(part, origin, config, expected, hub):
    """{name in the model: tensor or slice} of a base part."""
    repo, revision = origin["repo"], origin.get("revision")
    if origin == BASE_PARTS.get(part) and part == "vision_tower":
        return {f"model.{part}.{name}": tensor for name, tensor in vision_tower_weights().items()}
    if origin == BASE_PARTS.get(part):
        repo, revision = str(language_model()), None
    if repo.startswith("pypi:"):
        raise ValueError(f"{repo} {revision} is not a known {part}; known are {BASE_PARTS}")
    stored = StoredTensors(repo, revision=revision, **hub)
    names = _our_names(part, stored, config, expected)
    if not names:
        raise ValueError(f"{repo}: has no {part} of the kind that the config describes")
    return {ours: stored[theirs] for theirs, ours in names.items()}


def _our_names(part, theirs, config, expected):
    """{name in a repository: name in the model}: the repository may name the part "vision_model." or "model."."""
    if part == "model":
        return {name: name for name in theirs}  # also under older names, which transformers can read
    ours = f"model.{part}."
    prefix = common_prefix(theirs, [name.removeprefix(ours) for name in expected if name.startswith(ours)])
    if prefix is None:
        return {}
    names = {name: ours + name.removeprefix(prefix) for name in theirs if name.startswith(prefix)}
    if part == "qformer":
        names |= {name: "model.query_tokens" for name in theirs if name.endswith("query_tokens")}
        if norm := _norm_of_qformer(config):
            found = [re.search(r"(?:^|\.)vision_model\.post_layernorm(\.\w+)$", name) for name in theirs]
            names |= {match.string: norm + match[1] for match in found if match}
    if part == "language_model":
        names |= _head_names([name for name in theirs if name not in names], theirs, expected)
    return names


def _head_names(left, theirs, expected):
    """{name in a repository: name in the model} of the LLM's head, found by its shape since its name varies by LLM."""
    heads = [name for name in left if name.endswith(".weight") and shape_of(theirs[name]) == expected["lm_head.weight"]]
    # If there are several, as in a vision-language model: the one under the model's own name.
    stem = min(heads, key=lambda name: (not name.endswith("lm_head.weight"), name), default="").removesuffix("weight")
    return {name: "lm_head." + name.removeprefix(stem) for name in left if stem and name.rpartition(".")[0] + "." == stem}


def _is_given(name, config):
    """Whether a base part provides the parameter of this name."""
    base_parts = config.base_parts or {}
    if "model" in base_parts:
        return True
    part = name.removeprefix("model.").split(".")[0]
    if config.qformer_config is not None and name.rpartition(".")[0] == _norm_of_qformer(config):
        part = "qformer"
    return {"lm_head": "language_model", "query_tokens": "qformer"}.get(part, part) in base_parts
