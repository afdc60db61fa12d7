"""What a model takes in memory, from its config alone: no weight is read or downloaded."""

import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

# Bytes of a weight, and of a weight of a linear layer. bitsandbytes packs these with a scale in fp32: for int8 one a row,
# which is little, for int4 one for 64 weights.
PRECISIONS = {"fp32": (4, 4), "fp16": (2, 2), "bf16": (2, 2), "int8": (2, 1), "int4": (2, 0.5 + 4 / 64)}
PARTS = {
    "vision tower": "model.vision_tower.",
    "Q-Former": ("model.qformer.", "model.query_tokens"),
    "projection": "model.projection.",
    "language model": ("model.language_model.", "lm_head."),
}


def empty_model(config):
    """The model of a config with no memory behind its weights."""
    from . import MiniGPT4ForConditionalGeneration

    with torch.device("meta"):
        return MiniGPT4ForConditionalGeneration(config).eval()


def parameters_by_part(model):
    """{part: number of parameters}; a head that shares its weights with the embeddings counts once."""
    named = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    return {part: sum(size for name, size in named if name.startswith(prefix)) for part, prefix in PARTS.items()}


def weight_bytes(model, precision):
    """Bytes of all weights, in bf16 what is not packed; the projection stays in fp32 and the head is not packed."""
    plain, packed = PRECISIONS[precision]
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    total = 0
    for name, parameter in model.named_parameters():
        size = plain if name not in linear or name.startswith("lm_head.") else packed
        total += parameter.numel() * (4 if name.startswith("model.projection.") else size)
    return round(total)


def cache_bytes(config, tokens, precision):
    """Bytes of the keys and values of that many tokens."""
    text = config.text_config
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * tokens * PRECISIONS[precision][0]


def picture_bytes(model, precision):
    """Peak bytes of the activations while one picture becomes visual tokens, as operation after operation frees them."""
    with _LiveBytes(model.parameters()) as live, torch.no_grad():
        model.get_image_features(torch.empty(1, 3, *model.config.image_size, device="meta"))
    return live.peak * PRECISIONS[precision][0] // 4


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of what operations make, from when it is made until nothing refers to it, but not of `known`."""

    def __init__(self, known):
        super().__init__()
        self.now = self.peak = 0
        self.storages = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
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
