"""The file for VLMEvalKit, put beside a base class with the interface that VLMEvalKit documents, without this package.

VLMEvalKit is not on PyPI. What is known of it, from vlmeval/vlm/base.py (commit 23757c4) and vlmeval/inference.py
(0044c57): a model is built by its class, `set_dump_image` is called, then `generate(message=..., dataset=...)` for each
question, which returns a string.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

from minigpt4.hub.export import export
from minigpt4.inference.generation import answer_text
from minigpt4.processing.processing_minigpt4 import ASKING

WRAPPER = Path(__file__).parents[3] / "minigpt4" / "evaluation" / "vlmevalkit.py"
BASE = """
class BaseModel:
    INTERLEAVE = False
    allowed_types = ["text", "image", "video"]

    def __init__(self):
        self.dump_image_func = None

    def use_custom_prompt(self, dataset):
        return False

    def set_dump_image(self, function):
        self.dump_image_func = function

    def generate(self, message, dataset=None):
        parts = [message] if isinstance(message, (str, dict)) else message
        parts = [part if isinstance(part, dict) else self._typed(part) for part in parts]
        assert all(part["type"] in self.allowed_types for part in parts)
        return self.generate_inner(parts, dataset)

    def _typed(self, text):
        return {"type": "image" if text.endswith(".png") else "text", "value": text}
"""
RUN = """
import json, sys
sys.modules["minigpt4"] = None  # VLMEvalKit's users need not have this package
from vlmeval.vlm.minigpt4_hf import MiniGPT4HF

model = MiniGPT4HF(sys.argv[1], max_new_tokens=8)
model.set_dump_image(lambda line: line["image_path"])
assert not model.use_custom_prompt("POPE") and model.INTERLEAVE
answers = [model.generate(message=message, dataset="POPE") for message in json.loads(sys.argv[2])]
print(json.dumps(answers))
"""


@pytest.fixture
def kit(tmp_path):
    """A folder with the wrapper where VLMEvalKit has its models."""
    models = tmp_path / "kit" / "vlmeval" / "vlm"
    models.mkdir(parents=True)
    for package in (models, models.parent):
        (package / "__init__.py").touch()
    (models / "base.py").write_text(BASE)
    (models / "minigpt4_hf.py").write_text(WRAPPER.read_text())
    return tmp_path / "kit"


def test_it_answers_as_this_package_does(kit, original, processor, tmp_path):
    model = export(original, processor, tmp_path / "tiny")
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for i, path in enumerate(paths):
        Image.effect_noise((30, 20), 60 + i).save(path)
    image, text = ({"type": kind, "value": value} for kind, value in (("image", paths[0]), ("text", "What is this?")))
    other = {"type": "image", "value": paths[1]}
    messages = [[image, text], [image, {"type": "text", "value": "and"}, other, text], [paths[1], "What is this?"], "Hello."]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUN), str(model), json.dumps(messages)],
        cwd=kit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    asked = [messages[0], messages[1], [other, text], [{"type": "text", "value": "Hello."}]]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == [ours(original, processor, message) for message in asked] and len(set(said)) > 1


@torch.inference_mode()
def ours(model, processor, message):
    """The same by this package's own reading of an answer."""
    parts = [
        {"type": "text", "text": part["value"]}
        if part["type"] == "text"
        else {"type": "image", "image": Image.open(part["value"]).convert("RGB")}
        for part in message
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}], **ASKING, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return answer_text(processor, ids[0, inputs["input_ids"].shape[1] :])
