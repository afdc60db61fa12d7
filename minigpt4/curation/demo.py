"""The whole pipeline on a single machine: `minigpt4 curate --demo`.

    quickstart's stage-1 model -> new composed scenes -> SmolLM2 behind `transformers serve` -> rules -> a decisions file
    -> a data set -> stage 2 on it -> how often answers about held-out scenes fail, before and after

Nobody is at hand to decide, so a rule does, without a look at what the scenes were composed of: of the fixed text, and of
the first answer where the fix dropped it, a sentence stays if the stage-1 model finds it much likelier with its own picture
than with others. What the model knows of a picture it says in stage 1's form, for before stage 2 an LLM of 135 M parameters
follows no instruction about pictures.
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import torch

from minigpt4.configuration.recipe import load_recipe
from minigpt4.durable_files import write_bytes, write_json
from minigpt4.inference.generation import answers, chat_prompt
from minigpt4.inference.named_models import load
from minigpt4.metrics import composed
from minigpt4.metrics.failures import failure_rate
from minigpt4.modeling_minigpt4.parts import language_model
from minigpt4.training.run import cache_features, train, versions

from ..processing.collator import IGNORE, MiniGPT4DataCollator
from ..processing.data.samples import clean_caption
from ..processing.data.scenes import ARTWORK_LICENSE, DETAIL_INSTRUCTIONS, scenes
from ..processing.image_processing_minigpt4 import load_image
from .endpoint import Endpoint
from .filter import filter_texts
from .fix import fix
from .generate import Describer, generate
from .publish import publish
from .sample import read_picture, sample
from .store import Store, now
from .verify import DecisionsFile

STAGE1 = "outputs/quickstart/stage1/model"
COUNT, SCENE_SEED = 80, 1001  # the quickstart uses other seeds
HELD_OUT, LONGEST = 40, 120  # scenes and tokens of the measure before and after
MIN_WORDS = 5  # stage 1's captions are short
LIKELIER = 1.6  # nats per token: what is said of other pictures stays below (98%), what is said of their own above (90%)
STAGE2_STEPS, STAGE2_BATCH = 60, 8
FIXER = "SmolLM2-135M-Instruct"


def demo(output, model=STAGE1, count=COUNT, seed=0):
    """Runs everything; returns the summary, which is also written to `output`/summary.json.

    Args:
        output: folder for pictures/, curation.sqlite, decisions.jsonl, set/, stage2/ and summary.json.
        model: the stage-1 model, a light repository as the quickstart writes it.

    Raises:
        ValueError: no such model.
    """
    output, started, seconds = Path(output), time.monotonic(), {}
    if not (Path(model) / "config.json").is_file():
        raise ValueError(f"{model}: no model there; `minigpt4 quickstart` trains it, or name another one with --model")
    _draw(output / "pictures", count)
    looks, processor = load(model)
    looks.set_attn_implementation("eager")
    with Store(output / "curation.sqlite", create=True) as store:

        def step(name, run):
            begun = time.monotonic()
            print(report := run())
            seconds[name] = round(time.monotonic() - begun, 1)
            return report

        step("sample", lambda: sample(store, output / "pictures", count, seed))
        describer = Describer(looks, processor, "quickstart's stage 1", form="caption", max_new_tokens=40)
        step("generate", lambda: generate(store, describer, 20, seed))
        step("fix", lambda: _fix(store, output / FIXER))
        step("filter", lambda: filter_texts(store, min_words=MIN_WORDS))
        step("verify", lambda: _decide(store, looks, processor, output / "decisions.jsonl"))
        told = {"name": "Composed scenes, curated by minigpt4", "license": "cc-by-sa-4.0", "credit": f"{ARTWORK_LICENSE}."}
        published = step("publish", lambda: publish(store, output / "set", **told))
        counts = _counts(store)
    held = _Held(looks, processor, seed)
    before = held.measure(looks, processor)
    begun = time.monotonic()
    trained, processor = _stage2(output, model)
    seconds["stage 2"] = round(time.monotonic() - begun, 1)
    summary = {
        "pictures": count,
        **counts,
        "published": published.done,
        "survived": round(published.done / count, 3),
        "before_stage2": before,
        "after_stage2": held.measure(trained, processor),
        "n_held_out": HELD_OUT,
        "seed": seed,
        "seconds": {**seconds, "all": round(time.monotonic() - started, 1)},
        "versions": versions(),
    }
    write_json(output / "summary.json", summary)
    return summary


def _draw(folder, count):
    """Writes composed scenes as files; existing ones are kept."""
    missing = [i for i in range(count) if not (folder / f"{i:05}.png").is_file()]
    if missing:
        rows = scenes(count, SCENE_SEED)
        folder.mkdir(parents=True, exist_ok=True)
        for i in missing:
            rows[i]["image"].save(folder / f"{i:05}.png")


def _fix(store, folder):
    """Makes `folder` a link to the model, whose folder in the cache has a number as its name."""
    if not store.pending_count("fix"):
        return "fix: nothing left to do"
    folder.unlink(missing_ok=True)
    folder.symlink_to(language_model().absolute())
    with served(folder.absolute()) as url:
        return fix(store, Endpoint(str(folder.absolute()), url, key_variable="", concurrency=2, timeout=600), temperature=0)


@contextlib.contextmanager
def served(folder):
    """The URL of a `transformers serve` for a model folder, on a free port of this machine.

    Raises:
        OSError: it ended before it was ready.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--log-level", "error"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            if server.poll() is not None:
                reason = (server.stderr.read().strip().splitlines() or ["no reason given"])[-1]
                raise OSError(f"`transformers serve` ended before it was ready ({reason})")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _decide(store, model, processor, path):
    """Writes the decisions file and reads it, as if a person had written it."""
    rows = store.rows(
        "SELECT c.picture, c.path, c.text, answers.first FROM captions AS c JOIN answers USING (picture)"
        " WHERE c.filtered AND c.rule IS NULL AND c.decision IS NULL ORDER BY c.picture"
    )
    if rows:
        pictures = [{"image": load_image(read_picture(store, row))} for row in rows]
        features = cache_features(model, processor, pictures)[:, 0]
        lines = []
        for i, row in enumerate(rows):
            others = features[[(i + shift) % len(rows) for shift in (1, 2, 3)]]
            seen = [s for s in _said(row) if likelier(model, processor, s, features[i], others) >= LIKELIER]
            text = " ".join(seen)
            decision = "reject" if not seen else "accept" if text == " ".join(row["text"].split()) else "edit"
            line = {"picture": row["picture"], "decision": decision, "text": text, "reviewer": "rule", "time": now()}
            lines.append(json.dumps(line) + "\n")
        write_bytes(path, "".join(lines).encode())
    return DecisionsFile(path).load(store)


