"""The tiny model in vLLM, in-process and served: what `generate` says. Run by `make test-vllm`, in its own venv."""

import base64
import contextlib
import copy
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
import torch
from transformers import LlamaConfig

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from minigpt4.hub.export import export


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


def picture_at(url):
    return {"type": "image_url", "image_url": {"url": url}}


def ours(pictures):
    return conversation(pictures, lambda image: {"type": "image", "image": image})


def openais(pictures):
    return conversation(pictures, lambda image: picture_at(data_url(image)))


@torch.no_grad()
def generated(model, processor, pictures):
    """(ids of the prompt, greedy ids of the answer, log-probabilities of its first token), from `generate`."""
    form = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(ours(pictures), **form)
    how = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    output = model.generate(**inputs, eos_token_id=2, **how)
    prompt = inputs["input_ids"][0].tolist()
    return prompt, output.sequences[0, len(prompt) :].tolist(), output.logits[0][0].log_softmax(-1)


def test_vllm_answers_as_generate_does(wide, processor, picture, tmp_path):
    folder = export(wide, processor, tmp_path / "model")
    shown = [[picture(0)], [picture(0), picture(1)], []]
    asked = json.dumps([openais(pictures) for pictures in shown])
    line = [sys.executable, str(Path(__file__).with_name("in_vllm.py")), str(folder), asked]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True, cwd=tmp_path)
    for pictures, answer in zip(shown, json.loads(done.stdout.splitlines()[-1]), strict=True):
        prompt, ids, scores = generated(wide, processor, pictures)
        assert answer["prompt"] == prompt and answer["ids"] == ids
        for token, found in answer["logprobs"].items():
            assert found == pytest.approx(scores[int(token)].item(), abs=1e-4)


@contextlib.contextmanager
def served(folder, *flags):
    """The address of `minigpt4 serve --engine vllm` while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "minigpt4", "serve", "--model", str(folder), "--engine", "vllm", "--port", str(port)]
    # 1 GB for keys and values, and one thread, of each worker.
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    log = folder.with_name("server.log")
    with open(log, "w") as file:
        process = subprocess.Popen([*line, *flags], stdout=file, stderr=file, env={**os.environ, **small}, cwd=folder.parent)
    try:
        last = time.monotonic() + 900  # minutes on a busy machine
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < last, log.read_text()
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1", log
    finally:
        process.terminate()
        process.wait(120)


def test_a_server_of_two_workers_says_what_generate_does(wide, processor, picture, tmp_path):
    """Tensor parallel, and OpenAI's client: no picture, one, two, streamed; what the server refuses; flags passed on."""
    folder = export(wide, processor, tmp_path / "model")
    flags = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4"]
    with served(folder, *flags, "--tensor-parallel-size", "2") as (url, log):
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
        for pictures in [], [picture(0)], [picture(0), picture(1)]:
            prompt, ids, _ = generated(wide, processor, pictures)
            asked = {"model": str(folder), "messages": openais(pictures), "max_tokens": 12, "temperature": 0}
            whole = client.chat.completions.create(**asked, extra_body={"return_token_ids": True})
            # Of a letter that breaks off in the middle vLLM shows nothing.
            text = processor.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
            assert whole.choices[0].token_ids == ids and whole.choices[0].message.content.rstrip("\ufffd") == text
            assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(prompt), len(ids))
            pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
            assert "".join(pieces) == whole.choices[0].message.content and len(pieces) > 3
        for change, status, says in [
            ({"messages": conversation(["http://10.0.0.1/a.png"], picture_at)}, 400, "not fetched from"),
            ({"messages": conversation(["data:image/png;base64,aGVsbG8="], picture_at)}, 400, "not a picture"),
            ({"max_tokens": 300}, 400, "256"),
            ({"model": "gpt-4"}, 404, "gpt-4"),
        ]:
            with pytest.raises(openai.APIStatusError, match=says) as refused:
                client.chat.completions.create(**{**asked, **change})
            assert refused.value.status_code == status
    assert "rank=1" in log.read_text()
