"""Training on 4-bit weights: only the projection, and with LoRA (QLoRA); a recipe's settings for parts and for a base."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from transformers import Blip2VisionConfig, LlamaConfig

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.configuration.recipe import Recipe, TrainSection
from minigpt4.hub.export import export
from minigpt4.inference.named_models import load
from minigpt4.modeling_minigpt4.lora import is_adapter, plain_name
from minigpt4.processing.data.datasets import PictureTexts
from minigpt4.training.run import load_model, train


@pytest.fixture
def recipe(tokenizer, tmp_path):
    """Three steps on a tiny model whose widths are multiples of 64, as 4-bit weights require."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MiniGPT4Config(
        vision_config=Blip2VisionConfig(**sizes, image_size=56),
        text_config=LlamaConfig(**sizes, vocab_size=512, pad_token_id=2),
    )
    model = MiniGPT4ForConditionalGeneration(config)
    base = export(model, MiniGPT4Processor.for_model(config, tokenizer), tmp_path / "base")
    recipe = Recipe(output=str(tmp_path / "run"))
    recipe.model.base, recipe.model.projection, recipe.model.load_in = str(base), "base", "4bit"
    recipe.train = TrainSection(steps=3, batch_size=2, learning_rate=1e-2, warmup_steps=0, check_first_loss=False)
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_what_is_trained_on_4_bit_weights_fits_those_that_are_whole(lora, recipe, picture):
    if lora:
        recipe.model.lora_rank, recipe.model.lora_alpha, recipe.model.lora_targets = 2, 6, ["k_proj", "down_proj"]
    texts = [{"picture": i, "text": text} for i, text in enumerate(("a cat", "two dogs"))]
    dataset = PictureTexts([{"image": picture(i)} for i in range(2)], texts)
    model, _, summary = train(recipe, dataset=dataset)
    assert model.model.language_model.layers[0].mlp.gate_proj.weight.dtype == torch.uint8
    assert summary["last_loss"] < summary["first_loss"]
    before, (again, _) = load(recipe.model.base)[0].state_dict(), load(f"{recipe.output}/model")
    state = {plain_name(name): tensor for name, tensor in again.state_dict().items() if not is_adapter(name)}
    assert {name.split(".")[1] for name in state if not torch.equal(state[name], before[name])} == {"projection"}
    if lora:
        saved = LoraConfig.from_pretrained(f"{recipe.output}/model/lora")
        assert (saved.r, saved.lora_alpha) == (2, 6) and "k_proj|down_proj" in saved.target_modules
        assert any(parameter.any() for name, parameter in again.named_parameters() if "lora_B" in name)


def test_what_a_base_has_itself_is_not_taken_from_a_recipe(recipe):
    for field, value in {
        "patch_merge": "4x4",
        "vision_feature_layer": -2,
        "image_token": "<x>",
        "template": "vicuna",
    }.items():
        with pytest.raises(ValueError, match=rf"model.{field} is .*, but the base .* has its own"):
            load_model(replace(recipe.model, **{field: value}))
