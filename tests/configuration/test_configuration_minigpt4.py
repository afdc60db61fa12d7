"""Presets are the published models, down to the parameter; configs survive saving; impossible ones say why."""

import re

import pytest
import torch
from transformers import AutoConfig, Dinov2Config, LlamaConfig, SiglipVisionConfig

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration

PRESETS = ["vicuna-7b", "vicuna-13b", "llama2-7b-chat", "embedded"]

# Counted by hand from the published dimensions (ORIGINAL.md), not by the code under test.
VIT_WIDTH, VIT_MLP, VIT_BLOCKS, VIT_TOKENS = 1408, 6144, 39, 16 * 16 + 1
BERT_WIDTH, BERT_MLP, BERT_LAYERS, QUERIES = 768, 3072, 12, 32
LLAMA_7B, LLAMA_13B = 6_738_415_616, 13_015_864_320


def linear(inputs, outputs, bias=True):
    return inputs * outputs + (outputs if bias else 0)


def eva_vit_g():
    attention = linear(VIT_WIDTH, 3 * VIT_WIDTH) + linear(VIT_WIDTH, VIT_WIDTH)
    block = 2 * 2 * VIT_WIDTH + attention + linear(VIT_WIDTH, VIT_MLP) + linear(VIT_MLP, VIT_WIDTH)
    embeddings = VIT_WIDTH + VIT_TOKENS * VIT_WIDTH + linear(3 * 14 * 14, VIT_WIDTH)
    return embeddings + VIT_BLOCKS * block + 2 * VIT_WIDTH  # ln_vision


def qformer():
    attention = 4 * linear(BERT_WIDTH, BERT_WIDTH) + 2 * BERT_WIDTH
    cross = 2 * linear(BERT_WIDTH, BERT_WIDTH) + 2 * linear(VIT_WIDTH, BERT_WIDTH) + 2 * BERT_WIDTH
    feed_forward = linear(BERT_WIDTH, BERT_MLP) + linear(BERT_MLP, BERT_WIDTH) + 2 * BERT_WIDTH
    return 2 * BERT_WIDTH + BERT_LAYERS * (attention + feed_forward) + BERT_LAYERS // 2 * cross


def smollm2_135m():
    width, mlp, heads = 576, 1536, 3 * 64
    layer = 2 * linear(width, width, False) + 2 * linear(width, heads, False) + 3 * linear(width, mlp, False) + 2 * width
    return 49152 * width + 30 * layer + width  # lm_head is tied


def efficientnet_lite0():
    weights, channels = 3 * 3 * 3 * 32 + 320 * 1280, 32 + 1280  # stem and head
    inputs = 32
    for kernel, expansion, outputs, repeats in [
        (3, 1, 16, 1),
        (3, 6, 24, 2),
        (5, 6, 40, 2),
        (3, 6, 80, 3),
        (5, 6, 112, 3),
        (5, 6, 192, 4),
        (3, 6, 320, 1),
    ]:
        for _ in range(repeats):
            width = inputs * expansion
            weights += (inputs * width if expansion > 1 else 0) + kernel * kernel * width + width * outputs
            channels += (width if expansion > 1 else 0) + width + outputs
            inputs = outputs
    # As published: two numbers of batch normalization for each channel, and ImageNet's classifier.
    assert weights + 2 * channels + linear(1280, 1000) == 4_652_008
    return weights + channels  # ours has the normalization folded into weights and biases


PARTS = {
    "vicuna-7b": {
        "vision_tower": eva_vit_g(),
        "query_tokens": QUERIES * BERT_WIDTH,
        "qformer": qformer(),
        "projection": linear(BERT_WIDTH, 4096),
        "llm": LLAMA_7B,
    },
    "vicuna-13b": {
        "vision_tower": eva_vit_g(),
        "query_tokens": QUERIES * BERT_WIDTH,
        "qformer": qformer(),
        "projection": linear(BERT_WIDTH, 5120),
        "llm": LLAMA_13B,
    },
    "llama2-7b-chat": {
        "vision_tower": eva_vit_g(),
        "projection": linear(4 * VIT_WIDTH, 4096),
        "llm": LLAMA_7B,
    },
    "embedded": {
        "vision_tower": efficientnet_lite0(),
        "projection": linear(1280, 576),
        "llm": smollm2_135m(),
    },
}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_has_the_published_models_parameters(preset):
    with torch.device("meta"):
        model = MiniGPT4ForConditionalGeneration(MiniGPT4Config.preset(preset))
    counts = {}
    for name, parameter in model.named_parameters():  # a tied lm_head is counted once
        part = re.match(r"(?:model\.)?(\w+)", name)[1]
        part = "llm" if part in ("language_model", "lm_head") else part
        counts[part] = counts.get(part, 0) + parameter.numel()
    assert counts == PARTS[preset]


