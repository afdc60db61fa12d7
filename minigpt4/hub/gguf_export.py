"""Exports a model as two GGUF files for llama.cpp, without Python: model.gguf (LLM), mmproj.gguf (tower, projection).

    llama-server -m DIR/model.gguf --mmproj DIR/mmproj.gguf

llama.cpp can run models with a SigLIP tower, one linear layer, and an LLM of the families in `_TEXT`. After SigLIP, its
graphs have no single linear layer with a bias, but one of two layers with GELU (Janus-Pro's), and gelu(z) - gelu(-z) = z
for any variant of GELU: the first layer is [I, -I], the second [W, -W] with the projection's own bias, and nothing is
approximated. Names of tensors and fields are those of the `gguf` package and of llama.cpp's tools/mtmd/clip.cpp.
"""

import contextlib
import json
from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType, TokenType

from ..durable_files import file_in_place

TEXT_FILE, VISION_FILE = "model.gguf", "mmproj.gguf"
_TYPES = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}
# model_type of transformers: llama.cpp's architecture, and whether its rotary embeddings pair neighbours (not halves).
_TEXT = {
    "llama": (gguf.MODEL_ARCH.LLAMA, True),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, False),
    "qwen3": (gguf.MODEL_ARCH.QWEN3, False),
}
# How a byte-level tokenizer splits text: (its regular expression, digits one by one) -> llama.cpp's name for that.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {(None, False): "gpt-2", (None, True): "smollm", (_LLAMA_3, False): "llama-bpe", (_QWEN_2, False): "qwen2"}
_SIGLIP = {
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.patch_embedding.bias": "v.patch_embd.bias",
    "embeddings.position_embedding.weight": "v.position_embd.weight",
    "post_layernorm": "v.post_ln",
}
_SIGLIP_LAYER = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def check(config, processor=None):
    """Raises ValueError, one line, for the first part of a model that llama.cpp cannot run.

    Args:
        config: a `MiniGPT4Config`.
        processor: its `MiniGPT4Processor`; None: what depends on it is not checked.
    """
    vision, text = config.vision_config, config.text_config
    cannot = "llama.cpp cannot run this model: "
    if vision.model_type != "siglip_vision_model":
        raise ValueError(f"{cannot}its vision tower is {vision.model_type!r}; expected 'siglip_vision_model'")
    if vision.hidden_act != "gelu_pytorch_tanh":
        raise ValueError(f"{cannot}its vision tower has the activation {vision.hidden_act!r}; expected 'gelu_pytorch_tanh'")
    if config.qformer_config is not None:
        raise ValueError(f"{cannot}it has a Q-Former, which no graph of llama.cpp has; expected one linear layer")
    if config.patch_merge != 1:
        raise ValueError(f"{cannot}patch_merge is {config.patch_merge}, and patches in a row are merged; expected 1")
    if config.projection_layers != 1:
        raise ValueError(f"{cannot}projection_layers is {config.projection_layers}; expected 1")
    if text.model_type not in _TEXT:
        raise ValueError(f"{cannot}its language model is {text.model_type!r}; expected one of {', '.join(_TEXT)}")
    rope = text.rope_parameters
    if rope["rope_type"] != "default":
        raise ValueError(f"{cannot}rope_type is {rope['rope_type']!r}, which is not written here; expected 'default'")
    if processor is None:
        return
    size = processor.image_processor.size
    if {size.height, size.width} != {vision.image_size}:
        raise ValueError(f"{cannot}images become {size.height} x {size.width}; expected {vision.image_size}, as the tower's")
    if (tokenizer := _tokenizer(processor))["model"]["type"] != "BPE" or not (_is_spm(tokenizer) or _split(tokenizer)):
        raise ValueError(f"{cannot}its tokenizer is neither SentencePiece's BPE nor byte-level with a known split")


