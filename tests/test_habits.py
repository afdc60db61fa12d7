"""What CONTRIBUTING.md, the workflows and the release check say is so: targets, files, links."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
RELEASE = runpy.run_path(str(ROOT / ".ci/release_check.py"))


def test_contributing_names_targets_and_files_that_exist():
    assert set(re.findall(r"\bmake ([\w-]+)\s*(?:#|`|$)", CONTRIBUTING, re.MULTILINE)) <= TARGETS
    named = re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:py|md|yaml|txt))`", CONTRIBUTING)
    named += re.findall(r"pytest (\S+\.py)", CONTRIBUTING)
    places = [ROOT, ROOT / "minigpt4/evaluation", ROOT / "configuration/recipes"]
    assert len(named) > 20
    assert not [name for name in named if not any((place / name).exists() for place in places)]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_of_the_makefile(workflow):
    content = yaml.safe_load(workflow.read_text("utf-8"))
    lines = [step.get("run", "") for job in content["jobs"].values() for step in job["steps"]]
    called = set(re.findall(r"make ([\w-]+)", "\n".join(lines)))
    assert called and called <= TARGETS | {"docs"}  # docs.yml asks first whether there is one
    assert content["permissions"] == {"contents": "read"}


def test_pages_name_only_what_the_repository_has(tmp_path):
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        RELEASE["check_links"](ROOT / page)
    page = tmp_path / "README.md"
    for text in ("![what it says](docs/answer.png)", '<img width="3" src="answer.png">', "[page](docs/page.md#top)"):
        page.write_text(text, "utf-8")
        with pytest.raises(ValueError, match=r"README.md names .*(answer.png|page.md#top), which the repository"):
            RELEASE["check_links"](page)


@pytest.mark.slow
def test_an_installed_package_finds_its_files(tmp_path):
    """As a wheel lays them out, where no folder of the repository is around."""
    for name, file in RELEASE["packaged"]().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, tmp_path / name)
    code = (
        "from minigpt4.configuration import recipe; from minigpt4.hub import export, model_card, run_records\n"
        "from minigpt4.modeling_minigpt4.embedded import SHIPPED_PROJECTION\n"
        "places = [recipe.RECIPES, run_records._EMBEDDED, model_card.MODEL_CARD, SHIPPED_PROJECTION, export._ABILITIES]\n"
        "print(*[path.resolve() for path in [*places, *export._COPIED] if path.exists()], sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    found = done.stdout.split()
    assert len(found) == 8 and all(path.startswith(str(tmp_path.resolve())) for path in found), done.stderr
