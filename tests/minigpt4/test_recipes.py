"""Recipes: what ships loads, and what a user mistypes is named."""

import pytest

from minigpt4.recipes import RECIPES, load_recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_says_its_command(path):
    recipe = load_recipe(path)
    assert f"accelerate launch trainer_scripts/stage{recipe.stage}.py" in path.read_text().splitlines()[0]


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
    with pytest.raises(ValueError, match="holds list, expected keys"):
        load_recipe(path)
