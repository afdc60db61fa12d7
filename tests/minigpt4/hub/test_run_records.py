"""Training runs and evaluation files next to a model."""

import json

import pytest

from minigpt4.hub.run_records import evaluation_file, evaluation_results, training_runs

SUMMARY = {"steps": 7, "seconds": 1.5, "first_loss": 4.0, "last_loss": 3.0, "versions": {"torch": "2"}, "losses": [[1, 4.0]]}


def write_run(folder, stage, **model):
    folder.mkdir(parents=True)
    recipe = {"stage": stage, "output": str(folder), "model": model, "data": {"path": "/home/me/pictures"}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    (folder / "summary.json").write_text(json.dumps(SUMMARY))


def test_embedded_runs_and_results_ship():
    first, second = training_runs("embedded")
    assert (first["stage"], second["stage"]) == (1, 2)
    assert first["summary"]["steps"] == first["recipe"]["train"]["steps"]
    results = {result.metric_name: result.metric_value for result in evaluation_results(evaluation_file("embedded"))}
    content = json.loads(evaluation_file("embedded").read_text())
    assert results["cider (detail)"] == round(content["detail"]["cider"], 4)
    assert results["failures (detail)"] == content["detail"]["failures"]


def test_runs_beside_a_model(tmp_path):
    write_run(tmp_path / "one", 1, projection="fresh")
    write_run(tmp_path / "two", 2, projection=str(tmp_path / "one" / "model"))
    first, second = training_runs(str(tmp_path / "two" / "model"))
    assert (first["stage"], second["stage"]) == (1, 2)
    assert first["summary"] == {name: value for name, value in SUMMARY.items() if name != "losses"}
    assert second["recipe"] == {"stage": 2, "model": {"projection": "model"}, "data": {"path": "pictures"}}
    # A model elsewhere was not trained by the run in the folder above it.
    assert training_runs(str(tmp_path / "two" / "another")) == []
    # An export keeps them.
    kept = tmp_path / "exported"
    kept.mkdir()
    (kept / "training.json").write_text(json.dumps([first, second]))
    assert training_runs(str(kept)) == [first, second]


def test_runs_of_the_quickstart(tmp_path):
    for stage in (1, 2):
        write_run(tmp_path / f"stage{stage}", stage)
    (tmp_path / "summary.json").write_text(json.dumps({"recipes": {"stage1": {}, "stage2": {}}}))
    assert [run["stage"] for run in training_runs(str(tmp_path / "model"))] == [1, 2]


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"recipe": {"stage": "<b>"}}]', '[{"recipe": []}]'])
def test_kept_runs_that_are_not(content, tmp_path):
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ValueError, match=r"training\.json: ") as raised:
        training_runs(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_evaluation_file(tmp_path):
    file = tmp_path / "evaluation.json"
    file.write_text('{"data": "My set", "n": 2000, "versions": {"x": 1}, "short": {"cider": 0.5, "said": "hi", "nan": NaN}}')
    [result] = evaluation_results(file)
    assert (result.dataset_name, result.dataset_type) == ("My set, 2,000 pictures", "my-set")
    assert (result.metric_type, result.metric_name, result.metric_value) == ("cider", "cider (short)", 0.5)
    assert evaluation_file(str(tmp_path / "model")) == file
    assert evaluation_file(str(tmp_path / "another")) is None


def test_results_of_an_evaluation_keep_their_intervals(tmp_path):
    figures = {
        "right": {"value": 0.8, "n": 396, "interval": [0.75, 0.85]},
        "none": {"value": None, "n": 3, "interval": None},
    }
    content = {"data": "scenes", "n": 160, "decoding": [{"max_new_tokens": 48}], "scores": {"questions": figures}}
    (tmp_path / "results.json").write_text(json.dumps({**content, "against": {"scores": {}}, "versions": {"torch": "2"}}))
    [result] = evaluation_results(tmp_path / "results.json")
    assert (result.metric_name, result.metric_value, result.dataset_name) == (
        "right (questions)",
        0.8,
        "scenes, 160 pictures",
    )
    assert result.metric_args == {"n": 396, "low": 0.75, "high": 0.85}


@pytest.mark.parametrize("content", ["", "[]", '{"data": "x"}', '{"short": {"cider": 1}}', '{"data": "x", "a": {"b": "c"}}'])
def test_not_an_evaluation_file(content, tmp_path):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ValueError, match=r"file\.json: ") as raised:
        evaluation_results(tmp_path / "file.json")
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="cannot be read"):
        evaluation_results(tmp_path / "nothere.json")
