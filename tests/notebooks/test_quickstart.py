"""The notebook's cells, in order, as a Jupyter kernel runs them, with small settings."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"
SMALL = "STEPS, SCENES, HELD_OUT = (2, 2), 16, 6"


def sources(notebook):
    """The code cells' texts, the settings small."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [SMALL if "settings" in cell["metadata"].get("tags", ()) else "".join(cell["source"]) for cell in cells]


@pytest.mark.slow
def test_every_cell_runs_and_the_model_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    code = sources(json.loads(NOTEBOOK.read_text("utf-8")))
    assert code.count(SMALL) == 1
    for source in code:
        exec(compile(source, NOTEBOOK.name, "exec"), names)
    assert (tmp_path / "outputs/notebook/model/config.json").is_file()
    printed = capsys.readouterr().out
    assert "loss " in printed and "questions right" in printed and "answers that fail" in printed


def test_it_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
