"""Repositories of the published sizes as far as their configs and tokenizers go: no weights."""

import shutil
from pathlib import Path

from transformers import Blip2Config, LlamaConfig

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "parity" / "llama_tiny"
_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
_LLAMA_1 = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "vocab_size": 32000}
_LLAMA_2 = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32000}
# As their config.json files say; bos, eos and pad of the first two are the old bug that ORIGINAL.md names.
LLMS = {
    "Vision-CAIR/vicuna-7b": {
        **_7B,
        **_LLAMA_1,
        "vocab_size": 32001,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": -1,
    },
    "Vision-CAIR/vicuna": {
        **_13B,
        **_LLAMA_1,
        "vocab_size": 32001,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": -1,
    },
    "lmsys/vicuna-7b-v1.1": {**_7B, **_LLAMA_1},
    "lmsys/vicuna-7b-v1.5": {**_7B, **_LLAMA_2, "pad_token_id": 0},
    "lmsys/vicuna-13b-v1.5": {**_13B, **_LLAMA_2, "pad_token_id": 0},
    "meta-llama/Llama-2-7b-chat-hf": {**_7B, **_LLAMA_2},
}
_OF_LLAMA_2 = "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endfor %}"


def write_llm(name, folder):
    """The folder of one of `LLMS`; returns it."""
    LlamaConfig(**LLMS[name], dtype="bfloat16", tie_word_embeddings=False).save_pretrained(folder)
    for file in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(TOKENIZER / file, folder)
    if "Llama-2" in name:
        (folder / "chat_template.jinja").write_text(_OF_LLAMA_2)
    return folder


def write_blip2_config(folder):
    """BLIP-2's EVA ViT-g and Q-Former, which are transformers' defaults; returns the folder."""
    Blip2Config().save_pretrained(folder)
    return folder
