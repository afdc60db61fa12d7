"""The quickstart: trains a real MiniGPT-4 from scratch until it answers questions, and reports what it learned.

    shipped model on photographs -> stage 1 on composed scenes -> stage 2 -> measured on held-out scenes -> report

It runs the same two recipes as the trainer scripts without arguments, in one process, with the frozen vision parts' features
computed once for both. The duration is first estimated from a few real steps; with a budget in minutes, it takes as many
steps as fit (budget.py).
"""

import dataclasses
import json
import time
from pathlib import Path

import torch
from huggingface_hub import EvalResult

from ..configuration.recipe import load_recipe
from ..durable_files import write_json
from ..hub.export import check_target, export
from ..inference.devices import find_device
from ..inference.generation import answers, chat_prompt
from ..inference.named_models import load
from ..metrics import composed
from ..metrics.composed import HELD_OUT, NOTO_FONT, SHIFT
from ..processing.data.datasets import PictureTexts, training_data
from ..processing.data.photographs import CREDITS, photograph
from ..processing.data.scenes import noto, scenes
from ..training.looks import loss_curve
from ..training.run import cache_features, load_model, peak_rss_mb, resumable, train, versions
from . import report
from .budget import Budget
from .held_out_scenes import HeldOut

WHAT = "What is in this image?"
ANSWERS_BESIDE = 9  # everything asked after training takes this many times as long as the captions before it


def quickstart(output, minutes=None, seed=0):
    """Trains and measures; returns the summary, which is also written to `output`/summary.json.

    Args:
        output: folder for stage1/, stage2/, model/, summary.json, loss.png and report.html.
        minutes: total wall-clock time on this machine, with as many steps and scenes as fit. None: the recipes'.
        seed: for scenes, projection and batches.
    """
    started, output = time.monotonic(), Path(output)
    check_target(output / "model")
    first, second = _recipes(output, seed)

    print("1/5  the shipped model looks at photographs")
    photographs = describe_photographs()

    print(f"2/5  {HELD_OUT} held-out scenes, and how long the rest will take")
    torch.manual_seed(seed)
    model, processor = load_model(first.model)
    model.to(find_device())  # the Trainer would do it, but what comes before it is timed
    held_out = scenes(HELD_OUT, seed, "test")
    looking = time.monotonic()
    seen = cache_features(model, processor, held_out)[:, 0]
    shown, answering = HeldOut(held_out, seen), time.monotonic()
    before_training = shown.captions(model, processor)
    budget = Budget(
        model,
        processor,
        seen,
        looking=(answering - looking) / HELD_OUT,
        answering=ANSWERS_BESIDE * (time.monotonic() - answering),
        held_out=HELD_OUT,
    )
    n = budget.fit((first, second), output, minutes and 60 * minutes - (time.monotonic() - started))
    held_out, before_training = held_out.select(range(n)), before_training[:n]
    shown = HeldOut(held_out, seen[:n])

    print("3/5  stage 1: captions")
    train_started = time.monotonic()
    data = training_data(first.data, stage=1)
    shown.assert_disjoint(data.pictures)
    data.features = cache_features(model, processor, data.pictures)
    losses, seconds_before = {}, 0
    if resumable(second):
        model, processor = load_model(second.model)
        model.to(find_device())
        losses["stage 1"] = json.loads((output / "stage1" / "summary.json").read_text("utf-8"))
        seconds_before = losses["stage 1"]["seconds"]
    else:
        _, _, losses["stage 1"] = train(first, model, processor, data)
    train_seconds = time.monotonic() - train_started + seconds_before
    after_stage1 = shown.captions(model, processor)
    stage1 = composed.caption_scores(shown.rows, after_stage1)
    print(f"     captions of held-out scenes name {stage1['object_recall']:.0%} of the objects")
    before_stage2 = shown.conversation(model, processor)

    print("4/5  stage 2: descriptions and questions")
    train_started = time.monotonic()
    texts = training_data(second.data, stage=2).texts
    _, _, losses["stage 2"] = train(second, model, processor, PictureTexts(data.pictures, texts, data.features))
    train_seconds += time.monotonic() - train_started
    after_stage2 = shown.conversation(model, processor)

    print("5/5  report")
    stage2 = shown.scores(after_stage2)
    export(model, processor, output / "model", card_data=_card_data(stage1, stage2))
    summary = {
        "stage1": {
            **stage1,
            "object_recall_shuffled": composed.object_recall(shown.rows, after_stage1[SHIFT:] + after_stage1[:SHIFT]),
        },
        "before_stage2": shown.scores(before_stage2),
        "stage2": stage2,
        "unseen_artwork": _unseen_artwork(model, processor, n, seed),
        "n": {"scenes": len(shown.rows), "questions": len(shown.questions)},
        "seed": seed,
        "minutes": minutes,
        "train_seconds": round(train_seconds, 1),
        "total_seconds": round(time.monotonic() - started, 1),
        "peak_rss_mb": peak_rss_mb(),
        "versions": versions(),
        "recipes": {"stage1": dataclasses.asdict(first), "stage2": dataclasses.asdict(second)},
    }
    write_json(output / "summary.json", summary)
    loss_curve(output / "loss.png", losses)
    report.write(
        output / "report.html",
        summary,
        report.scene_rows(held_out, shown, before_training, after_stage1, before_stage2, after_stage2),
        photographs,
    )
    return summary


def describe_photographs():
    """[(image, answer)] of the included model for the photographs of `CREDITS`."""
    model, processor = load("embedded", device="auto")
    pictures = [photograph(name) for name in CREDITS]
    features = cache_features(model, processor, [{"image": picture} for picture in pictures])[:, 0]
    prompts = [chat_prompt(processor, WHAT)] * len(pictures)
    words = answers(model, processor, prompts, features, max_new_tokens=60)
    for name, text in zip(CREDITS, words, strict=True):
        print(f"     {name}: {text}")
    return list(zip(pictures, words, strict=True))


def _recipes(output, seed):
    """Both recipes, with the seed."""
    recipes = []
    for stage in (1, 2):
        recipe = load_recipe(f"stage{stage}-embedded")
        recipe.output = str(output / f"stage{stage}")
        recipe.data.scene_seed = recipe.train.seed = seed
        recipes.append(recipe)
    recipes[1].model.projection = str(output / "stage1" / "model")
    return recipes


def _card_data(stage1, stage2):
    """The data and the scores for the model card."""
    measured = {
        "objects named in captions": stage1["object_recall"],
        "captions exact": stage1["caption_exact"],
        "questions answered right": stage2["questions_right"],
        "objects named in descriptions": stage2["description_recall"],
    }
    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type="composed-scenes",
            dataset_name="Composed scenes (OpenMoji artwork, CC BY-SA 4.0), held out",
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(value, 3),
        )
        for name, value in measured.items()
    ]
    return {"model_name": "minigpt4-quickstart", "language": "en", "eval_results": results}


def _unseen_artwork(model, processor, n, seed):
    """The stage-2 measures on n held-out scenes drawn in Noto's artwork, or None without Debian's fonts-noto-color-emoji."""
    if not NOTO_FONT.is_file():
        return None
    pictures = scenes(n, seed, "test", artwork=noto)
    held = HeldOut(pictures, cache_features(model, processor, pictures)[:, 0])
    return held.scores(held.conversation(model, processor))
