"""Training on a tiny model: the original's schedule, what moves and what does not, resume, signals, bad input."""

import html
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minigpt4 import MiniGPT4ForConditionalGeneration
from minigpt4.configuration.recipe import Recipe, TrainSection, load_recipe, same_training
from minigpt4.hub.export import export
from minigpt4.processing.data.datasets import PictureTexts
from minigpt4.training.run import _arguments, cache_features, load_model, train
from minigpt4.training.trainer import LengthBuckets, learning_rate


@pytest.fixture
def base(original, processor, tmp_path):
    """The tiny model as a folder."""
    return str(export(original, processor, tmp_path / "base"))


@pytest.fixture
def recipe(base, tmp_path):
    """Eight steps on the tiny model, features cached."""
    recipe = Recipe(output=str(tmp_path / "run"))
    recipe.model.base, recipe.model.projection = base, "base"
    recipe.train = TrainSection(steps=8, batch_size=2, learning_rate=1e-2, warmup_steps=2, save_steps=3)
    return recipe


@pytest.fixture
def dataset(picture):
    """Six captions of three pictures."""
    texts = ["a cat", "a dog on a red mat", "two people", "the beach", "a man with a hat", "it is red"]
    return PictureTexts(
        [{"image": picture(i)} for i in range(3)], [{"picture": i % 3, "text": text} for i, text in enumerate(texts)]
    )


