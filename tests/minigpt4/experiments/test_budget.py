"""Steps and scenes for a budget, and the plan that an unfinished run continues with."""

import json

import pytest
import torch

from minigpt4.configuration.recipe import load_recipe
from minigpt4.experiments.budget import PLAN, Budget


@pytest.fixture
def recipes():
    return [load_recipe(f"stage{stage}-embedded") for stage in (1, 2)]


@pytest.fixture
def budget(original, processor, monkeypatch):
    seen = torch.randn(12, original.config.num_image_tokens, original.model.projection.in_features)
    made = Budget(original, processor, seen, looking=0.01, answering=30.0, held_out=160)
    monkeypatch.setattr(made, "step_seconds", lambda recipe: {1: 0.5, 2: 1.0}[recipe.stage])
    return made


def _planned(recipes):
    return [recipe.train.steps for recipe in recipes], recipes[0].data.scenes


def test_without_a_budget_the_recipes_stay(budget, recipes, tmp_path, capsys):
    before = _planned(recipes)
    assert budget.fit(recipes, tmp_path) == 160
    assert _planned(recipes) == before
    assert "the recipes take about" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "held_out"), [(80, 142), (15, 40), (900, 160)])
def test_a_short_budget_asks_about_fewer_scenes(budget, recipes, tmp_path, seconds, held_out):
    assert budget.fit(recipes, tmp_path, seconds) == held_out
    again = [load_recipe(f"stage{stage}-embedded") for stage in (1, 2)]
    assert budget.fit(again, tmp_path, 2 * seconds) == held_out  # the kept plan's


def test_a_budget_is_kept(budget, recipes, tmp_path, capsys):
    assert budget.fit(recipes, tmp_path, seconds=300) == 160
    (first, second), scenes = _planned(recipes)
    assert 200 < 0.5 * first + 1.0 * second + 0.01 * scenes < 250  # of 300 s, 30 are for answers and 20 for the end
    assert recipes[0].train.warmup_steps <= first // 4
    assert "too few for a good model" in capsys.readouterr().out


def test_an_unfinished_run_goes_on_with_its_plan(budget, recipes, tmp_path, monkeypatch):
    budget.fit(recipes, tmp_path, seconds=300)
    planned = _planned(recipes)
    monkeypatch.setattr(budget, "step_seconds", lambda recipe: 0.1)
    again = [load_recipe(f"stage{stage}-embedded") for stage in (1, 2)]
    budget.fit(again, tmp_path, seconds=290)
    assert _planned(again) == planned
    (tmp_path / "summary.json").write_text("{}")  # finished: the next one gets a new plan
    anew = [load_recipe(f"stage{stage}-embedded") for stage in (1, 2)]
    budget.fit(anew, tmp_path, seconds=290)
    assert _planned(anew) != planned
    assert json.loads((tmp_path / PLAN).read_text())["steps"] == _planned(anew)[0]


def test_steps_are_timed_on_the_recipes_own_texts(original, processor, recipes):
    seen = torch.randn(12, original.config.num_image_tokens, original.model.projection.in_features)
    budget = Budget(original, processor, seen, looking=0.01, answering=30.0, held_out=160)
    weight = original.model.projection.weight.detach().clone()
    recipes[0].train.batch_size = 2
    assert budget.step_seconds(recipes[0]) > 0
    assert torch.equal(original.model.projection.weight, weight)
    assert original.model.projection.weight.grad is None and not original.training