def _said(row):
    """Sentences that a reviewer may keep: the first answer, a line of stage 1, as one; then the fixed text's; none twice."""
    first = row["first"].strip().rstrip(".")
    found = [f"{first[:1].upper()}{first[1:]}.", *sentences(row["text"])] if first else sentences(row["text"])
    if any(first.lower() in sentence.lower() for sentence in found[1:]):
        del found[0]
    return list(dict.fromkeys(found))


def sentences(text):
    """A text's sentences, each with its end."""
    return [" ".join(part.split()) for part in re.findall(r"[^.!?]+[.!?]+[\"')\]]*", text)]


@torch.inference_mode()
def likelier(model, processor, text, own, others):
    """How much likelier a text is with its image than with others, in nats per token, in stage 1's form.

    Args:
        own: [Q, C], the frozen vision part's output for its picture. others: [N, Q, C].
    """
    examples = [{"vision_features": features, "text": clean_caption(text)} for features in (own, *others)]
    batch = MiniGPT4DataCollator(processor)(examples)
    labels = batch.pop("labels")
    logits = model(**{name: values.to(model.device) for name, values in batch.items()}).logits[:, :-1].float()
    told = labels[:, 1:] != IGNORE
    chosen = logits.log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None].to(logits.device))[..., 0].cpu()
    mean = (chosen * told).sum(1) / told.sum(1)
    return (mean[0] - mean[1:].mean()).item()


def _counts(store):
    one = store.value
    return {
        "fixed": one("SELECT COUNT(*) FROM fixes WHERE problem IS NULL"),
        "originals_kept": one("SELECT COUNT(*) FROM fixes WHERE problem IS NOT NULL"),
        "rejected_by_rule": {
            row["rule"]: row["n"]
            for row in store.rows("SELECT rule, COUNT(*) AS n FROM verdicts WHERE rule IS NOT NULL GROUP BY rule")
        },
        "decided": {
            row["decision"]: row["n"]
            for row in store.rows("SELECT decision, COUNT(*) AS n FROM decisions GROUP BY decision")
        },
    }


def _stage2(output, stage1):
    """Stage 2 on the published set, starting from the stage-1 model."""
    recipe = load_recipe("stage2-embedded")
    recipe.output = str(output / "stage2")
    recipe.model.projection = str(stage1)
    recipe.data.path = str(output / "set")
    changes = {"steps": STAGE2_STEPS, "batch_size": STAGE2_BATCH, "learning_rate": 5e-3, "warmup_steps": 10}
    recipe.train = dataclasses.replace(recipe.train, **changes)
    model, processor, _ = train(recipe)
    return model, processor


class _Held:
    """Held-out scenes, and the paper's four instructions about them."""

    def __init__(self, model, processor, seed):
        pictures = scenes(HELD_OUT, seed, "test")
        columns = pictures.with_format(None)[:]
        self.rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        self.features = cache_features(model, processor, pictures)[:, 0]

    def measure(self, model, processor):
        """Share of answers that fail, and of the scenes' objects that they name."""
        asked = [DETAIL_INSTRUCTIONS[i % len(DETAIL_INSTRUCTIONS)] for i in range(HELD_OUT)]
        prompts = [chat_prompt(processor, instruction) for instruction in asked]
        said = answers(model, processor, prompts, self.features, max_new_tokens=LONGEST, desc="held-out scenes")
        return {
            "failures": round(failure_rate(said), 3),
            "objects_named": round(composed.object_recall(self.rows, said), 3),
            "examples": said[:3],
        }
