"""LoRA adapters on the LLM, through peft: the paper's ablation "LoRA on Vicuna".

    add_lora(model)             new adapters, trained together with the projection
    load_lora(model, repo)      those of a repository; `from_pretrained` does it where `config.trained_parts` names "lora"
    save_lora(model, folder)    lora/adapter_config.json and lora/adapter_model.safetensors, as peft writes them
    merged_state_dict(model)    the same model as plain weights, which need no peft

They have a folder of their own because for an adapter_config.json next to a config.json on the Hub, `AutoModel` loads the
`base_model_name_or_path` instead of the repository. peft reads that folder like any other:
`PeftModel.from_pretrained(model, "FOLDER/lora")`, or on the Hub `PeftModel.from_pretrained(model, ID, subfolder="lora")`.
"""

import copy
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

# Their name in `config.trained_parts`, and their folder in a repository.
LORA = "lora"

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # peft's prefix to the model's own names


def add_lora(model, rank=64, alpha=16, dropout=0.05, target_modules=("q_proj", "v_proj")):
    """Adds new adapters to the LLM of a `MiniGPT4ForConditionalGeneration`, in place; returns the model.

    They start as no change at all, in fp32. They are trained, as are the other parts that `config.trained_parts` names. The
    defaults are those of the original's `minigpt_base.py`, the rank that of its successor's recipes: the paper gives none.

    Args:
        rank, alpha: of the update `alpha / rank * B @ A`, with A [rank, in] and B [out, rank].
        dropout: on the adapters' input, in training.
        target_modules: names of linear layers in the LLM.

    Raises:
        ValueError: the LLM has no such layers, or the model already has adapters.
        ImportError: peft is not installed.
    """
    if has_lora(model):
        raise ValueError("the model already has adapters; merge them first (a full export does)")
    layers = rf"model\.language_model\.(?:.*\.)?({'|'.join(map(re.escape, target_modules))})"
    found = {match[1] for name, _ in model.named_modules() if (match := re.fullmatch(layers, name))}
    if missing := sorted({*target_modules} - found):
        layers = model.model.language_model.named_modules()
        linear = {name.rpartition(".")[2] for name, layer in layers if isinstance(layer, torch.nn.Linear | Conv1D)}
        raise ValueError(f"the LLM has no modules called {missing[0]!r}; its linear layers are {', '.join(sorted(linear))}")
    return _add(model, _peft().LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers))


def load_lora(model, repo, **hub):
    """Loads the adapters of a light repository into a model, in place, with or without existing ones of the same shape.

    Args:
        repo: a folder or a Hub id.
        hub: arguments of `from_pretrained` that say which copy: revision, token, ...

    Raises:
        OSError: the repository has no adapters.
        ValueError: they are damaged or belong to another model; with what was found and expected.
    """
    config_file, weights = (cached_file(repo, f"{LORA}/{name}", **hub) for name in (_CONFIG, _WEIGHTS))
    try:
        config = _peft().LoraConfig.from_pretrained(Path(config_file).parent)
        given = {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(weights).items()}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{repo}: its adapters in {LORA}/ are damaged ({str(error).splitlines()[0]})") from error
    if not isinstance(config, _peft().LoraConfig):
        raise ValueError(f"{repo}: {LORA}/{_CONFIG} describes {config.peft_type.value}; expected LORA")
    config.init_lora_weights, config.megatron_config = True, None  # these change the LLM, and import what they name
    if not has_lora(model):
        _add(model, config)
    own = model.peft_config[model.active_adapters()[0]]
    for field in ("lora_alpha", "use_rslora", "use_dora"):
        if getattr(config, field) != getattr(own, field):
            raise ValueError(
                f"{repo}: its adapters have {field} {getattr(config, field)}, the model's {getattr(own, field)}"
            )
    expected = _adapter_tensors(model)
    for name in sorted(given.keys() | expected.keys()):
        found, wanted = (tuple(them[name].shape) if name in them else "no such tensor" for them in (given, expected))
        if found != wanted:
            raise ValueError(f"{repo}: {LORA}/{_WEIGHTS} has for {name!r} {found}, the model expects {wanted}")
    _peft().set_peft_model_state_dict(model, given)
    return model


def save_lora(model, folder):
    """Writes the adapters of a model to `folder`/lora."""
    folder = Path(folder) / LORA
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_PREFIX + name: tensor.cpu().contiguous() for name, tensor in _adapter_tensors(model).items()}
    save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    config = copy.copy(model.peft_config[model.active_adapters()[0]])
    config.base_model_name_or_path, config.inference_mode = None, True  # no path of this machine; as peft saves it
    config.save_pretrained(folder)


def plain_state_dict(model):
    """A model's state dict without its adapters, under the names it would have without them.

    Raises:
        ValueError: they are on quantized weights.
    """
    if has_lora(model) and getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("the adapters are on quantized weights: export light, load that without quantization, export it")
    return {plain_name(name): tensor for name, tensor in model.state_dict().items() if not is_adapter(name)}


def merged_state_dict(model):
    """The same with the adapters merged in. The model is unchanged: peft merges into a copy of each adapted layer."""
    tensors = plain_state_dict(model)
    if has_lora(model):
        for name, layer in model.named_modules():
            if isinstance(layer, _peft().tuners.tuners_utils.BaseTunerLayer):
                merged = copy.deepcopy(layer)
                merged.merge(safe_merge=True)
                tensors |= {f"{name}.{key}": tensor for key, tensor in merged.get_base_layer().state_dict().items()}
    return tensors


def has_lora(model):
    """Whether a model has adapters."""
    return bool(getattr(model, "peft_config", None))


def is_adapter(name):
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def plain_name(name):
    """The name that an adapted weight has without its adapter."""
    return name.replace(".base_layer.", ".")


def _add(model, config):
    model.add_adapter(config)
    _peft().functional.cast_adapter_dtype(model, model.active_adapters()[0])  # fp32, whatever the LLM's precision
    if LORA not in model.config.trained_parts:
        model.config.trained_parts = [*model.config.trained_parts, LORA]
    model.train(model.training)  # fresh modules are in train mode, with dropout
    return model.freeze()


def _adapter_tensors(model):
    """{name: tensor} of the adapters, as peft names them."""
    name = model.active_adapters()[0]
    return _peft().get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def _peft():
    """peft, needed only here: inside `try`, transformers does not require it to run this file from the Hub."""
    try:
        import peft
        import peft.functional
    except ImportError as error:
        raise ImportError("LoRA adapters need peft; run `pip install peft`") from error
    return peft
