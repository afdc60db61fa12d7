"""docs/hub-machines.md: the real `hf` resolves each job, and what the scripts' headers name exists."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from minigpt4.configuration.recipe import load_recipe

ROOT = Path(__file__).parents[1]
LINES = re.findall(r"^hf jobs uv run .*$", (ROOT / "docs" / "hub-machines.md").read_text(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_hf_resolves_the_job(line, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    command = shlex.split(line.replace("hf jobs uv run", "hf jobs uv run --dry-run --namespace OWNER"))
    hf = Path(sys.executable).with_name("hf")
    done = subprocess.run([hf, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Job not submitted" in done.stdout, done.stderr
    assert "hf://buckets/OWNER/runs:/runs" in done.stdout  # otherwise what it writes would be lost


def test_the_recipes_and_fields_of_the_jobs_exist():
    for line in LINES:
        words = shlex.split(line)
        [script] = [word for word in words if word.endswith(".py")]
        recipe = words[words.index("--recipe") + 1] if "--recipe" in words else f"{Path(script).stem}-embedded"
        load_recipe(recipe, words[words.index("--set") + 1 :])


@pytest.mark.parametrize("script", ["stage1.py", "stage2.py"])
def test_a_script_says_what_it_needs(script):
    source = (ROOT / "trainer_scripts" / script).read_text()
    [block] = re.findall(r"^# /// script\n((?:#.*\n)+?)# ///$", source, re.MULTILINE)  # PEP 723's own expression, shortened
    header = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [needed] = [Requirement(line) for line in header["dependencies"]]
    assert header["requires-python"] == package["requires-python"] and needed.name == package["name"]
    assert needed.extras <= set(package["optional-dependencies"])
