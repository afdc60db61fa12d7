"""The memory a model takes, computed only from its config: no weight is read or downloaded."""

import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..modeling_minigpt4.lora import add_lora, is_adapter

# Bytes per weight, and per weight of a linear layer. bitsandbytes packs the latter with fp32 scales: one per row for int8,
# which is negligible, and one per 64 weights for int4.
PRECISIONS = {"fp32": (4, 4), "fp16": (2, 2), "bf16": (2, 2), "int8": (2, 1), "int4": (2, 0.5 + 4 / 64)}
PARTS = {
    "vision tower": "model.vision_tower.",
    "Q-Former": ("model.qformer.", "model.query_tokens"),
    "projection": "model.projection.",
    "language model": ("model.language_model.", "lm_head."),
}
PROMPT_TOKENS = 40  # approximate length of a stage-2 question in a chat template


def empty_model(config):
    """The model of a config, with weights on the meta device."""
    from .. import MiniGPT4ForConditionalGeneration

    with torch.device("meta"):
        return MiniGPT4ForConditionalGeneration(config).eval()


def parameters_by_part(model):
    """{part: number of parameters}; a head that shares its weights with the embeddings counts once."""
    named = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    return {part: sum(size for name, size in named if name.startswith(prefix)) for part, prefix in PARTS.items()}


def weight_bytes(model, precision):
    """Bytes of all weights: unpacked ones in bf16, except the projection in fp32; the head is never packed."""
    plain, packed = PRECISIONS[precision]
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    total = 0
    for name, parameter in model.named_parameters():
        size = plain if name not in linear or name.startswith("lm_head.") else packed
        total += parameter.numel() * (4 if name.startswith("model.projection.") else size)
    return round(total)


def cache_bytes(config, tokens, precision):
    """Bytes of the keys and values of a number of tokens."""
    text = config.text_config
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * tokens * PRECISIONS[precision][0]


def training_bytes(config, recipe):
    """{what: bytes} that a recipe's training takes on a device, computed like `weight_bytes` and `picture_bytes`.

    "weights": as loaded; "trained": gradients and Adam's two moments of what is trained; "a step": peak activations of the
    LLM forward and backward, or of the vision tower. PyTorch and CUDA themselves come on top.

    Args:
        config: the model's `MiniGPT4Config`. recipe: a `Recipe`.
    """
    section, dtype = recipe.model, recipe.model.dtype
    dtype = getattr(torch, dtype) if dtype != "auto" else config.dtype or config.text_config.dtype or torch.float32
    precision = {"4bit": "int4", "8bit": "int8"}.get(section.load_in) or ("fp32" if dtype == torch.float32 else "bf16")
    model = empty_model(config)
    weights = weight_bytes(model, precision)
    model.to(dtype).train()
    model.config.trained_parts = list(section.trained_parts)
    model.freeze()
    if section.lora_rank:
        with torch.device("meta"):
            add_lora(model, section.lora_rank, section.lora_alpha, target_modules=section.lora_targets)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    weights += 4 * sum(size for name, size in trained.items() if is_adapter(name))
    pictures = max(1, _tokens_at_once(recipe) // config.num_patches)
    seeing = min(pictures, recipe.train.batch_size) * picture_bytes(model, precision)
    return {"weights": weights, "trained": 12 * sum(trained.values()), "a step": max(seeing, _step_bytes(model, recipe))}


def _tokens_at_once(recipe):
    from ..training.frozen_llm import TOKENS_AT_ONCE

    return recipe.train.tokens_at_once or TOKENS_AT_ONCE["cuda"]


def _step_bytes(model, recipe):
    """Peak bytes of the LLM's activations, forward and backward: for a group of rows, or all rows if the LLM is trained."""
    train = recipe.train
    length = model.config.num_image_tokens + train.max_answer_tokens + (PROMPT_TOKENS if recipe.stage == 2 else 1)
    rows = train.batch_size
    if not recipe.model.lora_rank:
        rows = min(rows, max(1, _tokens_at_once(recipe) // length))
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    width, vocabulary = model.config.text_config.hidden_size, model.config.text_config.vocab_size
    embeddings = torch.empty(rows, length, width, dtype=model.dtype, device="meta", requires_grad=True)
    with _LiveBytes(model.parameters()) as live:
        hidden = model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        logits = model.compute_logits(hidden[:, -train.max_answer_tokens :])
        answers = torch.zeros(rows * logits.shape[1], dtype=torch.long, device="meta")
        nn.functional.cross_entropy(logits.float().view(-1, vocabulary), answers).backward()
    unpacked = max(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)) if recipe.model.load_in else 0
    return live.peak + embeddings.nbytes + unpacked * embeddings.element_size()


def picture_bytes(model, precision):
    """Peak bytes of activations while one image becomes visual tokens, freed operation by operation."""
    with _LiveBytes(model.parameters()) as live, torch.no_grad():
        model.get_image_features(torch.empty(1, 3, *model.config.image_size, dtype=model.dtype, device="meta"))
    return live.peak * PRECISIONS[precision][0] // model.dtype.itemsize


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of operations' results from creation until nothing refers to them, except those in `known`."""

    def __init__(self, known):
        super().__init__()
        self.now = self.peak = 0
        self.storages = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return True  # meta tensors have no values; transformers asks whether no row is packed
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage):
        if storage in self.storages:
            return
        self.storages.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size):
        self.now -= size
