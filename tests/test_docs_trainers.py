"""The scripts in docs/other-trainers.md, unchanged, on a tiny exported model and without this package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from curation import ChatServer, make_store
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer

from minigpt4 import MiniGPT4ImageProcessor, MiniGPT4Processor
from minigpt4.curation.endpoint import Endpoint
from minigpt4.curation.judge import judge
from minigpt4.curation.publish import publish
from minigpt4.hub.export import export

pytestmark = pytest.mark.slow

SCRIPTS = ("dpo", "grpo", "qlora")
CURATION = Path(__file__).parents[1] / "docs" / "curation.md"
PARITY = Path(__file__).parent / "fixtures" / "parity"
PAGE = Path(__file__).parents[1] / "docs" / "other-trainers.md"
# On a CPU, a few steps, and large ones, so that something moves.
CHANGES = [
    (r"max_steps=200", "max_steps=3, use_cpu=True, report_to='none', logging_steps=1, save_strategy='no'"),
    (r"learning_rate=\S+,", "learning_rate=0.01,"),
    (r"max_completion_length=32", "max_completion_length=8"),
]
# bitsandbytes' kernels for AVX512-BF16 take widths that are multiples of 32, as real models' are; the tiny one's are not.
START = """import json, sys
import bitsandbytes.nn.modules
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
sys.modules['minigpt4'] = None
"""
ROWS = [
    ("preferences.jsonl", {"question": "What is this?", "chosen": "a dog", "rejected": "a dog and a ball"}),
    ("questions.jsonl", {"question": "What is this?", "answer": "e"}),  # a letter that the tiny model does write
    ("conversations.jsonl", {"question": "What is this?", "answer": "a dog"}),
]


@pytest.fixture(scope="module")
def workplace(_original, tiny_config, tmp_path_factory):
    """A folder with the model and the data that the page's scripts name, where they have run, all in one process.

    `log-SCRIPT.json` is what a trainer logged; importing minigpt4 fails there.
    """
    folder = tmp_path_factory.mktemp("trainers")
    tokenizer = AutoTokenizer.from_pretrained(PARITY / "llama_tiny")
    image_processor = MiniGPT4ImageProcessor(size={"height": 56, "width": 56})
    processor = MiniGPT4Processor(image_processor, tokenizer, num_image_tokens=tiny_config.num_image_tokens)
    export(_original, processor, folder / "my-minigpt4")
    for name, row in ROWS:
        lines = [json.dumps({"image": f"{number}.png", **row}) for number in range(4)]
        (folder / name).write_text("\n".join(lines))
    with make_store(folder, 4, ("sample", "pairs")) as store, ChatServer() as server:
        server.behave = lambda text, nth: "B" if "ball" in text.partition("Answer B")[0] else "A"
        judge(store, Endpoint("judge", server.url, key_variable=""))
        publish(store, folder / "preferences", "preferences", validation=0)
    for number in range(4):
        Image.effect_noise((30, 20), 50 + number).convert("RGB").save(folder / f"{number}.png")
    (folder / "run.py").write_text(START + "".join(map(_script, SCRIPTS)) + _curated())
    caches = {"HF_HOME": "hf", "HF_MODULES_CACHE": "modules", "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "run.py"], cwd=folder, env={**os.environ, **caches}, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


def _script(name):
    """A script of the page, which then writes its log."""
    [code] = re.findall(rf"```python\n(# {name}.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    for found, change in CHANGES:
        code = re.sub(found, change, code)
    return f"{code}\njson.dump(trainer.state.log_history, open('log-{name}.json', 'w'))\n"


def _curated():
    """The page's dpo.py with the lines that docs/curation.md puts there instead."""
    code = _script("dpo").replace("dpo/model", "curated/model").replace("log-dpo", "log-curated")
    for line in (r"^pairs = .*$", r"^    train_dataset=.*$"):
        [instead] = re.findall(line, CURATION.read_text(), re.MULTILINE)
        code, changes = re.subn(line, instead, code, flags=re.MULTILINE)
        assert changes == 1
    return code


def logged(script, workplace):
    """[{"loss": ...}, ...] of a script's steps."""
    return [entry for entry in json.loads((workplace / f"log-{script}.json").read_text()) if "loss" in entry]


def changed(before, after):
    before, after = load_file(before), load_file(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("script", ["dpo", "curated", "grpo"])
def test_preferences_and_rewards_move_the_projection(script, workplace):
    steps = logged(script, workplace)
    assert len(steps) == 3
    moved = changed(workplace / "my-minigpt4/model.safetensors", workplace / script / "model/model.safetensors")
    assert moved == {"model.projection.weight", "model.projection.bias"}
    if script != "grpo":
        assert steps[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # ln 2: the model is still its own reference
        assert steps[-1]["rewards/margins"] > 0
    else:
        assert any(0 < entry["reward"] < 1 for entry in steps)


def test_qlora_moves_adapters_and_the_projection(workplace):
    losses = [entry["loss"] for entry in logged("qlora", workplace)]
    assert losses[-1] < losses[0]
    saved = load_file(workplace / "qlora/adapter/adapter_model.safetensors")
    assert any("lora_B" in name and tensor.any() for name, tensor in saved.items())
    before = load_file(workplace / "my-minigpt4/model.safetensors")["model.projection.weight"]
    [after] = [tensor for name, tensor in saved.items() if name.endswith("projection.weight")]
    assert after.shape == before.shape and not torch.equal(after.float(), before.float())
