"""Writes the vision side of a model in the layout of a BLIP-2 on the Hub."""

import json

import torch
from safetensors.torch import save_file
from transformers import Blip2Config, OPTConfig


def write_blip2(model, folder):
    """A BLIP-2 with the vision tower and Q-Former of `model`, in two shards: the second contains only another LLM."""
    folder.mkdir()
    seeing = {f"vision_model.{name}": tensor for name, tensor in model.model.vision_tower.state_dict().items()}
    seeing |= {f"qformer.{name}": tensor for name, tensor in model.model.qformer.state_dict().items()}
    seeing["query_tokens"] = model.model.query_tokens.data
    speaking = {"language_model.model.decoder.embed_tokens.weight": torch.zeros(9, 9)}
    shards = {"model-00001-of-00002.safetensors": seeing, "model-00002-of-00002.safetensors": speaking}
    for name, tensors in shards.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, {"format": "pt"})
    index = {key: name for name, tensors in shards.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    Blip2Config(
        vision_config=model.config.vision_config.to_dict(),
        qformer_config=model.config.qformer_config.to_dict(),
        text_config=OPTConfig(hidden_size=16, ffn_dim=16, num_attention_heads=2, num_hidden_layers=1).to_dict(),
        num_query_tokens=model.config.num_query_tokens,
    ).save_pretrained(folder)
    return folder
