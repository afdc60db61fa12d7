"""The original's checkpoints under this package's names: EVA ViT, BLIP-2 Q-Former, projection.

    eva_vit_g.pth                     eva_vit_weights      vision_tower, without its last LayerNorm
    blip2_pretrained_flant5xxl.pth    qformer_weights      vision_tower.post_layernorm, query_tokens, qformer
    prerained_minigpt4_7b.pth (sic)   projection_weights   projection

Each takes {name in the file: tensor} and returns {name in MiniGPT4ForConditionalGeneration: tensor} in the same precision.
Nothing is skipped silently: tensors that the original itself never uses are listed here, anything else is an error.
"""

import math
import re
from pathlib import Path

import torch
from torch.nn import functional
from transformers import Blip2QFormerConfig, Blip2VisionConfig
from transformers.utils import logging

from ..modeling_minigpt4.repositories import check_is_weights, read_pickle

logger = logging.get_logger(__name__)

_EVA_STEM = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
}
_EVA_BLOCK = {
    "norm1.weight": "layer_norm1.weight",
    "norm1.bias": "layer_norm1.bias",
    "attn.q_bias": "self_attn.q_bias",  # with v_bias becomes qkv.bias, see eva_vit_weights
    "attn.v_bias": "self_attn.v_bias",
    "attn.qkv.weight": "self_attn.qkv.weight",
    "attn.proj.weight": "self_attn.projection.weight",
    "attn.proj.bias": "self_attn.projection.bias",
    "norm2.weight": "layer_norm2.weight",
    "norm2.bias": "layer_norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
}
# EVA-CLIP's own last norm and classifier.
_EVA_UNUSED = (r"norm\.(weight|bias)", r"head\.(weight|bias)")

_QFORMER_ATTENTION = {
    "self.query": "attention.query",
    "self.key": "attention.key",
    "self.value": "attention.value",
    "output.dense": "output.dense",
    "output.LayerNorm": "output.LayerNorm",
}
_QFORMER_FEED_FORWARD = ("intermediate_query.dense", "output_query.dense", "output_query.LayerNorm")
# BLIP-2's projection for its own LLM; the older file also has the text branch and the heads of its first stage.
_QFORMER_UNUSED = (
    r"t5_proj\.(weight|bias)",
    r"Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings\.weight)",
    r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.(dense|LayerNorm)\.(weight|bias)",
    r"Qformer\.cls\.predictions\..+",
    r"(vision_proj|text_proj|itm_head)\.(weight|bias)",
    r"temp",
)

# The id of the padding token that Vicuna v0 added to LLaMA's 32,000.
_VICUNA_PAD = 32000

# Computed, not learned: buffers of frozen parts that the original's runner also saved.
_PROJECTION_UNUSED = (r"llama_model\..+\.rotary_emb\.inv_freq", r"Qformer\.bert\.embeddings\.position_ids")

# How a file of torch.save starts: zip, or pickle before PyTorch 1.6.
_MAGIC = (b"PK\x03\x04", b"\x80\x02")


def eva_vit_weights(state, num_layers, num_patches=None):
    """EVA ViT-g under our names, for a tower of `num_layers` blocks; the file may have one more, which BLIP-2 drops.

    Args:
        num_patches: of the tower, if the file was trained on images of another size: position embeddings are resized.

    Raises:
        ValueError: a tensor is unknown or missing.
    """
    names = {old: f"model.vision_tower.{new}" for old, new in _EVA_STEM.items()}
    layers = [f"model.vision_tower.encoder.layers.{layer}" for layer in range(num_layers)]
    for layer, ours in enumerate(layers):
        names.update({f"blocks.{layer}.{old}": f"{ours}.{new}" for old, new in _EVA_BLOCK.items()})
    last_block = rf"blocks\.{num_layers}\.({'|'.join(map(re.escape, _EVA_BLOCK))})"
    weights = _take(state, names, (*_EVA_UNUSED, last_block), f"EVA ViT checkpoint for {num_layers} blocks")
    for ours in layers:  # query and value have a bias, the key has none
        q_bias, v_bias = weights.pop(f"{ours}.self_attn.q_bias"), weights.pop(f"{ours}.self_attn.v_bias")
        weights[f"{ours}.self_attn.qkv.bias"] = torch.cat([q_bias, torch.zeros_like(v_bias), v_bias])
    if num_patches is not None:
        positions = "model.vision_tower.embeddings.position_embedding"
        weights[positions] = _resize_positions(weights[positions], num_patches)
    return weights


