"""A step's examples are what the recipe says, on any number of processes that can share them."""

import pytest

from minigpt4.configuration.recipe import load_recipe
from minigpt4.training.global_batch import share_batch, take_part


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("most", [64, 20, 1])
def test_the_papers_stage_1_is_256_on_any_number_of_gpus(processes, most):
    train = share_batch(load_recipe("stage1-vicuna-7b", [f"train.max_batch_size={most}"]), processes).train
    assert train.batch_size * train.accumulation * processes == 256 and train.batch_size <= most
    assert most == 1 or train.batch_size * 2 > most or train.accumulation == 1  # no larger one would do


def test_the_batch_is_the_largest_that_fits():
    for processes, expected in [(1, (64, 4)), (2, (64, 2)), (4, (64, 1)), (8, (32, 1))]:
        train = share_batch(load_recipe("stage1-vicuna-7b"), processes).train
        assert (train.batch_size, train.accumulation) == expected


def test_a_step_that_cannot_be_shared_names_the_numbers_of_processes_that_can():
    with pytest.raises(
        ValueError, match=r"global_batch is 12, which 8 processes cannot share equally; use 1, 2, 3, 4 or 6 of them with"
    ):
        share_batch(load_recipe("stage2-vicuna-7b"), 8)


def test_a_recipe_without_a_global_batch_stays_as_it_is():
    recipe = load_recipe("stage1-embedded")
    assert share_batch(recipe, 4) == recipe


@pytest.mark.parametrize("setting", ["train.batch_size=3", "train.accumulation=2"])
def test_what_is_worked_out_is_not_set(setting):
    with pytest.raises(ValueError, match=rf"--set {setting}: is set by train.global_batch=256 .* train.max_batch_size"):
        load_recipe("stage1-vicuna-7b", [setting])
    assert load_recipe("stage1-vicuna-7b", [setting, "train.global_batch=0"]).train.global_batch == 0


def test_stage_2_takes_one_process_of_those_that_are_started(monkeypatch, capsys):
    most = load_recipe("stage2-vicuna-7b").train.processes
    for rank in range(4):
        monkeypatch.setenv("WORLD_SIZE", "4")
        monkeypatch.setenv("RANK", str(rank))
        assert take_part(most) == (rank == 0) and take_part(0)
    assert capsys.readouterr().out == "the recipe uses 1 of the 4 processes that were started (train.processes)\n"


def test_fewer_processes_than_the_recipe_takes_all_take_part(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert take_part(4)
