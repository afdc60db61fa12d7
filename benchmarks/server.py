"""python benchmarks/server.py [--model tiny|embedded] [--requests N] [--clients N]

`minigpt4 serve` under load: OpenAI's asynchronous client asks a tiny model (random weights, 16 new tokens) or the embedded
default (64), greedy, many clients at once, about no, one or two pictures of 32 to 1600 pixels with texts of 1 to 200 words,
every other one streamed. A request fails if it has no answer, or another one than `generate` gives.

Resident memory is that of the server's process: "before" once every kind of request was answered and a first load of as many
requests as there are clients is over, so that libraries, threads and the allocator's arenas are there; "after" when the load
is. The peer is `generate` on the same requests, one after the other and without a server; each computes in one thread, so
"cpu_ratio", of the CPU seconds that a request takes, is the same on a machine that has other work. "lone" is the
latency of a client that has the server to itself. Writes benchmarks/results/server.json, or server-embedded.json.
"""

import argparse
import asyncio
import base64
import datetime
import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import openai
import psutil
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoTokenizer, Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.cli import run_reporting_errors
from minigpt4.durable_files import write_json
from minigpt4.hub.export import export
from minigpt4.inference.named_models import load as load_model
from minigpt4.modeling_minigpt4.chat import answer_text
from minigpt4.training.run import versions

TOKENIZER = Path(__file__).parents[1] / "tests" / "fixtures" / "parity" / "llama_tiny"
NEW_TOKENS = {"tiny": 16, "embedded": 64}
# Width and height of a request's pictures, and the words of its text.
KINDS = [
    ((), 1),
    ((), 20),
    ((), 200),
    (((32, 32),), 3),
    (((64, 48),), 8),
    (((224, 224),), 20),
    (((320, 240),), 5),
    (((640, 480),), 60),
    (((1024, 768),), 10),
    (((1600, 1200),), 200),
    (((100, 1000), (48, 48)), 12),
    (((500, 375), (800, 600)), 40),
]


def build(name):
    """(model, processor): the one that is asked for, with no way to end an answer early."""
    model, processor = load_model(name, "float32") if name == "embedded" else tiny()
    ends = [processor.tokenizer.eos_token_id, *(token for end in processor.turn_ends for token in end)]
    # Added to what the model suppresses already, its image token.
    model.generation_config.suppress_tokens = sorted({*ends, *(model.generation_config.suppress_tokens or ())})
    return model, processor


def tiny():
    """(model, processor) of random weights."""
    vision = Blip2VisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
    )
    qformer = Blip2QFormerConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=2,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    config = MiniGPT4Config(vision_config=vision, qformer_config=qformer, text_config=text, initializer_range=0.2)
    model = MiniGPT4ForConditionalGeneration(config).eval()
    return model, MiniGPT4Processor.for_model(config, AutoTokenizer.from_pretrained(TOKENIZER))


def conversations():
    """A request's messages for each kind, as OpenAI's API has them."""
    random = np.random.default_rng(0)
    words = ("what", "is", "the", "red", "thing", "on", "that", "small", "boat", "beside", "an", "old", "house")

    def picture(size):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file, "JPEG")
        url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": url}}

    def message(sizes, length):
        text = {"type": "text", "text": " ".join(random.choice(words, length))}
        return {"role": "user", "content": [*map(picture, sizes), text]}

    return [[message(sizes, length)] for sizes, length in KINDS]


class Server:
    """`minigpt4 serve` in a separate process."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        line = [sys.executable, "-m", "minigpt4", "serve", "--model", str(folder), "--port", str(self.port)]
        self.log = Path(folder).with_name("server.log")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=log, env=environment)

    def __enter__(self):
        with socket.socket() as trial:
            while trial.connect_ex(("127.0.0.1", self.port)):
                if self.process.poll() is not None:
                    raise ValueError(f"the server exited:\n{self.log.read_text()}")
                time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    @property
    def cpu_seconds(self):
        """What it has computed so far."""
        return sum(psutil.Process(self.process.pid).cpu_times()[:2])

    @property
    def megabytes(self):
        """Resident memory."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6