def test_names_of_the_weights_are_those_that_repositories_hold():
    """Published repositories and other engines address the weights by these names."""
    with torch.device("meta"):
        names = {*MiniGPT4ForConditionalGeneration(MiniGPT4Config.preset("vicuna-7b")).state_dict()}
    assert {
        "model.vision_tower.embeddings.class_embedding",
        "model.vision_tower.encoder.layers.38.self_attn.qkv.bias",
        "model.vision_tower.post_layernorm.weight",
        "model.query_tokens",
        "model.qformer.encoder.layer.10.crossattention.attention.key.weight",
        "model.qformer.encoder.layer.11.output_query.dense.weight",
        "model.projection.weight",
        "model.projection.bias",
        "model.language_model.layers.31.mlp.down_proj.weight",
        "lm_head.weight",
    } <= names
    layers_with_cross_attention = {
        int(match[1]) for name in names if (match := re.search(r"qformer\.encoder\.layer\.(\d+)\.crossattention", name))
    }
    assert layers_with_cross_attention == {0, 2, 4, 6, 8, 10}
    text_branch = r"qformer\.(embeddings|cls)|layer\.\d+\.(intermediate|output)\."
    assert not [name for name in names if re.search(text_branch, name)]


@pytest.mark.parametrize(("preset", "tokens"), [*zip(PRESETS, [32, 32, 64, 9], strict=True)])
def test_visual_tokens_of_a_picture(preset, tokens):
    assert MiniGPT4Config.preset(preset).num_image_tokens == tokens


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_keeps_image_token_and_padding_apart(preset):
    text = MiniGPT4Config.preset(preset).text_config
    assert MiniGPT4Config.preset(preset).image_token_id not in (text.pad_token_id, text.bos_token_id, text.eos_token_id)


@pytest.mark.parametrize(
    "config",
    [
        *[MiniGPT4Config.preset(preset) for preset in PRESETS],
        MiniGPT4Config(vision_config=SiglipVisionConfig(), text_config=LlamaConfig(vocab_size=99), image_token_id=98),
        MiniGPT4Config(vision_config=Dinov2Config(), projection_layers=3, trained_parts=["projection", "query_tokens"]),
        MiniGPT4Config.preset("embedded", base_parts={"vision_tower": {"repo": "pypi:x", "revision": "1"}}),
    ],
    ids=lambda config: config.vision_config.model_type,
)
def test_config_is_the_same_after_saving(config, tmp_path):
    config.save_pretrained(tmp_path)
    for loaded in (MiniGPT4Config.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is MiniGPT4Config
        loaded.name_or_path = config.name_or_path  # the one thing that loading adds
        assert loaded.to_dict() == config.to_dict()
        assert type(loaded.vision_config) is type(config.vision_config)
        assert loaded.num_image_tokens == config.num_image_tokens


def test_sub_configs_may_be_dicts():
    config = MiniGPT4Config(
        vision_config={"model_type": "siglip_vision_model", "hidden_size": 48},
        qformer_config={"hidden_size": 24},
        text_config={"model_type": "gpt2", "n_embd": 32},
    )
    assert config.vision_config.hidden_size == config.qformer_config.encoder_hidden_size == 48
    assert config.text_config.hidden_size == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"projection_layers": 0}, "projection_layers is 0"),
        ({"image_token_id": 32000}, "image_token_id is 32000.*32000 rows"),
        ({"image_token_id": -1}, "image_token_id is -1"),
        ({"text_config": {"model_type": "llama"}, "patch_merge": 3}, "patch_merge is 3.*256 patches"),
        ({"vision_config": {"model_type": "no_such_tower"}}, "unknown model_type 'no_such_tower'"),
    ],
)
def test_impossible_configs_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        MiniGPT4Config(**arguments)


def test_without_parts_it_is_the_papers_model():
    assert MiniGPT4Config().to_dict() == MiniGPT4Config.preset("vicuna-7b").to_dict()
    without = MiniGPT4Config.preset("vicuna-7b", qformer_config=None)
    assert without.qformer_config is None and MiniGPT4Config.from_dict(without.to_dict()).qformer_config is None


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="vicuna-7b, vicuna-13b, llama2-7b-chat, embedded"):
        MiniGPT4Config.preset("vicuna")
