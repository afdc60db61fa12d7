"""Exported folders: used in a process where this package cannot be imported (consumer.py), and what is in them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from transformers import GenerationConfig, LlamaConfig

from minigpt4 import EfficientNetLiteConfig, MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.modeling_minigpt4 import export as export_module
from minigpt4.modeling_minigpt4.embedded import load_embedded
from minigpt4.modeling_minigpt4.export import export
from minigpt4.modeling_minigpt4.parts import BASE_PARTS, cache_dir

CONSUMER = Path(__file__).with_name("consumer.py")
CODE = {
    "configuration_minigpt4.py",
    "modeling_minigpt4.py",
    "efficientnet_lite.py",
    "light.py",
    "parts.py",
    "image_processing_minigpt4.py",
    "processing_minigpt4.py",
    "chat_templates.py",
}


@pytest.fixture
def small_tower(tokenizer, processor):
    """(model, processor): the embedded default's tower, whole, with a tiny LLM and no Q-Former."""
    torch.manual_seed(0)
    config = MiniGPT4Config(
        vision_config=EfficientNetLiteConfig(image_size=56, pool_grid=2),
        text_config=LlamaConfig(
            vocab_size=512, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
        ),
        patch_merge=1,
    )
    model = MiniGPT4ForConditionalGeneration(config).eval()
    return model, MiniGPT4Processor(processor.image_processor, tokenizer, num_image_tokens=config.num_image_tokens)


def consume(folder, again, photo):
    """Runs consumer.py on a folder, beside it and with empty caches; returns its report."""
    workplace = folder.parent
    photo.save(workplace / "photo.jpg")
    caches = {"HF_HOME": str(workplace / "hf"), "HF_MODULES_CACHE": str(workplace / "modules"), "HF_HUB_OFFLINE": "1"}
    report = workplace / f"{folder.name}.report.json"
    finished = subprocess.run(
        [sys.executable, str(CONSUMER), folder.name, str(again), str(report)],
        cwd=workplace,
        env={**os.environ, **caches, "MINIGPT4_CACHE": str(cache_dir())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(report.read_text())


def local_answer(model, processor, photo, tokens=8):
    """The same question as in consumer.py, asked here: (all ids, the answer's text)."""
    content = [{"type": "image", "image": photo}, {"type": "text", "text": "What is in the picture?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=tokens)[0]
    return ids.tolist(), processor.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture
def photo(tmp_path, picture):
    """A JPEG as it is read back, so that both processes see the same pixels."""
    picture().save(tmp_path / "original.png")
    return picture()


@pytest.mark.parametrize("kind", ["blip2", "small_tower"])
def test_loads_without_this_package_and_saves_again(kind, original, processor, small_tower, picture, tmp_path):
    model, processor = (original, processor) if kind == "blip2" else small_tower
    folder, again, third = (tmp_path / name for name in ("exported", "again", "third"))
    export(model, processor, folder)
    photo = picture()
    report = consume(folder, again, photo)
    assert report["classes"] == {
        "AutoModel": "MiniGPT4ForConditionalGeneration",
        "AutoModelForImageTextToText": "MiniGPT4ForConditionalGeneration",
        "AutoModelForMultimodalLM": "MiniGPT4ForConditionalGeneration",
        "AutoConfig": "MiniGPT4Config",
        "AutoImageProcessor": "MiniGPT4ImageProcessor",
        "AutoProcessor": "MiniGPT4Processor",
    }
    ids, text = local_answer(model, processor, tmp_path / "photo.jpg")
    assert report["answers"] == dict.fromkeys(
        ["AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM", "again"], ids
    )
    assert report["pipeline"] == text
    assert report["snippet"]
    assert "trust_remote_code=True" in report["refusal"]
    # What that process saved is as good as what it loaded, in a process that knows nothing of the first folder.
    assert consume(again, third, photo)["answers"] == report["answers"]