def export(model, processor, directory):
    """Writes the two files, each atomically; returns their paths.

    Matrices keep the model's precision; `llama-quantize` makes them smaller.

    Args:
        model: a `MiniGPT4ForConditionalGeneration`.
        processor: its `MiniGPT4Processor`.
        directory: the output folder; files with these names are replaced.

    Raises:
        ValueError: as for `check`.
        OSError: it cannot be written.
    """
    check(model.config, processor)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    arch, _ = _TEXT[model.config.text_config.model_type]
    _write(
        directory / TEXT_FILE, gguf.MODEL_ARCH_NAMES[arch], lambda writer: _add_text(writer, model.config, processor, state)
    )
    _write(directory / VISION_FILE, "clip", lambda writer: _add_vision(writer, model.config, processor, state))
    return directory / TEXT_FILE, directory / VISION_FILE


def _write(path, architecture, add):
    """Writes a GGUF file, which may be larger than memory."""
    with file_in_place(path) as scratch, contextlib.closing(gguf.GGUFWriter(scratch, architecture)) as writer:
        add(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _add_tensor(writer, name, tensor):
    """Matrices as they are stored, the rest in fp32, as llama.cpp expects."""
    kind = _TYPES.get(tensor.dtype, GGMLQuantizationType.F32) if tensor.dim() > 1 else GGMLQuantizationType.F32
    data = gguf.quantize(tensor.float().cpu().contiguous().numpy(), kind)
    writer.add_tensor(name, data, raw_dtype=kind)


def _add_text(writer, config, processor, state):
    text = config.text_config
    arch, neighbours = _TEXT[text.model_type]
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    writer.add_name("MiniGPT-4")
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_freq_base(text.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(text.vocab_size)
    _add_tokenizer(writer, processor, text.vocab_size)
    names = gguf.get_tensor_name_map(arch, text.num_hidden_layers)
    rotated = {".q_proj.": heads, ".k_proj.": kv_heads} if neighbours else {}
    for name, stored in state.items():
        if not name.startswith("model.language_model.") and (name != "lm_head.weight" or config.tie_word_embeddings):
            continue
        theirs = names.get_name(name.replace("model.language_model.", "model.", 1), try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise ValueError(f"llama.cpp cannot run this model: it has no place for the tensor {name}")
        turning = next((count for part, count in rotated.items() if part in name), None)
        _add_tensor(writer, theirs, _neighbours(stored, turning) if turning else stored)


def _neighbours(tensor, heads):
    """[heads * d, ...]: rows reordered for rotary embeddings on neighbours, where transformers pairs halves."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _add_vision(writer, config, processor, state):
    vision, images = config.vision_config, processor.image_processor
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("janus_pro")
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_hidden_layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_projection_dim(config.text_config.hidden_size)
    writer.add_vision_image_mean(list(images.image_mean))
    writer.add_vision_image_std(list(images.image_std))
    for name, tensor in state.items():
        if (
            theirs := _siglip_name(name.removeprefix("model.vision_tower."))
            if name.startswith("model.vision_tower.")
            else None
        ):
            # Embedding lookups and the convolution, which llama.cpp does in fp32.
            _add_tensor(writer, theirs, tensor.float() if "embeddings." in name else tensor)
    weight, bias = state["model.projection.weight"], state["model.projection.bias"]
    both = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    _add_tensor(writer, "mm.0.weight", torch.cat([both, -both]))
    _add_tensor(writer, "mm.0.bias", torch.zeros(2 * weight.shape[1]))
    _add_tensor(writer, "mm.1.weight", torch.cat([weight, -weight], 1))
    _add_tensor(writer, "mm.1.bias", bias)


def _siglip_name(name):
    """llama.cpp's name of a tower's tensor; None for the pooling head, which is not used."""
    if name in _SIGLIP:
        return _SIGLIP[name]
    stem, _, kind = name.rpartition(".")
    if stem in _SIGLIP:
        return f"{_SIGLIP[stem]}.{kind}"
    if name.startswith("encoder.layers."):
        layer, _, part = stem.removeprefix("encoder.layers.").partition(".")
        return f"v.blk.{layer}.{_SIGLIP_LAYER[part]}.{kind}"
    return None


def _tokenizer(processor):
    """The tokenizer as JSON of `tokenizers`."""
    return json.loads(processor.tokenizer.backend_tokenizer.to_str())


def _is_spm(tokenizer):
    """Whether it is SentencePiece's BPE, with bytes for unknown text."""
    return tokenizer["model"]["byte_fallback"]


def _split(tokenizer):
    """llama.cpp's name for a byte-level tokenizer's way of splitting text; None if it is not known here."""
    steps = tokenizer["pre_tokenizer"]
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    while any(step["type"] == "Sequence" for step in steps):
        steps = [part for step in steps for part in (step["pretokenizers"] if step["type"] == "Sequence" else [step])]
    kinds = [step["type"] for step in steps]
    if "ByteLevel" not in kinds or set(kinds) - {"ByteLevel", "Split", "Digits"}:
        return None
    patterns = [step["pattern"]["Regex"] for step in steps if step["type"] == "Split" and "Regex" in step["pattern"]]
    digits = any(step["type"] == "Digits" and step["individual_digits"] for step in steps)
    return _SPLITS.get((patterns[0] if patterns else None, digits)) if len(patterns) < 2 else None


def _add_tokenizer(writer, processor, vocab_size):
    tokenizer, described = processor.tokenizer, _tokenizer(processor)
    added = {token["id"]: token for token in described["added_tokens"]}
    ids = {index: token for token, index in described["model"]["vocab"].items()} | {
        i: t["content"] for i, t in added.items()
    }
    tokens, kinds = [], []
    for index in range(vocab_size):
        tokens.append(ids.get(index, f"[PAD{index}]"))
        kinds.append(_token_type(index, ids, added, tokenizer.unk_token_id if _is_spm(described) else None))
    writer.add_tokenizer_model("llama" if _is_spm(described) else "gpt2")
    writer.add_tokenizer_pre("default" if _is_spm(described) else _split(described))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [tuple(merge) for merge in described["model"]["merges"]]
    if _is_spm(described):
        # SentencePiece merges the pair with the highest score; `tokenizers` keeps the order of merges but no scores.
        rank = {}
        for place, (left, right) in enumerate(merges):
            rank.setdefault(left + right, place)
        writer.add_token_scores([-float(rank.get(token, len(merges))) for token in tokens])
        writer.add_add_space_prefix(True)
    else:
        writer.add_token_merges([" ".join(merge) for merge in merges])
    for name, add in {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "pad": writer.add_pad_token_id,
    }.items():
        if (index := getattr(tokenizer, f"{name}_token_id")) is not None:
            add(index)
    # The templates write BOS themselves if the LLM has one.
    first = tokenizer("a").input_ids[:1]
    template = processor.chat_template
    writer.add_add_bos_token(first == [tokenizer.bos_token_id] and "bos_token" not in template)
    writer.add_add_eos_token(False)
    writer.add_chat_template(_llama_cpp_template(template, processor.image_token))


def _token_type(index, ids, added, unknown):
    if index not in ids:
        return TokenType.UNUSED
    if index == unknown:
        return TokenType.UNKNOWN
    if index in added:
        return TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED
    byte = len(ids[index]) == 6 and ids[index].startswith("<0x")
    return TokenType.BYTE if byte and unknown is not None else TokenType.NORMAL


def _llama_cpp_template(template, image_token):
    """The chat template for llama.cpp, which does not support `generation` blocks and puts a mark into the text per image.

    A message with images arrives as one text, "<__media_...__>What is this?": the template adds the tags around the image
    and the space after it.
    """
    for word in ("generation", "endgeneration"):
        other = "if true" if word == "generation" else "endif"
        template = template.replace(f"{{%- {word} -%}}", f"{{%- {other} -%}}")
    if f"<Img>{image_token}</Img>" in template:
        marked = "content | replace('<__media', '<Img><__media') | replace('__>', '__></Img> ')"
        template = template.replace("{{ content }}", f"{{{{ {marked} }}}}", 1)
    return template