@pytest.mark.parametrize("name", ["stage1", "stage2", "quirk_warmup_longer_than_epoch"])
def test_the_learning_rate_is_the_originals(parity, name):
    case = parity("lr_schedule.json")[name]
    config = case["config"]
    section = TrainSection(
        learning_rate=config["init_lr"],
        min_learning_rate=config["min_lr"],
        warmup_learning_rate=config["warmup_lr"],
        warmup_steps=config["warmup_steps"],
    )
    total = config["max_epoch"] * config["iters_per_epoch"]
    for step, expected in case["lr"].items():
        assert learning_rate(int(step), section, total, config["iters_per_epoch"]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_only_the_projection_changes_bit_by_bit(recipe, dataset):
    model, processor = load_model(recipe.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained, _, summary = train(recipe, model, processor, dataset)
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"model.projection.weight", "model.projection.bias"}
    assert summary["last_loss"] < summary["first_loss"]
    # What is saved is light, and loads to the same model.
    folder = recipe.output + "/model"
    assert os.path.getsize(folder + "/model.safetensors") < 20_000
    loaded = MiniGPT4ForConditionalGeneration.from_pretrained(folder)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


@pytest.mark.slow
def test_cached_features_train_as_pictures_do(recipe, dataset, tmp_path):
    losses = []
    for cached in (True, False):
        recipe.train.cache_features, recipe.output = cached, str(tmp_path / f"cached-{cached}")
        model, processor = load_model(recipe.model)
        dataset.features = None
        losses.append([loss for _, loss in train(recipe, model, processor, dataset)[2]["losses"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_goes_on_to_the_same_weights(recipe, dataset, tmp_path):
    """In the second of three epochs, with looks at the pictures that are drawn anew."""
    recipe.data.views, recipe.train.feature_dropout = 3, 0.1
    model, processor = load_model(recipe.model)
    whole, _, _ = train(recipe, model, processor, dataset)
    recipe.output, dataset.features = str(tmp_path / "stopped"), None
    model, processor = load_model(recipe.model)
    calls = []

    def stop_in_the_fourth_step(*_):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    model.register_forward_pre_hook(stop_in_the_fourth_step)
    with pytest.raises(SystemExit) as stopped:
        train(recipe, model, processor, dataset)
    assert stopped.value.code == 143
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-4"]
    dataset.features = None
    model, processor = load_model(recipe.model)
    resumed, _, summary = train(recipe, model, processor, dataset)
    assert summary["steps"] == 8
    assert torch.equal(resumed.model.projection.weight, whole.model.projection.weight)
    assert not list((tmp_path / "stopped").glob("checkpoint-*"))


def test_batches_are_of_like_length_in_shuffled_order():
    lengths = [length for length in range(100) for _ in range(4)]
    sampler = LengthBuckets(4, lengths=lengths, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(400))
    batches = [[lengths[i] for i in order[start : start + 4]] for start in range(0, 400, 4)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 5  # of 100
    firsts = [batch[0] for batch in batches]
    assert sum(a > b for a, b in itertools.pairwise(firsts)) < 70  # the library's order falls nearly always
    sampler.set_epoch(1)
    assert list(sampler) != order
    sampler.set_epoch(0)
    assert list(sampler) == order


@pytest.mark.slow
def test_frozen_parts_stay_in_eval_mode_while_training(recipe, dataset):
    model, processor = load_model(recipe.model)
    recipe.train.cache_features = False
    modes = []

    def note(*_):
        modes.append((model.training, model.model.vision_tower.training, model.model.qformer.training))

    model.register_forward_pre_hook(note)
    train(recipe, model, processor, dataset)
    assert set(modes) == {(True, False, False)}


def test_an_unfinished_run_of_another_recipe_is_not_overwritten(recipe, dataset, tmp_path):
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    recipe.save(tmp_path / "run" / "recipe.yaml")
    recipe.train.learning_rate = 5.0
    with pytest.raises(ValueError, match="unfinished run of another recipe"):
        train(recipe, dataset=dataset)
    assert load_recipe(tmp_path / "run" / "recipe.yaml").train.learning_rate == 1e-2
    (tmp_path / "run" / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match="unfinished run of another recipe"):
        train(recipe, dataset=dataset)


def test_other_workers_are_not_another_recipe_but_another_step_is_no_step_of_the_run(recipe, dataset, tmp_path):
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-3" / "step.json").write_text('{"global_batch": 6}')
    recipe.save(tmp_path / "run" / "recipe.yaml")
    recipe.train.workers, recipe.train.batch_size = 1, 2
    with pytest.raises(
        ValueError, match=r"steps took 6 examples, with 1 processes these would take 2; set train.global_batch=6"
    ):
        train(recipe, dataset=dataset)
    assert same_training(tmp_path / "run" / "recipe.yaml", replace(recipe, train=replace(recipe.train, global_batch=6)))
    assert not same_training(tmp_path / "run" / "recipe.yaml", replace(recipe, train=replace(recipe.train, seed=6)))


def test_fewer_steps_than_a_checkpoint_has_is_another_recipe_too(recipe, dataset, tmp_path):
    (tmp_path / "run" / "checkpoint-6").mkdir(parents=True)
    recipe.save(tmp_path / "run" / "recipe.yaml")
    recipe.train.steps = 4
    with pytest.raises(ValueError, match="unfinished run of another recipe"):
        train(recipe, dataset=dataset)


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_only_finishes(recipe, dataset, monkeypatch):
    model, processor = load_model(recipe.model)
    recipe.train.save_steps = recipe.train.steps

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("minigpt4.training.run._finish", killed)
        train(recipe, model, processor, dataset)
    trained = model.model.projection.weight.clone()
    model, processor = load_model(recipe.model)
    model.register_forward_pre_hook(killed)  # no step is run again
    finished, _, summary = train(recipe, model, processor, dataset)
    assert torch.equal(finished.model.projection.weight, trained)
    assert summary["steps"] == 8


def test_crops_and_cached_features_exclude_each_other(recipe, dataset):
    recipe.data.random_crop = True
    with pytest.raises(ValueError, match=r"random_crop crops a picture each time .* set train.cache_features=false"):
        train(recipe, dataset=dataset)


@pytest.mark.slow
def test_a_global_batch_is_worked_out_and_printed(recipe, dataset, capsys):
    recipe.train.global_batch, recipe.train.max_batch_size = 6, 2
    _, _, summary = train(recipe, dataset=dataset)
    assert summary["global_batch"] == 6
    assert "8 steps x 6 (2 a device x 3 accumulated x 1 processes)" in capsys.readouterr().out
    assert load_recipe(f"{recipe.output}/recipe.yaml") == recipe  # as it was requested: other processes work it out again


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_before_it_is_saved(recipe, dataset):
    model, processor = load_model(recipe.model)
    model.lm_head.weight[7] = float("nan")
    with pytest.raises(ValueError, match=r"loss at step \d is not a finite number: .* try model.dtype=bfloat16"):
        train(recipe, model, processor, dataset)
    assert not list(Path(recipe.output).glob("checkpoint-*"))


@pytest.mark.slow
def test_a_first_loss_of_guessing_stops_and_says_what_it_means(recipe, dataset):
    model, processor = load_model(recipe.model)
    model.lm_head.weight.zero_()
    with pytest.raises(ValueError, match=r"first loss is 6.238, that of guessing among all 512 tokens .* are broken"):
        train(recipe, model, processor, dataset)
    recipe.train.check_first_loss = False
    assert train(recipe, model, processor, dataset, resume=False)[2]["first_loss"] == pytest.approx(6.238, abs=1e-3)


@pytest.mark.slow
def test_starting_over_forgets_the_unfinished_run(recipe, dataset, tmp_path):
    (tmp_path / "run" / "checkpoint-6").mkdir(parents=True)
    recipe.save(tmp_path / "run" / "recipe.yaml")
    recipe.train.learning_rate = 1e-3
    assert train(recipe, dataset=dataset, resume=False)[2]["steps"] == 8


@pytest.mark.slow
def test_fixed_pictures_are_looked_at_before_between_and_after(recipe, dataset, tmp_path):
    recipe.train.sample_steps = 4
    train(recipe, dataset=dataset)
    looks = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [0, 4, 8]
    assert all(len(look["answers"]) == 3 for look in looks)
    page = (tmp_path / "run" / "samples.html").read_text()
    assert page.count("<img") == 3 and html.escape(looks[2]["answers"][0]) in page
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_figures_reach_tensorboard(recipe, dataset, tmp_path):
    recipe.train.report_to = ["tensorboard"]
    train(recipe, dataset=dataset)
    [events] = (tmp_path / "run").rglob("events.out.tfevents.*")
    reader = EventAccumulator(str(events)).Reload()
    assert {"train/loss", "train/learning_rate", "train/images_per_second", "train/data_wait"} <= set(
        reader.Tags()["scalars"]
    )
    assert len(reader.Scalars("train/loss")) == 8


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_a_qformer_that_is_trained_moves_and_is_saved(recipe, dataset, cached):
    recipe.model.trained_parts = ["projection", "qformer"]
    recipe.train.cache_features = cached
    before, _ = load_model(recipe.model)
    before = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    trained, _, _ = train(recipe, dataset=dataset)
    changed = {name.split(".")[1] for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"projection", "qformer", "query_tokens"}
    loaded = MiniGPT4ForConditionalGeneration.from_pretrained(recipe.output + "/model")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


@pytest.mark.slow
def test_models_are_kept_on_the_way(recipe, dataset):
    recipe.train.keep_steps = [3, 8]
    trained, _, _ = train(recipe, dataset=dataset)
    kept = [load_model(replace(recipe.model, projection=f"{recipe.output}/step-{step}"))[0] for step in (3, 8)]
    weights = [model.model.projection.weight for model in (*kept, trained)]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[2])
    recipe.train.keep_steps = [9]
    with pytest.raises(ValueError, match="holds 9; expected steps of the run, 1 to 8"):
        train(recipe, dataset=dataset)


@pytest.mark.slow
def test_lora_trains_beside_the_projection_and_goes_on(recipe, dataset, tmp_path):
    recipe.model.lora_rank = 2
    trained, _, _ = train(recipe, dataset=dataset)
    moved = [p for name, p in trained.named_parameters() if "lora_B" in name]
    assert moved and all(parameter.abs().sum() > 0 for parameter in moved)
    folder = recipe.output + "/model"
    loaded = MiniGPT4ForConditionalGeneration.from_pretrained(folder)
    recipe.model.projection = folder
    again, _ = load_model(recipe.model)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]) and torch.equal(tensor, again.state_dict()[name]), name


def test_an_output_that_cannot_be_written_is_named(recipe, dataset, tmp_path):
    (tmp_path / "file").write_text("")
    recipe.output = str(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="the output folder cannot be written"):
        train(recipe, dataset=dataset)


def test_a_projection_that_is_not_there_is_named(recipe):
    recipe.model.projection = "nowhere"
    with pytest.raises(ValueError, match=r"model.projection is 'nowhere': no model.safetensors there"):
        load_model(recipe.model)


def test_a_checkpoint_of_other_dims_is_named(recipe, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    save_file({"model.projection.weight": torch.zeros(3, 4)}, other / "model.safetensors")
    recipe.model.projection = str(other)
    with pytest.raises(ValueError, match=r"has shape \(3, 4\), the model expects \(48, 24\)"):
        load_model(recipe.model)


def test_a_damaged_checkpoint_is_named(recipe, tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"not a tensor")
    recipe.model.projection = str(tmp_path / "damaged")
    with pytest.raises(ValueError, match=r"damaged/model.safetensors: cannot be read"):
        load_model(recipe.model)


def test_features_of_every_view(original, processor, dataset):
    features = cache_features(original, processor, dataset.pictures, views=3, batch_size=2)
    assert features.shape == (3, 3, 5, 24)
    assert not torch.allclose(features[:, 0], features[:, 1])
    pixels = processor.image_processor([dataset.pictures[2]["image"]], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(features[2, 0], original.model.get_vision_features(pixels)[0].detach())


@pytest.mark.slow
def test_a_space_for_the_curves_goes_to_trackio_or_is_one_line(recipe, monkeypatch):
    recipe.train.trackio_space = "me/curves"
    with pytest.raises(ValueError, match=r"nothing reports there; set train.report_to=\[trackio\]"):
        train(recipe)
    recipe.train.report_to = ["trackio"]
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(ValueError, match="which needs a token; log in"):
        train(recipe)
    assert _arguments(recipe).trackio_space_id == "me/curves"


@pytest.mark.parametrize("stage", [1, 2])
def test_scripts_answer_bad_input_with_one_line_and_status_2(stage, tmp_path):
    other = 3 - stage
    for arguments, message in (
        (["--recipe", f"stage{other}-embedded"], f"is a stage-{other} recipe"),
        (["--set", "train.step=3"], "did you mean train.steps?"),
        (["--recipe", "nowhere.yaml"], "no such recipe"),
    ):
        script = [sys.executable, f"trainer_scripts/stage{stage}.py", *arguments]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_ctrl_c_in_a_script_saves_and_ends_with_130(base, tmp_path):
    output = tmp_path / "script"
    settings = [f"model.base={base}", "model.projection=base", "train.steps=100000", "train.save_steps=100000",
                "train.batch_size=2", "data.scenes=4", f"output={output}"]  # fmt: skip
    script = subprocess.Popen(
        [sys.executable, "trainer_scripts/stage1.py", "--set", *settings],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while script.poll() is None and "/100000" not in script.stderr.readline() and time.monotonic() < deadline:
        pass
    time.sleep(1)
    script.send_signal(signal.SIGINT)
    stdout, stderr = script.communicate(timeout=60)
    assert script.returncode == 130, stderr
    [checkpoint] = output.glob("checkpoint-*")
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] >= 1
    assert "the same command continues from it" in stdout and "Traceback" not in stderr
