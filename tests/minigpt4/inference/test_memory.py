"""`minigpt4 memory`: what it says before anything is downloaded is what is then measured."""

import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile
from transformers import (
    BitsAndBytesConfig,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    DynamicCache,
    LlamaConfig,
    Qwen3Config,
    SiglipConfig,
    SiglipVisionConfig,
)

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from minigpt4.cli import main
from minigpt4.cli.memory import recipe_config
from minigpt4.configuration.recipe import Recipe, TrainSection, load_recipe
from minigpt4.inference.memory import (
    cache_bytes,
    empty_model,
    parameters_by_part,
    picture_bytes,
    training_bytes,
    weight_bytes,
)
from minigpt4.training.frozen_llm import FrozenLLM


@pytest.fixture(scope="module")
def config():
    """Small, but wide enough for scales of packed weights to be small beside them."""
    text = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    return MiniGPT4Config(
        vision_config=Blip2VisionConfig(hidden_size=352, intermediate_size=1536, num_hidden_layers=2, num_attention_heads=4),
        qformer_config=Blip2QFormerConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
        ),
        text_config=LlamaConfig(**text, num_attention_heads=4, num_key_value_heads=2, pad_token_id=2),
    )


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    MiniGPT4ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_weights_are_those_of_the_loaded_model(precision, config, folder):
    packed = {"int8": BitsAndBytesConfig(load_in_8bit=True), "int4": BitsAndBytesConfig(load_in_4bit=True)}
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    arguments = {"dtype": dtype, "device_map": "cpu"}
    if precision in packed:
        arguments["quantization_config"] = packed[precision]
    model = MiniGPT4ForConditionalGeneration.from_pretrained(folder, **arguments)
    found = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    found += sum(p.quant_state.absmax.numel() * 4 for p in model.parameters() if hasattr(p, "quant_state"))
    assert weight_bytes(empty_model(config), precision) == pytest.approx(found, rel=0 if precision not in packed else 0.01)


def test_keys_and_values_are_those_of_the_cache(config):
    model = MiniGPT4ForConditionalGeneration(config).eval()
    cache = DynamicCache(config=config.text_config)
    model(input_ids=torch.ones(1, 10, dtype=torch.long), past_key_values=cache)
    found = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(config, 10, "fp32") == found


def test_a_picture_takes_what_the_profiler_measures(config):
    model = MiniGPT4ForConditionalGeneration(config).eval()
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        model.get_image_features(pixels)
    assert picture_bytes(empty_model(config), "fp32") == pytest.approx(_peak(measured), rel=0.15)


def _peak(measured):
    """The most bytes at once that a profiler saw."""
    events = [event for event in measured.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.slow
def test_published_sizes(capsys):
    """Parameters as their authors count them; 7B in int8 fits where the original's does (11.5 GB)."""
    assert main(["memory", "--model", "vicuna-7b"]) == 0
    printed = capsys.readouterr().out
    parts = parameters_by_part(empty_model(MiniGPT4Config.preset("vicuna-7b")))
    assert parts["language model"] == 6_738_415_616 and parts["projection"] == 768 * 4096 + 4096
    assert "6,738.4 M" in printed and "1.05 GB" in printed
    [total] = [line.split() for line in printed.splitlines() if "in all" in line]
    assert 8 < float(total[-4]) < 11.5


def test_a_folder_needs_its_config_alone(folder, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert main(["memory", "--model", str(tmp_path)]) == 0
    assert "Q-Former" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"), [("/nowhere", "/nowhere: no such folder"), ("vicuna-70b", "vicuna-70b: no such folder")]
)
def test_unknown_model_is_one_line(name, message, capsys):
    assert main(["memory", "--model", name]) == 2
    assert message in capsys.readouterr().err


SIGLIP2 = {"num_hidden_layers": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
SIGLIP2_BASE = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
QWEN3 = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "tie_word_embeddings": True}
# What the recipes name, as published: dimensions, parameters of tower and LLM in millions, and the GPU they are for in GB.
PAIRS = {
    "siglip2-qwen3": (
        {**SIGLIP2, "image_size": 384, "patch_size": 14},
        {**QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
        (413, 4022),
        24,
    ),
    "siglip2-qwen3-small": (
        {**SIGLIP2_BASE, "image_size": 256, "patch_size": 16},
        {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
        (86, 596),
        8,
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_the_recipes_fit_the_gpu_that_they_name(pair, tmp_path, capsys):
    """From the config.json of their parts, which is all that is read."""
    vision, text, millions, gigabytes = PAIRS[pair]
    SiglipConfig(vision_config=vision).save_pretrained(tmp_path / "vision")
    Qwen3Config(**text).save_pretrained(tmp_path / "text")
    for stage in (1, 2):
        named = load_recipe(f"stage{stage}-{pair}")
        assert (named.model.load_in, named.model.dtype) == ("4bit" if gigabytes == 24 else "", "bfloat16")
        folders = {"model": {"vision": str(tmp_path / "vision"), "text": str(tmp_path / "text")}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"extends": f"stage{stage}-{pair}", **folders}))
        assert main(["memory", "--recipe", str(tmp_path / "recipe.yaml")]) == 0
        [total] = [float(line.split()[-2]) for line in capsys.readouterr().out.splitlines() if "in all" in line]
        assert gigabytes / 4 < total < gigabytes - 1.5  # CUDA, PyTorch and what allocating wastes come on top
    parts = parameters_by_part(empty_model(recipe_config(load_recipe(tmp_path / "recipe.yaml").model)))
    assert tuple(round(parts[name] / 1e6) for name in ("vision tower", "language model")) == millions


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_what_the_profiler_measures(checkpointing):
    text = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "head_dim": 64}
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = MiniGPT4Config(
        vision_config=SiglipVisionConfig(**vision, image_size=128, patch_size=16),
        text_config=Qwen3Config(**text, num_attention_heads=4, num_key_value_heads=2, pad_token_id=2),
    )
    recipe = Recipe()
    recipe.train = TrainSection(batch_size=4, max_answer_tokens=32, gradient_checkpointing=checkpointing)
    model = MiniGPT4ForConditionalGeneration(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    input_ids = torch.full((4, 49), 3)
    input_ids[:, 1:17] = config.image_token_id
    labels = torch.where(torch.arange(49) < 17, -100, input_ids)
    features = torch.randn(4, config.num_image_tokens, config.projection_width)
    way = FrozenLLM(model, tokens_at_once=4096)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured, way:
        model(input_ids=input_ids, labels=labels, vision_features=features).loss.backward()
    assert training_bytes(config, recipe)["a step"] == pytest.approx(_peak(measured), rel=0.2)
