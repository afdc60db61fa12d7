"""How long both stages take on this machine, from a few of their real steps, and how many steps fit a budget."""

import dataclasses
import json
import time
from pathlib import Path
from statistics import mean

from ..durable_files import write_json
from ..processing.collator import MiniGPT4DataCollator
from ..processing.data.datasets import training_data
from ..training.frozen_llm import FrozenLLM

TIMED = 5  # steps of each stage that are timed, after one that warms up
ASKING = 1 / 3  # of a budget, at most, for asking about held-out scenes
FEWEST = 40  # held-out scenes: with fewer, a kind of question may be missing
TAIL = 20  # seconds for export, report and everything else at the end
SLACK = 1.1  # steps of a long run take longer than a few: checkpoints, data, a warm machine
PLAN = "plan.json"  # an unfinished run keeps it, however fast the machine is by then


class Budget:
    """What the parts of a run cost here.

    Args:
        model, processor: what will be trained, on its device.
        features: [images, Q, C], the frozen vision part's output of some images, for the steps that are timed.
        looking: seconds in which the vision part sees an image.
        answering: seconds for all that is asked besides, about every held-out scene.
        held_out: number of held-out scenes.
    """

    def __init__(self, model, processor, features, looking, answering, held_out):
        self.model, self.processor, self.features = model, processor, features
        self.looking, self.answering, self.held_out = looking, answering, held_out

    def fit(self, recipes, output, seconds=None):
        """Scales the recipes' steps and scenes, in place, to `seconds` (None: not at all), and says what to expect.

        Returns the number of held-out scenes to ask about: all of them, or fewer if a short budget would go into asking.

        Args:
            recipes: the recipes of stage 1 and 2.
            output: folder that keeps the plan, so that an unfinished run goes on with its own.
        """
        output = Path(output)
        kept = _kept_plan(output, seconds, recipes)
        if kept is None:
            per_step = [self.step_seconds(recipe) for recipe in recipes]
            training = SLACK * sum(recipe.train.steps * each for recipe, each in zip(recipes, per_step, strict=True))
            training += recipes[0].data.scenes * self.looking
            whole = training + self.answering + TAIL
            print(f"     the recipes take about {whole / 60:.0f} min on this machine from here on")
            share, held_out = 1.0, self.held_out
            if seconds is not None:
                affordable = round(held_out * ASKING * seconds / self.answering)
                held_out = max(min(FEWEST, held_out), min(held_out, affordable))
                share = (seconds - self.answering * held_out / self.held_out - TAIL) / training
                _scale(recipes, share)
                counts = f"{_counts(recipes)}, {held_out} held-out scenes"
                print(f"     {seconds / 60:.1f} min are left: {counts}; {_expectation(share)}")
            kept = {"share": share, "steps": [recipe.train.steps for recipe in recipes], "scenes": recipes[0].data.scenes}
            kept["held_out"] = held_out
            output.mkdir(parents=True, exist_ok=True)
            write_json(output / PLAN, {**kept, "budgeted": seconds is not None, "seed": recipes[0].train.seed})
        for recipe, steps in zip(recipes, kept["steps"], strict=True):
            recipe.train.steps = steps
            recipe.train.warmup_steps = min(recipe.train.warmup_steps, steps // 4)
            recipe.data.scenes = kept["scenes"]
        return kept.get("held_out", self.held_out)  # plans written before 2026-12-01 do not have it

    def step_seconds(self, recipe):
        """Seconds of a real training step of a recipe: forward, loss and backward of batches of its own texts, from short
        to long, for the Trainer makes batches of like length."""
        section = dataclasses.replace(recipe.data, scenes=len(self.features))
        collator = MiniGPT4DataCollator(self.processor, max_answer_tokens=recipe.train.max_answer_tokens)
        texts = sorted(training_data(section, recipe.stage).texts, key=lambda text: len(collator.encode(text)[0]))
        size, seconds = min(recipe.train.batch_size, len(texts)), []
        starts = [round((len(texts) - size) * i / (TIMED - 1)) for i in range(TIMED)]
        frozen_llm = FrozenLLM(self.model, recipe.train.tokens_at_once, recipe.train.float8)
        self.model.train()
        for start in (starts[-1], *starts):
            seen = [{**text, "vision_features": self.features[text["picture"]]} for text in texts[start : start + size]]
            inputs = {name: tensor.to(self.model.device) for name, tensor in collator(seen).items()}
            started = time.monotonic()
            with frozen_llm:
                self.model(**inputs).loss.backward()
            seconds.append(time.monotonic() - started)
            self.model.zero_grad()
        self.model.eval()
        return mean(seconds[1:])


def _kept_plan(output, seconds, recipes):
    """The plan of an unfinished run in the folder, with a budget or without, of the same seed; None if there is none."""
    if not (output / PLAN).is_file() or (output / "summary.json").is_file():
        return None
    plan = json.loads((output / PLAN).read_text("utf-8"))
    same = plan["budgeted"] == (seconds is not None) and plan["seed"] == recipes[0].train.seed
    return plan if same else None


def _scale(recipes, share):
    for recipe in recipes:
        recipe.train.steps = max(20, round(recipe.train.steps * share))
        recipe.data.scenes = max(500, min(recipe.data.scenes, round(recipe.data.scenes * share)))


def _counts(recipes):
    first, second = recipes
    return f"{first.train.steps} + {second.train.steps} steps on {first.data.scenes} scenes"


def _expectation(share):
    if share >= 0.9:
        return "as many as the recipes have, or more"
    if share >= 0.4:
        return "fewer than the recipes have; expect a model that misses some of the objects"
    return "too few for a good model: expect sentences of the right form, and wrong names in most of them"