async def load(server, requests, clients, new_tokens):
    """Asks `requests` times, `clients` at a time: (answers or errors by kind, seconds of each, seconds in all, peak MB)."""
    chats, answers, seconds, peak = conversations(), [[] for _ in KINDS], [], server.megabytes
    left = iter(tqdm(np.random.default_rng(1).permutation(requests), desc="requests", leave=False))
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as api:
        [model] = [model.id async for model in api.models.list()]

        async def ask(number):
            arguments = {"model": model, "messages": chats[number % len(KINDS)], "max_tokens": new_tokens, "temperature": 0}
            if number % 2:
                whole = await api.chat.completions.create(**arguments)
                return whole.choices[0].message.content
            stream = await api.chat.completions.create(**arguments, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def client():
            nonlocal peak
            for number in left:
                started = time.perf_counter()
                try:
                    answers[number % len(KINDS)].append(await ask(number))
                except openai.OpenAIError as error:
                    answers[number % len(KINDS)].append(error)
                seconds.append(time.perf_counter() - started)
                peak = max(peak, server.megabytes)

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return answers, seconds, time.perf_counter() - started, peak


def alone(model, processor, requests, new_tokens):
    """(texts by kind, requests a second, CPU seconds a request) of `generate`, one request after the other."""

    def answer(messages):
        messages = [{**m, "content": [_ours(part) for part in m["content"]]} for m in messages]
        form = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(messages, **form)
        ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return answer_text(processor, ids.tolist())

    chats = conversations()
    texts = [answer(messages) for messages in chats]
    started, computed = time.perf_counter(), time.process_time()
    for number in tqdm(range(requests), desc="generate", leave=False):
        answer(chats[number % len(KINDS)])
    return texts, requests / (time.perf_counter() - started), (time.process_time() - computed) / requests


def _ours(part):
    return part if part["type"] == "text" else {"type": "image", "url": part["image_url"]["url"]}


def main():
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["tiny", "embedded"], default="tiny", help="(default: tiny)")
    parser.add_argument("--requests", type=int, default=500, help="requests under load (default: 500)")
    parser.add_argument("--clients", type=int, default=50, help="clients at the same time (default: 50)")
    arguments = parser.parse_args()
    requests, clients = arguments.requests, arguments.clients
    if min(requests, clients) < 1:
        raise ValueError(f"--requests is {requests} and --clients {clients}; expected 1 or more")
    new_tokens = NEW_TOKENS[arguments.model]
    torch.set_num_threads(1)
    model, processor = build(arguments.model)
    with tempfile.TemporaryDirectory() as scratch, Server(export(model, processor, Path(scratch) / "model")) as server:
        started = server.megabytes
        asyncio.run(load(server, len(KINDS), 1, new_tokens))
        _, lone, *_ = asyncio.run(load(server, 2 * len(KINDS), 1, new_tokens))
        asyncio.run(load(server, clients, clients, new_tokens))
        before = server.megabytes
        computed = server.cpu_seconds
        answers, seconds, whole, peak = asyncio.run(load(server, requests, clients, new_tokens))
        computed = (server.cpu_seconds - computed) / requests
        after = server.megabytes
    expected, peer, peer_computed = alone(model, processor, len(KINDS) * max(requests // 60, 1), new_tokens)
    failed = [answer for text, given in zip(expected, answers, strict=True) for answer in given if answer != text]
    latency = dict(zip(("p50", "p90", "p99"), np.quantile(seconds, [0.5, 0.9, 0.99]), strict=True), mean=np.mean(seconds))
    latency["lone p50"] = np.median(lone)
    memory = {"started": started, "before": before, "peak": peak, "after": after}
    result = {
        "name": f"minigpt4 serve, {arguments.model}: {requests} requests of {new_tokens} new tokens by {clients} clients",
        "value": round(requests / whole, 2),
        "unit": "requests/s",
        "peer": round(peer, 2),
        "ratio": round(requests / whole / peer, 3),
        "cpu_seconds": {"server": round(computed, 3), "peer": round(peer_computed, 3)},
        "cpu_ratio": round(peer_computed / computed, 3),
        "failed": len(failed),
        "latency_s": {name: round(float(value), 3) for name, value in latency.items()},
        "memory_mb": {name: round(value, 1) for name, value in memory.items()},
        "memory_after_to_before": round(after / before, 3),
        "device": "CPU, 1 thread for the model",
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "command": f"python benchmarks/server.py --model {arguments.model} --requests {requests} --clients {clients}",
    }
    print(*(f"{name:<24}{value}" for name, value in result.items()), *failed[:3], sep="\n")
    name = "server.json" if arguments.model == "tiny" else f"server-{arguments.model}.json"
    write_json(Path(__file__).parent / "results" / name, result)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "server"))
