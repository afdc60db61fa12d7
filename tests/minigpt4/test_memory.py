"""`minigpt4 memory`: what it says before anything is downloaded is what is then there."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BitsAndBytesConfig, Blip2QFormerConfig, Blip2VisionConfig, DynamicCache, LlamaConfig

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from minigpt4.cli import main
from minigpt4.memory import cache_bytes, empty_model, parameters_by_part, picture_bytes, weight_bytes


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
    events = [event for event in measured.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert picture_bytes(empty_model(config), "fp32") == pytest.approx(peak, rel=0.15)


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
