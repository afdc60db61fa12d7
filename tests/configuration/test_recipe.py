"""Recipes: what ships loads, and what a user mistypes is named."""

import dataclasses

import pytest
import yaml

from minigpt4.configuration.recipe import RECIPES, Recipe, load_recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_says_its_command(path):
    recipe = load_recipe(path)
    assert f"accelerate launch trainer_scripts/stage{recipe.stage}.py" in path.read_text().splitlines()[0]


def test_the_recipe_to_copy_has_every_field_with_its_default():
    recipe = Recipe()
    assert yaml.safe_load((RECIPES / "copy-me.yaml").read_text()) == dataclasses.asdict(recipe)
    assert load_recipe("copy-me") == recipe


def test_a_recipe_extends_another():
    recipe, plain = load_recipe("stage1-three-layers"), load_recipe("stage1-vicuna-7b")
    assert recipe.model.projection_layers == 3 and recipe.output == "outputs/stage1-three-layers"
    recipe.model.projection_layers, recipe.output = plain.model.projection_layers, plain.output
    assert recipe == plain


def test_a_recipe_that_extends_itself_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: mine.yaml\n")
    with pytest.raises(ValueError, match=r"mine.yaml: extends itself"):
        load_recipe(tmp_path / "mine.yaml")


def test_the_papers_recipes_have_the_papers_numbers():
    first, second = load_recipe("stage1-vicuna-7b"), load_recipe("stage2-vicuna-7b")
    assert (first.train.steps, first.train.global_batch, first.train.learning_rate) == (20_000, 256, 1e-4)
    assert (first.train.min_learning_rate, first.train.warmup_learning_rate, first.train.warmup_steps) == (8e-5, 1e-6, 5000)
    assert [source.weight for source in first.data.sources] == [115, 14] and first.data.random_crop
    assert (second.train.steps, second.train.global_batch, second.train.learning_rate) == (400, 12, 3e-5)
    assert (second.train.min_learning_rate, second.train.warmup_learning_rate, second.train.warmup_steps) == (
        1e-5,
        1e-6,
        200,
    )
    assert first.train.weight_decay == second.train.weight_decay == 0.05
    assert (first.train.max_answer_tokens, second.train.max_answer_tokens) == (32, 160)


def test_settings_change_single_fields():
    recipe = load_recipe("stage1-embedded", ["train.steps=3", "train.learning_rate=1e-4", "output=elsewhere"])
    assert (recipe.train.steps, recipe.train.learning_rate, recipe.output) == (3, 1e-4, "elsewhere")


def test_a_saved_recipe_is_the_same_recipe(tmp_path):
    recipe = load_recipe("stage2-embedded", ["data.scenes=7", "data.sources=[{path: a, weight: 115}, {path: [b, c]}]"])
    assert [source.weight for source in recipe.data.sources] == [115.0, 1.0]
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.learnin_rate=1", "unknown key train.learnin_rate; did you mean train.learning_rate?"),
        ("trian.steps=1", "unknown key trian; did you mean train?"),
        ("train.steps=many", "train.steps is 'many', expected int"),
        ("train.steps=true", "train.steps is True, expected int"),
        ("train=3", "train is 3, expected a section"),
        ("train.steps", "expected key=value"),
        ("train.steps=[", "not YAML"),
        ("stage=3", "stage is 3, expected 1 or 2"),
        ("train.steps=0", "train.steps is 0, expected at least 1"),
        ("train.learning_rate=0", "train.learning_rate is 0, expected at least"),
        ("data.views=0", "data.views is 0, expected at least 1"),
        ("stage.x=3", "stage is a single value"),
        ("data.sources=3", "data.sources is 3, expected a list of sections"),
        ("data.sources=[{path: x, wieght: 2}]", "unknown key data.sources.wieght; did you mean data.sources.weight?"),
        ("data.path=3", "data.path is 3, expected"),
        ("model.load_in=2bit", "model.load_in is '2bit', expected '' or '4bit' or '8bit'"),
        ("model.patch_fit=crop", "model.patch_fit is 'crop', expected 'pad' or 'pool'"),
        ("train.metric=f1", "train.metric is 'f1', expected 'loss' or"),
        ("data.validation_share=0.6", "data.validation_share is 0.6, expected at most 0.5"),
        ("train.eval_steps=0", "train.eval_steps is 0, expected at least 1"),
    ],
)
def test_a_bad_setting_is_named(setting, message):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        load_recipe("stage1-embedded", [setting])
    assert message in str(error.value)


def test_an_unknown_recipe_names_those_that_ship():
    with pytest.raises(ValueError, match=r"stage9: no such recipe.*stage1-embedded"):
        load_recipe("stage9")


def test_a_key_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("on: 1\n")
    with pytest.raises(ValueError, match="unknown key True; did you mean"):
        load_recipe(path)


def test_a_recipe_that_is_no_mapping_is_named(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="found list, expected keys"):
        load_recipe(path)
