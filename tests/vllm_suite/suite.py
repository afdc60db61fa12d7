"""The tiny model in vLLM: the same log-probabilities and texts as `generate`. Run by `make test-vllm`, with its own venv."""

import base64
import copy
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from minigpt4.modeling_minigpt4.export import export


@pytest.fixture
def wide(tiny_config):
    """The tiny model with an LLM whose heads are 32 wide: vLLM has no attention on the CPU for narrower ones."""
    text = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=2,
        initializer_range=0.2,
    )
    tiny_config = copy.deepcopy(tiny_config)
    config = MiniGPT4Config(
        vision_config=tiny_config.vision_config,
        qformer_config=tiny_config.qformer_config,
        text_config=text,
        num_query_tokens=tiny_config.num_query_tokens,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return MiniGPT4ForConditionalGeneration(config).eval()


def data_url(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def conversation(pictures, part):
    """A question about pictures; part(picture): how the message has it."""
    return [{"role": "user", "content": [*map(part, pictures), {"type": "text", "text": "What is this?"}]}]


def test_vllm_answers_as_generate_does(wide, processor, picture, tmp_path):
    folder = export(wide, processor, tmp_path / "model")
    shown = [[picture(0)], [picture(0), picture(1)], []]
    asked = [conversation(p, lambda image: {"type": "image_url", "image_url": {"url": data_url(image)}}) for p in shown]
    line = [sys.executable, str(Path(__file__).with_name("in_vllm.py")), str(folder), json.dumps(asked)]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True, cwd=tmp_path)
    for pictures, answer in zip(shown, json.loads(done.stdout.splitlines()[-1]), strict=True):
        messages = conversation(pictures, lambda image: {"type": "image", "image": image})
        form = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(messages, **form)
        how = {"max_new_tokens": 12, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
        with torch.no_grad():
            expected = wide.generate(**inputs, eos_token_id=2, **how)
        assert answer["prompt"] == inputs["input_ids"][0].tolist()
        scores = expected.scores[0][0].log_softmax(-1)
        for token, found in answer["logprobs"].items():
            assert found == pytest.approx(scores[int(token)].item(), abs=1e-4)
        assert answer["ids"] == expected.sequences[0, inputs["input_ids"].shape[1] :].tolist()
