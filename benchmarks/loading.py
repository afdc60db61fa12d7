"""python benchmarks/loading.py [--layers N] [--scratch DIR] [--output FILE.json]

Peak memory of putting a model together, as a share of its weights: MiniGPT-4 of the published widths (EVA ViT-g, Q-Former,
Vicuna-7B with N of its 32 layers) with random weights in bf16, from its parts, from a light and from a full repository. Each
is loaded in a separate process; a plain `AutoModelForCausalLM.from_pretrained` of the LLM is the peer.
"""

import argparse
import multiprocessing
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Blip2Config, LlamaConfig, OPTConfig

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.cli import run_reporting_errors
from minigpt4.durable_files import write_json
from minigpt4.hub.export import export
from minigpt4.training.run import versions

TOKENIZER = Path(__file__).parents[1] / "tests" / "fixtures" / "parity" / "llama_tiny"


def write_parts(folder, layers, vision_layers=39):
    """A BLIP-2 (only its vision side) and an LLM with random weights in bf16; returns their folders."""
    preset = MiniGPT4Config.preset("vicuna-7b")
    preset.text_config.num_hidden_layers, preset.vision_config.num_hidden_layers = layers, vision_layers
    vision, text = folder / "vision", folder / "text"
    with torch.device("meta"):
        names = MiniGPT4ForConditionalGeneration(preset).state_dict()
    rename = {"model.vision_tower.": "vision_model.", "model.qformer.": "qformer.", "model.query_tokens": "query_tokens"}
    seeing, speaking = {}, {}
    for name, shape in ((name, tensor.shape) for name, tensor in names.items() if "model.projection." not in name):
        for ours, theirs in rename.items():
            if name.startswith(ours):
                seeing[theirs + name.removeprefix(ours)] = shape
        if name.startswith(("model.language_model.", "lm_head")):
            speaking[name.replace("model.language_model.", "model.")] = shape
    for where, shapes in ((vision, seeing), (text, speaking)):
        where.mkdir()
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02) for name, shape in shapes.items()}
        save_file(tensors, where / "model.safetensors", {"format": "pt"})
        del tensors
    Blip2Config(
        vision_config=preset.vision_config.to_dict(),
        qformer_config=preset.qformer_config.to_dict(),
        text_config=OPTConfig().to_dict(),
    ).save_pretrained(vision)
    LlamaConfig(**{**preset.text_config.to_dict(), "dtype": "bfloat16"}).save_pretrained(text)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(text)
    return str(vision), str(text)


def measured(load, *arguments):
    """{"peak_mb", "weights_mb", "ratio"} of load(*arguments), in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (load, *arguments))


def _measure(load, *arguments):
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark; a child inherits its parent's
    before = _resident_mb("VmRSS")
    model = load(*arguments)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 2**20
    for tensor in model.state_dict().values():
        tensor.max()  # what is memory-mapped is read now at the latest
    peak = _resident_mb("VmHWM") - before
    return {"peak_mb": round(peak), "weights_mb": round(weights), "ratio": round(peak / weights, 3)}


def _resident_mb(field):
    [line] = [line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def from_parts(vision, text, save_to=None, dtype=torch.bfloat16):
    """The model from its parts, saved light and full if `save_to` says where."""
    model = MiniGPT4ForConditionalGeneration.from_parts(vision=vision, text=text, dtype=dtype)
    if save_to is not None:
        processor = MiniGPT4Processor.for_model(model.config, AutoTokenizer.from_pretrained(text))
        export(model, processor, save_to / "light", light=True)
        export(model, processor, save_to / "full")
    return model


def main():
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="layers of the LLM; 32 are 14.6 GB with the vision side")
    parser.add_argument("--scratch", help="where the weights are written; needs three times their size")
    parser.add_argument("--output", help="JSON file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        vision, text = write_parts(folder, arguments.layers)
        results = {"layers": arguments.layers, "versions": versions()}
        results["peer: AutoModelForCausalLM, the LLM alone"] = measured(AutoModelForCausalLM.from_pretrained, text)
        results["from_parts"] = measured(from_parts, vision, text)
        results["from_parts, in another dtype"] = measured(from_parts, vision, text, None, torch.float16)
        measured(from_parts, vision, text, folder)
        for kind in ("light", "full"):
            results[kind] = measured(MiniGPT4ForConditionalGeneration.from_pretrained, folder / kind)
    for name, result in results.items():
        print(name, result)
    if arguments.output:
        write_json(arguments.output, results)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "loading"))
