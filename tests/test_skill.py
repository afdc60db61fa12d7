"""The commands of skills/minigpt4/SKILL.md, in their order, as an agent runs them, with a tiny model and a few images."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from minigpt4.hub.export import export

SKILL = Path(__file__).parents[1] / "skills" / "minigpt4" / "SKILL.md"


def test_an_agent_finds_when_to_use_it():
    _, head, _ = SKILL.read_text().split("---\n", 2)
    described = yaml.safe_load(head)
    assert described["name"] == SKILL.parent.name
    assert "Use it when" in described["description"] and len(described["description"]) <= 1024


@pytest.mark.slow
def test_every_command_does_what_the_skill_says(original, processor, picture, tmp_path):
    export(original, processor, tmp_path / "tiny")
    images = tmp_path / "images"
    images.mkdir()
    for number in range(1, 13):
        picture(number).save(images / f"{number}.jpg")
    rows = [{"file_name": f"{number}.jpg", "text": f"a dog {number}"} for number in range(1, 13)]
    (images / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings, *commands = re.findall(r"```bash\n(.*?)```", SKILL.read_text(), re.DOTALL)
    assert "MODEL=embedded\n" in settings and len(commands) == 5
    line = "\n".join([settings.replace("embedded", "tiny"), *commands])
    line = line.replace("--set ", "--set train.steps=2 train.batch_size=2 ").replace(
        "--suite failures", "--suite failures --max-new-tokens 4"
    )
    bin_first = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        ["bash", "-euc", line], cwd=tmp_path, env=bin_first, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    output = tmp_path / "outputs/skill"
    assert len((output / "captions.jsonl").read_text().splitlines()) == 12
    assert (output / "trained/samples.html").is_file() and (output / "evaluation/report.html").is_file()
    card = ModelCard.load(output / "published/README.md")
    assert any("failures" in result.metric_name for result in card.data.eval_results)
