"""python benchmarks/chat.py [--repeats N]

How fast a conversation is, each figure beside its peer in the same process, on a MiniGPT-4 with random weights (ViT of 26 M
parameters, Q-Former, 12-layer LLaMA of 134 M):

    tokens/s of `generate`       this package        a bare `LlamaForCausalLM` with the same weights and prompt length
    a second question            `chat.ask`          transformers' BLIP-2 with the same weights: everything is computed again
    loading                      `from_pretrained`   BLIP-2's `from_pretrained` of the same tensors
    `minigpt4 --help`            its startup         0.5 s

Of each, the shortest time counts, since other work on the machine can only add to it; but --help is in processor time, on
one thread, which on an idle machine is what the clock says. Writes benchmarks/results/chat.json.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import logging

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.cli import run_reporting_errors
from minigpt4.durable_files import write_json
from minigpt4.training.run import versions

TOKENIZER = Path(__file__).parents[1] / "tests" / "fixtures" / "parity" / "llama_tiny"
ANSWER_TOKENS = 160  # of the first answer: as long as stage 2 teaches
NEW_TOKENS = 48  # for tokens/s
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 2}


def build():
    """(model, its processor, BLIP-2 with the same weights, LLaMA with the same weights)."""
    vision = Blip2VisionConfig(hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8)
    qformer = Blip2QFormerConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4)
    text = LlamaConfig(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, pad_token_id=2)
    torch.manual_seed(0)
    model = MiniGPT4ForConditionalGeneration(MiniGPT4Config(vision_config=vision, qformer_config=qformer, text_config=text))
    processor = MiniGPT4Processor.for_model(model.config, AutoTokenizer.from_pretrained(TOKENIZER))
    with torch.device("meta"):
        llama = LlamaForCausalLM(text)
        config = Blip2Config(
            vision_config=vision.to_dict(),
            qformer_config=qformer.to_dict(),
            text_config=text.to_dict(),
            image_token_index=0,
            num_query_tokens=32,
        )
        blip2 = Blip2ForConditionalGeneration(config)
    llama.model, llama.lm_head = model.model.language_model, model.lm_head
    blip2.vision_model, blip2.qformer = model.model.vision_tower, model.model.qformer
    blip2.query_tokens, blip2.language_projection = model.model.query_tokens, model.model.projection
    blip2.language_model = llama
    return model.eval(), processor, blip2.eval(), llama.eval()


def shortest(repeats, desc, *calls, clock=time.process_time):
    """The shortest time of each call in seconds; they take turns, after one round to warm up."""
    times = [[] for _ in calls]
    for _ in tqdm(range(repeats + 1), desc=desc):
        for call, taken in zip(calls, times, strict=True):
            start = clock()
            call()
            taken.append(clock() - start)
    return [min(taken[1:]) for taken in times]


def tokens_per_second(model, llama, repeats):
    """(ours, the bare LLaMA's), after the same 128 ids; the first token, which takes the prompt, is left out."""
    ids = torch.randint(3, 32000, (1, 128), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def writes(which, tokens):
        return lambda: which.generate(**inputs, **GREEDY, max_new_tokens=tokens, min_new_tokens=tokens)

    calls = [writes(which, tokens) for which in (model, llama) for tokens in (1, NEW_TOKENS + 1)]
    ours_first, ours, bare_first, bare = shortest(repeats, "generate", *calls)
    return NEW_TOKENS / (ours - ours_first), NEW_TOKENS / (bare - bare_first)


def second_question(model, processor, blip2, repeats):
    """Seconds until the first token of a second question about a picture: (ours, BLIP-2's)."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    chat = model.chat_session(processor, **GREEDY)
    chat.ask("Describe this image in detail.", picture, max_new_tokens=ANSWER_TOKENS)
    question = {"role": "user", "content": [{"type": "text", "text": "What is unusual about it?"}]}

    def again():
        inputs = processor.apply_chat_template(
            [*chat.messages, question], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return blip2.generate(**inputs, **GREEDY, max_new_tokens=1)[0, -1].item()

    def kept():
        twin = chat.fork()
        twin.ask("What is unusual about it?", max_new_tokens=1)
        return twin.messages[-1].ids[-1]

    if again() != kept():
        raise ValueError("the two ways give different tokens")
    return shortest(repeats, "second question", kept, again)


def loading(model, blip2, repeats):
    """Seconds of `from_pretrained`, of the same weights in bf16: (ours, BLIP-2's)."""
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder) / name for name in ("ours", "blip2")]
        for which, place in zip((model, blip2), folders, strict=True):
            which.to(torch.bfloat16).save_pretrained(place)
        loads = [
            lambda: MiniGPT4ForConditionalGeneration.from_pretrained(folders[0]),
            lambda: Blip2ForConditionalGeneration.from_pretrained(folders[1]),
        ]
        return shortest(repeats, "loading", *loads)


def start_of_help():
    """Runs `minigpt4 --help` in a separate process, and checks that it imports no torch."""
    code = (
        "import sys; from minigpt4.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def main():
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=8, help="rounds of each measurement (default: 8)")
    repeats = parser.parse_args().repeats
    if repeats < 1:
        raise ValueError(f"--repeats is {repeats}; expected 1 or more")
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    model, processor, blip2, llama = build()
    figures = []

    def note(name, value, unit, peer, limit):
        figure = {"name": name, "value": round(value, 3), "unit": unit, "peer": round(peer, 3)}
        figures.append({**figure, "ratio": round(value / peer, 3), "wanted": limit})
        print(figures[-1])

    note("generate", *_with(tokens_per_second(model, llama, repeats), "tokens/s"), "ratio at least 0.97")
    note(
        "first token of a second question",
        *_with(second_question(model, processor, blip2, repeats), "s"),
        "ratio at most 0.15",
    )
    [help_seconds] = shortest(repeats, "help", start_of_help, clock=time.perf_counter)
    note("minigpt4 --help", help_seconds, "s", 0.5, "ratio at most 1")
    note("from_pretrained", *_with(loading(model, blip2, 4 * repeats), "s"), "ratio at most 1.1")
    result = {
        "name": "a conversation, random weights, fp32",
        "figures": figures,
        "device": f"CPU, {torch.get_num_threads()} threads",
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "command": f"python benchmarks/chat.py --repeats {repeats}",
    }
    write_json(Path(__file__).parent / "results" / "chat.json", result)


def _with(pair, unit):
    ours, peer = pair
    return ours, unit, peer


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "chat"))
