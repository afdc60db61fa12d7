"""Dimensions of the published models, for `MiniGPT4Config.preset`."""

from transformers import Blip2QFormerConfig, LlamaConfig

from .configuration_minigpt4 import EfficientNetLiteConfig

# See the authors' checkpoints. `LlamaConfig()` is LLaMA-1 7B, whose vocabulary and context Vicuna shares (except for v0's
# padded 32,001 rows). LLaMA's <unk> (id 0) marks the visual tokens, so padding needs an id other than the usual 0.
_LLAMA = {"pad_token_id": 2}
_LLAMA_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
_LLAMA_2 = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def _eva_with_qformer(**text):
    return {"qformer_config": Blip2QFormerConfig(), "text_config": LlamaConfig(**_LLAMA, **text)}


# {name: function that returns the fields of `MiniGPT4Config`}
PRESETS = {
    "vicuna-7b": _eva_with_qformer,
    "vicuna-13b": lambda: _eva_with_qformer(**_LLAMA_13B),
    "llama2-7b-chat": lambda: {"text_config": LlamaConfig(**_LLAMA, **_LLAMA_2)},
    "embedded": lambda: {
        "vision_config": EfficientNetLiteConfig(),
        "patch_merge": 1,
        "text_config": LlamaConfig(**_SMOLLM2_135M),
        "image_token_id": 16,
    },
}
