"""python benchmarks/photographs.py --data SHARDS [--model embedded|DIR|ID] [--output FILE.json]

Captions of photographs against their human captions (webdataset shards with five captions each, Flickr8k's dev split, say):
CIDEr and BLEU-4 of an answer's first sentence (references are one sentence long) and the share of whole answers with
repetition, greedy, for three ways to ask; each score beside that of the same answers on shuffled pictures.
"""

import argparse
import re
import sys
from pathlib import Path

from minigpt4.cli import run_reporting_errors
from minigpt4.configuration.recipe import DataSection
from minigpt4.durable_files import write_json
from minigpt4.inference.generation import answers, caption_prompt, chat_prompt
from minigpt4.inference.named_models import fingerprint, load, public_name
from minigpt4.metrics.captions import caption_scores
from minigpt4.metrics.failures import failure, failure_rate
from minigpt4.processing.data.datasets import read_pictures
from minigpt4.training.run import cache_features, versions

SHORT, DETAIL = "Describe this image in one short sentence.", "Describe this image in detail."
SHIFT = 7  # the control judges each picture by what was said about the one that many places later


def measure(model_name, data, holdout_share=0.0):
    """{"caption", "short", "detail"}: scores of each way to ask, with the number of pictures."""
    model, processor = load(model_name)
    pictures = read_pictures(DataSection(path=data, holdout_share=holdout_share), only_held_out=True)
    references = [found.captions for [found] in pictures.contents]
    if len(references) <= SHIFT:
        raise ValueError(f"{data}: {len(references)} pictures; the shuffled control needs more than {SHIFT}")
    features = cache_features(model, processor, pictures)[:, 0]
    ways = {
        "caption": (caption_prompt(processor), "\n", 28),
        "short": (chat_prompt(processor, SHORT), None, 40),
        "detail": (chat_prompt(processor, DETAIL), None, 120),
    }
    place = "/".join(Path(data).parts[-2:])  # what the model card calls it: FLICKR8K/dev
    results = {"model": public_name(model_name), "fingerprint": fingerprint(model), "data": place, "n": len(references)}
    results["versions"] = versions()
    for way, (prompt, stop, longest) in ways.items():
        said = answers(model, processor, [prompt] * len(references), features, longest, stop, desc=way)
        first = [re.split(r"(?<=[.!?])\s", text)[0] for text in said]
        shuffled = caption_scores(first[SHIFT:] + first[:SHIFT], references)
        results[way] = {
            **caption_scores(first, references),
            "cider_shuffled": shuffled["cider"],
            "bleu4_shuffled": shuffled["bleu4"],
            "repetition": sum(failure(text) == "repetition" for text in said) / len(said),
            "words": sum(len(text.split()) for text in said) / len(said),
            "examples": said[:3],
        }
        if way == "detail":
            results[way]["failures"] = failure_rate(said)
    return results


def main():
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a shard, a folder of shards, or a glob")
    parser.add_argument("--holdout-share", type=float, default=0.0, help="only pictures that data.holdout_share kept out")
    parser.add_argument("--model", default="embedded", help='"embedded" (the default), a folder, or a Hub id')
    parser.add_argument("--output", help="JSON file for the results")
    arguments = parser.parse_args()
    results = measure(arguments.model, arguments.data, arguments.holdout_share)
    for way in ("caption", "short", "detail"):
        print(way, {name: round(value, 3) for name, value in results[way].items() if name != "examples"})
    if arguments.output:
        write_json(arguments.output, results)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main, "photographs"))
