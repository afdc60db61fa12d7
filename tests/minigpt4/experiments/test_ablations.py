"""The ablations on a handful of scenes: the real parts, a few steps."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, SiglipVisionConfig

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.cli import main
from minigpt4.configuration.recipe import Recipe, TrainSection
from minigpt4.experiments.ablations import ABLATIONS, QFORMER, SIGLIP, Bench, Settings, ablate, table
from minigpt4.hub.export import export
from minigpt4.inference.named_models import load
from minigpt4.metrics.composed import is_right
from minigpt4.modeling_minigpt4.embedded import load_embedded
from minigpt4.processing.data.datasets import PictureTexts
from minigpt4.training.run import train

FEW = Settings(steps=[2, 1], scenes=16, held_out=2)
SMALL = {"image_size": 56, "patch_size": 14, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Two rows, trained and measured: the default, and the one that begins in the middle of the default's stage 1."""
    folder = tmp_path_factory.mktemp("ablations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minigpt4.experiments.ablations.ANSWER_TOKENS", 6)
        ablate(folder, FEW, ["share-50", "default"])
        yield folder


@pytest.mark.slow
@pytest.mark.embedded
def test_each_row_is_measured_with_n_and_interval(output):
    results = json.loads((output / "results.json").read_text())
    assert list(results["rows"]) == ["default", "share-50"]
    said = json.loads((output / "default" / "stage2" / "said.json").read_text())
    questions = Bench(output, FEW).held_out.questions
    right = [is_right(question, answer) for question, answer in zip(questions, said["answers"], strict=True)]
    for row in results["rows"].values():
        for stage in ("stage1", "stage2"):
            assert row[stage]["questions_right"]["n"] == len(questions) and row[stage]["caption_exact"]["n"] == 2
            assert row[stage]["questions_right"]["interval"] is not None
    assert results["rows"]["default"]["stage2"]["questions_right"]["value"] == sum(right) / len(right)
    assert (output / "ablations.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_of_four_choices_one_is_true(output):
    held_out = Bench(output, FEW).held_out
    for question, texts in zip(held_out.questions, held_out.candidates(), strict=True):
        assert texts[0] == question["text"] and len({*texts}) == 4
        assert [is_right(question, text) for text in texts] == [True, False, False, False]


@pytest.mark.slow
def test_a_share_of_stage_1_begins_with_the_model_kept_on_the_way(output):
    recipe = json.loads((output / "results.json").read_text())["rows"]["share-50"]["recipes"]["stage2"]
    assert recipe["model"]["projection"] == str(output / "default" / "stage1" / "step-1")
    kept, whole = (load_file(output / "default" / "stage1" / name / "model.safetensors") for name in ("step-1", "model"))
    assert all(not torch.equal(kept[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_the_table_puts_the_paper_beside_and_calls_noise_noise(output):
    results = json.loads((output / "results.json").read_text())
    figures = results["rows"]["share-50"]["stage2_minus_default"]
    figures["choices_right"] = {"value": -0.1, "n": 9, "interval": [-0.2, 0.05]}
    written = table(results)
    assert "| AOK-VQA 56.9, GQA 33.4, captions covered 2.22 |" in written and "| captions covered 2.26 |" in written
    assert "| -10.0 (-20 to +5, noise) |" in written
    figures["choices_right"]["interval"] = [-0.2, -0.05]
    assert "| -10.0 (-20 to -5) |" in table(results)


@pytest.mark.slow
@pytest.mark.embedded
def test_what_lies_there_is_not_trained_again_and_what_is_missing_is_asked_again(output):
    said, trained = output / "default" / "stage2" / "said.json", output / "default" / "stage2" / "summary.json"
    before, at = said.read_bytes(), trained.stat().st_mtime_ns
    said.unlink()
    ablate(output, FEW, ["default"])
    assert said.read_bytes() == before and trained.stat().st_mtime_ns == at


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--minutes", "0"], "--minutes is 0; expected more than 0"),
        (["--only", "lore"], "no row is called 'lore'; the rows are default, qformer, "),
        (["--only", "lora"], "has ablations with {'steps': [2, 1], "),  # of other settings
        (["--seed", "-1"], "--seed is -1; expected 0 to"),
    ],
)
def test_bad_input_is_one_line(output, arguments, reason, capsys):
    assert main(["ablate", "--output", str(output), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("minigpt4 ablate: ") and reason in said and said.count("\n") == 1


def test_every_row_differs_from_the_default_in_what_it_says_alone(tmp_path):
    bench = Bench(tmp_path, FEW)
    for stage in (1, 2):
        default = bench.recipe("default", stage)
        for name, ablation in ABLATIONS.items():
            if ablation.base == "siglip":
                continue  # would be drawn
            recipe = bench.recipe(name, stage)
            assert (recipe.data, recipe.train.steps, recipe.train.seed) == (default.data, default.train.steps, 0), name
            given = {"base", "projection", *ablation.model}
            for field, value in vars(recipe.model).items():
                assert field in given or value == getattr(default.model, field), (name, field)
            assert (recipe.train.learning_rate == default.train.learning_rate) == (ablation.learning_rate is None), name


TOWERS = {
    "siglip": SiglipVisionConfig(**SMALL, intermediate_size=64, vision_use_head=False),
    "dinov2": Dinov2Config(**SMALL, mlp_ratio=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_other_towers_train_in_both_stages(name, tiny_config, tokenizer, picture, tmp_path):
    config = MiniGPT4Config(vision_config=TOWERS[name], patch_merge=4, text_config=tiny_config.text_config)
    model = MiniGPT4ForConditionalGeneration(config)
    processor = MiniGPT4Processor.for_model(config, tokenizer)
    projection = str(export(model, processor, tmp_path / "base"))
    for stage in (1, 2):
        recipe = Recipe(stage, output=str(tmp_path / f"stage{stage}"))
        recipe.model.base, recipe.model.projection = str(tmp_path / "base"), "fresh" if stage == 1 else projection
        recipe.train = TrainSection(steps=3, batch_size=2, learning_rate=1e-2, warmup_steps=0, check_first_loss=False)
        texts = [{"picture": i, "text": text} for i, text in enumerate(("a cat", "two dogs"))]
        if stage == 2:
            texts = [{**text, "instruction": "Describe this image in detail."} for text in texts]
        trained, _, _ = train(recipe, dataset=PictureTexts([{"image": picture(i)} for i in range(2)], texts))
        projection = f"{recipe.output}/model"
        before, model = model.state_dict(), trained
        moved = {key.split(".")[1] for key, value in trained.state_dict().items() if not torch.equal(value, before[key])}
        assert moved == {"projection"}


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.parametrize(("fields", "tokens", "width"), [(SIGLIP, 7, 7 * 192), (QFORMER, 9, 384)])
def test_a_drawn_base_is_loaded_as_it_was_drawn(fields, tokens, width, tmp_path):
    torch.manual_seed(0)
    model, processor = load_embedded(projection=None, **fields)
    assert (processor.num_image_tokens, model.model.projection.in_features) == (tokens, width)
    pixels = processor.image_processor([Image.new("RGB", (9, 9), "red")], return_tensors="pt")["pixel_values"]
    loaded = load(str(export(model, processor, tmp_path / "base", light=True)))[0]
    seen, seen_again = (one.model.get_vision_features(pixels) for one in (model, loaded))
    assert seen.shape == (1, tokens, width) and torch.equal(seen, seen_again)