def qformer_weights(state):
    """BLIP-2's `ln_vision`, queries and Q-Former under our names; the text branch, if there is one, is left out.

    Raises:
        ValueError: a tensor is unknown or missing.
    """
    pairs = {"ln_vision": "vision_tower.post_layernorm", "Qformer.bert.embeddings.LayerNorm": "qformer.layernorm"}
    found = [re.match(r"Qformer\.bert\.encoder\.layer\.(\d+)\.", name) for name in state]
    for layer in range(1 + max((int(match[1]) for match in found if match), default=0)):
        theirs, ours = f"Qformer.bert.encoder.layer.{layer}", f"qformer.encoder.layer.{layer}"
        kinds = ["attention"]
        if any(name.startswith(f"{theirs}.crossattention.") for name in state):  # every second layer has it
            kinds.append("crossattention")
        for kind in kinds:
            pairs.update({f"{theirs}.{kind}.{old}": f"{ours}.{kind}.{new}" for old, new in _QFORMER_ATTENTION.items()})
        pairs.update({f"{theirs}.{part}": f"{ours}.{part}" for part in _QFORMER_FEED_FORWARD})
    names = {f"{old}.{kind}": f"model.{new}.{kind}" for old, new in pairs.items() for kind in ("weight", "bias")}
    return _take(state, {"query_tokens": "model.query_tokens", **names}, _QFORMER_UNUSED, "Q-Former checkpoint")


def projection_weights(state):
    """The projection of a MiniGPT-4 checkpoint under our names.

    Raises:
        ValueError: a tensor is unknown or missing.
    """
    names = {f"llama_proj.{kind}": f"model.projection.{kind}" for kind in ("weight", "bias")}
    return _take(state, names, _PROJECTION_UNUSED, "projection checkpoint")


def vision_config_of(state, num_attention_heads=None, **fields):
    """`Blip2VisionConfig` of an EVA ViT checkpoint: ViT-g's is known; for other sizes the shapes give all but the heads.

    Args:
        num_attention_heads: required for widths other than ViT-g's 1408.
        fields: further fields that differ from what the shapes say: num_hidden_layers, image_size.

    Raises:
        ValueError: not an EVA ViT, or num_attention_heads is missing.
    """
    missing = [name for name in ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight") if name not in state]
    if missing:
        raise ValueError(f"EVA ViT checkpoint: the tensor {missing[0]!r} is missing; is it the wrong file?")
    published = Blip2VisionConfig()
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    if num_attention_heads is None and width != published.hidden_size:
        raise ValueError(f"EVA ViT checkpoint of width {width}: its shapes do not tell the heads; give them with --config")
    shapes = {
        "hidden_size": width,
        "intermediate_size": state["blocks.0.mlp.fc1.weight"].shape[0],
        "patch_size": patch,
        "image_size": patch * math.isqrt(state["pos_embed"].shape[1] - 1),
        "num_hidden_layers": min(blocks, 39) if width == published.hidden_size else blocks - 1,
        "num_attention_heads": num_attention_heads or published.num_attention_heads,
    }
    return Blip2VisionConfig(**{**shapes, **fields})


def qformer_config_of(state, num_attention_heads=None, **fields):
    """`Blip2QFormerConfig` of a Q-Former checkpoint, like `vision_config_of`; BLIP-2's width is 768."""
    if "query_tokens" not in state:
        raise ValueError("Q-Former checkpoint: the tensor 'query_tokens' is missing; is it the wrong file?")
    published, width = Blip2QFormerConfig(), state["query_tokens"].shape[-1]
    if num_attention_heads is None and width != published.hidden_size:
        raise ValueError(f"Q-Former checkpoint of width {width}: its shapes do not tell the heads; give them with --config")
    layers = 1 + max((int(n.split(".")[4]) for n in state if n.startswith("Qformer.bert.encoder.layer.")), default=-1)
    crossed = [i for i in range(layers) if f"Qformer.bert.encoder.layer.{i}.crossattention.self.query.weight" in state]
    shapes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": num_attention_heads or published.num_attention_heads,
        "cross_attention_frequency": crossed[1] - crossed[0] if len(crossed) > 1 else max(layers, 1),
    }
    feed_forward = state.get("Qformer.bert.encoder.layer.0.intermediate_query.dense.weight")
    if feed_forward is not None:
        shapes["intermediate_size"] = feed_forward.shape[0]
    return Blip2QFormerConfig(**{**shapes, **fields})


