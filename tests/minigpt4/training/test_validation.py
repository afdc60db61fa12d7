"""Validation: the loss on other pictures, the best checkpoint as the result, early stopping, answers and their metrics."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from minigpt4 import MiniGPT4DataCollator
from minigpt4.configuration.recipe import Recipe, TrainSection
from minigpt4.hub.export import export
from minigpt4.processing.data.datasets import PictureTexts
from minigpt4.training.run import train


@pytest.fixture
def recipe(original, processor, tmp_path):
    """Eight steps on the tiny model, and a look at the validation data after every second."""
    recipe = Recipe(output=str(tmp_path / "run"))
    recipe.model.base, recipe.model.projection = str(export(original, processor, tmp_path / "base")), "base"
    looks = {"save_steps": 3, "eval_steps": 2, "keep_steps": [2, 4, 6, 8]}
    recipe.train = TrainSection(steps=8, batch_size=2, learning_rate=0.03, min_learning_rate=0.03, warmup_steps=0, **looks)
    return recipe


@pytest.fixture
def dataset(picture):
    """Three pictures that are all to be called a cat, and two others that are not: the more is learned, the worse."""
    pictures = [{"image": picture(i)} for i in range(5)]
    captions = ["a dog on a red mat", "two people", "the beach", "it is red"]
    validation = PictureTexts(pictures, [{"picture": 3 + i % 2, "text": text} for i, text in enumerate(captions)])
    return PictureTexts(pictures, [{"picture": i % 3, "text": "a cat"} for i in range(6)], validation=validation)


def trained(folder):
    return load_file(f"{folder}/model.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in {*one, *other})


@pytest.mark.slow
def test_the_result_is_the_best_and_its_loss_is_that_of_the_mean_token(recipe, dataset, capsys):
    model, processor, summary = train(recipe, dataset=dataset)
    looks = {look["step"]: look["loss"] for look in summary["validation"]}
    assert list(looks) == [2, 4, 6, 8]
    best = min(looks, key=looks.get)
    assert summary["best_step"] == best != 8, "a run that is best at its end shows nothing"
    assert same(trained(f"{recipe.output}/model"), trained(f"{recipe.output}/step-{best}"))
    assert not same(trained(f"{recipe.output}/model"), trained(f"{recipe.output}/step-8"))
    rows = [dataset.validation[i] for i in range(4)]
    with torch.no_grad():
        loss = model(**MiniGPT4DataCollator(processor, 32)(rows)).loss
    assert looks[best] == pytest.approx(loss.item(), rel=1e-4)
    assert "validation" in json.dumps(summary) and f"step {best}: validation loss" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_best(recipe, dataset, tmp_path, monkeypatch):
    _, _, whole = train(recipe, dataset=dataset)
    interrupted = replace(recipe, output=str(tmp_path / "interrupted"))

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("minigpt4.training.callbacks.LiveLoss.on_step_end", stop)
    with pytest.raises(SystemExit):
        train(interrupted, dataset=dataset)
    best_so_far = min(whole["validation"][:2], key=lambda look: look["loss"])["step"]
    left = sorted(path.name for path in (tmp_path / "interrupted").glob("checkpoint-*"))
    assert left == sorted({"checkpoint-5", f"checkpoint-{best_so_far}"})
    monkeypatch.undo()
    _, _, resumed = train(interrupted, dataset=dataset)
    assert resumed["validation"] == whole["validation"] and resumed["best_step"] == whole["best_step"]
    assert same(trained(f"{interrupted.output}/model"), trained(f"{recipe.output}/model"))
    assert not list((tmp_path / "interrupted").glob("checkpoint-*"))


@pytest.mark.slow
def test_early_stopping_counts_looks_without_a_better_one(recipe, dataset, tmp_path):
    recipe.train = replace(recipe.train, steps=40, keep_steps=[], early_stopping=2)
    _, _, summary = train(recipe, dataset=dataset)
    assert summary["steps"] == summary["best_step"] + 2 * 2 < 40
    dataset.validation = None
    with pytest.raises(ValueError, match=r"train.early_stopping needs data.validation"):
        train(replace(recipe, output=str(tmp_path / "other")), dataset=dataset)


@pytest.mark.slow
def test_answers_are_measured_by_this_packages_metric(recipe, dataset):
    recipe.train = replace(recipe.train, metric="bleu4", steps=4, keep_steps=[2, 4], learning_rate=1e-3)
    _, _, summary = train(recipe, dataset=dataset)
    assert all({"cider", "bleu4", "rouge_l", "loss"} <= look.keys() for look in summary["validation"])
    assert summary["best_step"] in (2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_data_from_a_path_or_a_share(stage, recipe, picture, tmp_path):
    for name, number in (("train", 8), ("other", 3)):
        (tmp_path / name).mkdir()
        rows = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(number)]
        (tmp_path / name / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for i in range(number):
            picture(i + number).save(tmp_path / name / f"{i}.png")
    recipe.stage, recipe.train.steps, recipe.train.keep_steps = stage, 2, []
    for number, fields in enumerate(({"validation": str(tmp_path / "other")}, {"validation_share": 0.25})):
        for streaming in (False, True):
            recipe.output = str(tmp_path / f"run-{number}-{streaming}")
            recipe.data = replace(recipe.data, path=str(tmp_path / "train"), streaming=streaming, **fields)
            _, _, summary = train(recipe)
            assert [look["step"] for look in summary["validation"]] == [2]
        recipe.data = replace(recipe.data, validation="", validation_share=0.0)