def mend_llama_config(config):
    """Corrects, in place, the ids in an LLM's config that old LLaMA conversions (such as Vicuna v0) have wrong.

    They have bos 0, eos 1, pad -1; LLaMA's are 1 and 2. The 32,001st token that Vicuna v0 added is its padding: it stays in
    the table, because it is part of the softmax that the authors ran.
    """
    if config.model_type != "llama":
        return config
    if (config.bos_token_id, config.eos_token_id) == (0, 1):
        config.bos_token_id, config.eos_token_id = 1, 2
        logger.warning("The LLM's config says bos 0 and eos 1, as in old conversions of LLaMA; corrected to 1 and 2.")
    if config.pad_token_id in (None, -1, 0):  # 0 is <unk>, which represents images
        config.pad_token_id = config.eos_token_id
        if config.vocab_size == _VICUNA_PAD + 1:
            config.pad_token_id = _VICUNA_PAD
            logger.warning(f"The LLM has {config.vocab_size} tokens, as Vicuna v0 has; the last one is its padding.")
    return config


def mend_llama_tokenizer(tokenizer):
    """Corrects, in place, the names of special tokens in the tokenizer of such a repository."""
    vocabulary = tokenizer.get_vocab()
    for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")):
        if getattr(tokenizer, name) == "" and token in vocabulary:
            setattr(tokenizer, name, token)
    return tokenizer


def read_checkpoint(path):
    """{name: tensor} of a .pth file: the content of "model", if the file has that. Pickled code is never run.

    Raises:
        ValueError: one line that names the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected a checkpoint (.pth)")
    check_is_weights(path)
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith(_MAGIC):
        raise ValueError(f"{path}: not a checkpoint that PyTorch wrote (it starts with {start!r})")
    state = read_pickle(path)
    if isinstance(state, dict):
        state = state.get("model", state)
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(f"{path}: has no named tensors; expected them at the top level or under 'model'")
    return state


def _resize_positions(positions, num_patches):
    """Position embeddings [1, 1 + P, V] for another number of patches: bicubic over their grid, as the original does."""
    old, new = math.isqrt(positions.shape[1] - 1), math.isqrt(num_patches)
    if old == new:
        return positions
    grid = positions[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    patches = resized.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], patches], dim=1)


def _take(state, names, unused, what):
    """The tensors of a file by `names` {theirs: ours}; all others must match one of the patterns `unused`."""
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"{what}: the tensor {missing[0]!r} is missing ({len(missing)} of {len(names)} are)")
    for name in state:
        if name not in names and not any(re.fullmatch(pattern, name) for pattern in unused):
            raise ValueError(f"{what}: the tensor {name!r} is not known")
    return {ours: state[theirs] for theirs, ours in names.items()}
