"""The paper's ablations in miniature: each is trained like the default and asked about the same held-out scenes.

    frozen features of all scenes, once -> stage 1 -> questions -> stage 2 -> the same questions        for every row

A row of `ABLATIONS` differs from the default only as stated there; steps, data, seed and decoding are the same. Each is a
recipe that `train` runs. A folder contains

    settings.json                            the settings of all rows
    ROW/stage1, ROW/stage2                   the output of training, and said.json: the model's answers afterwards
    results.json, table.md, ablations.png    made of these files, after each row

and existing parts are not repeated, so a killed run continues where it was.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import Blip2QFormerConfig, SiglipVisionConfig

from ..configuration.recipe import load_recipe
from ..durable_files import write_bytes, write_json
from ..hub.export import export
from ..metrics import composed
from ..metrics.statistics import difference, measured
from ..modeling_minigpt4.embedded import load_embedded
from ..modeling_minigpt4.parts import BASE_PARTS
from ..processing.data.datasets import PictureTexts, training_data
from ..processing.data.scenes import scenes
from ..training.run import cache_features, load_model, train, versions
from . import report
from .held_out_scenes import HeldOut

RECIPE_MINUTES = 60  # approximate time of the whole set on two CPU cores
STAGES = ("stage1", "stage2")
STEPS = [500, 250]  # of the two stages, in that time
SCENES = 3000
# Of stage 1's learning rate, as in the paper (3e-5 and 1e-4). At the recipe's own, which is higher than stage 1's, a stage 2
# as short as this one ends before it has learned again what it unlearned.
RATE = 8e-3  # of stage 1
STAGE2_RATE = 0.3
ANSWER_TOKENS = 32  # the longest description has fewer
PRETRAINING = "qformer-pretraining"
QFORMER_RATE = 1e-3  # the learning rate wherever a Q-Former is trained; a single layer's, eight times that, is too high


def random_tower(vision_config, patch_merge):
    """Fields of `MiniGPT4Config` for the embedded LLM behind any vision tower of `AutoModel`, with random weights."""
    language_model = {"language_model": BASE_PARTS["language_model"]}
    return {"vision_config": vision_config, "patch_merge": patch_merge, "base_parts": language_model}


# What is drawn at random for the bases of some rows. As many queries as the default has visual tokens; cross-attention in
# every other layer, as in BLIP-2.
QFORMER = {
    "qformer_config": Blip2QFormerConfig(
        hidden_size=384,
        num_hidden_layers=4,
        num_attention_heads=6,
        intermediate_size=1536,
        cross_attention_frequency=2,
    ),
    "num_query_tokens": 9,
}
SIGLIP = random_tower(
    SiglipVisionConfig(
        image_size=224,
        patch_size=32,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=768,
        vision_use_head=False,
    ),
    patch_merge=7,
)


@dataclass(frozen=True)
class Ablation:
    """A row: what the paper has, and how it differs from the default here.

    Args:
        title: what is different, for the table.
        paper: the paper's figures, {benchmark: value}.
        base: "embedded"; "qformer", with the pretrained Q-Former; "siglip", with random weights.
        model: fields of the recipe's model section.
        learning_rate: of stage 1, instead of its recipe's; stage 2 has `STAGE2_RATE` of it.
        share: percent of the default's stage 1 after which stage 2 begins.
    """

    title: str
    paper: dict = field(default_factory=dict)
    base: str = "embedded"
    model: dict = field(default_factory=dict)
    learning_rate: float | None = None
    share: int = 100


def _vqa(aok_vqa, gqa):
    return {"AOK-VQA": aok_vqa, "GQA": gqa}


COVERED = "captions covered"  # of 5; the paper's measure for the share of the data
ABLATIONS = {
    "default": Ablation("one linear layer, no Q-Former: the default, the paper's row without Q-Former", _vqa(56.9, 33.4)),
    "qformer": Ablation("a Q-Former, trained beforehand and frozen: the paper's model", _vqa(58.2, 32.2), base="qformer"),
    "qformer-tuned": Ablation(
        "the Q-Former tuned with the projection",
        _vqa(52.1, 28.0),
        base="qformer",
        model={"trained_parts": ["projection", "qformer"]},
        learning_rate=QFORMER_RATE,
    ),
    "three-layers": Ablation("three projection layers", _vqa(49.7, 31.0), model={"projection_layers": 3}),
    "lora": Ablation("LoRA on the LLM", _vqa(67.2, 43.5), model={"lora_rank": 64}),
    "random-tower": Ablation("a vision tower that knows nothing: SigLIP's form, random weights", base="siglip"),
    **{
        f"share-{share}": Ablation(f"{share}% of stage 1", {COVERED: covered}, share=share)
        for share, covered in ((10, 1.62), (30, 2.15), (50, 2.26))
    },
}
PAPER_WHOLE = {COVERED: 2.22}  # the default's, at 100% of stage 1


@dataclass(frozen=True)
class Settings:
    """The settings of all rows: steps of the stages, training scenes, held-out scenes, seed."""

    steps: list = field(default_factory=lambda: list(STEPS))
    scenes: int = SCENES
    held_out: int = composed.HELD_OUT
    seed: int = 0

    @classmethod
    def in_minutes(cls, minutes, seed=0):
        """Scaled to a time for the whole set on two CPU cores."""
        share = minutes / RECIPE_MINUTES
        steps = [max(10, round(steps * share)) for steps in STEPS]
        held_out = max(80, min(composed.HELD_OUT, round(composed.HELD_OUT * share)))  # asking also takes time
        return cls(steps, max(500, min(SCENES, round(SCENES * share))), held_out, seed)


def ablate(output, settings, only=()):
    """Trains and measures the rows; returns the content of results.json in `output`, with every finished row.

    Args:
        output: a folder, new or of an earlier run with the same settings.
        settings: `Settings`.
        only: names of rows in `ABLATIONS`; none is all of them.

    Raises:
        ValueError: an unknown name, or a folder with other settings.
    """
    if unknown := sorted({*only} - {*ABLATIONS}):
        raise ValueError(f"no row is called {unknown[0]!r}; the rows are {', '.join(ABLATIONS)}")
    bench = Bench(Path(output), settings)
    names = [name for name in ABLATIONS if name in (only or ABLATIONS)]
    for i, name in enumerate(names):
        print(f"{i + 1}/{len(names)}  {name}: {ABLATIONS[name].title}")
        bench.measure(name)
        results = bench.results()
        write_json(bench.output / "results.json", results)
        write_bytes(bench.output / "table.md", table(results).encode())
        report.ablations(bench.output / "ablations.png", results["rows"])
    return results


class Bench:
    """The scenes that all rows learn from and are measured on, and the folder that the rows are in."""

    def __init__(self, output, settings):
        self.output, self.settings = output, settings
        self._keep_settings()
        self.held_out = HeldOut(scenes(settings.held_out, settings.seed, "test"))
        recipe = self.recipe("default", 1)
        self.pictures = scenes(recipe.data.scenes, recipe.data.scene_seed)
        self.held_out.assert_disjoint(self.pictures)
        self._features = {}

    def _keep_settings(self):
        path, ours = self.output / "settings.json", asdict(self.settings)
        if not path.is_file():
            write_json(path, ours)
        if (theirs := json.loads(path.read_text("utf-8"))) != ours:
            raise ValueError(f"{self.output}: has ablations with {theirs}, these have {ours}; choose another --output")

    # Recipes

    def recipe(self, name, stage):
        """The `Recipe` of a row's stage; a share of stage 1 has none of its own but the default's."""
        ablation = ABLATIONS[name]
        recipe = self._recipe(stage, self.output / name / f"stage{stage}", ablation.learning_rate)
        recipe.model.base = self._base(ablation.base)
        for key, value in ablation.model.items():
            setattr(recipe.model, key, value)
        if stage == 2:
            recipe.model.projection = str(self._after_stage1(name))
        elif name == "default":
            recipe.train.keep_steps = [self._steps_of(share) for share in sorted(_shares())]
        return recipe

    def _recipe(self, stage, output, learning_rate=None):
        recipe, steps = load_recipe(f"stage{stage}-embedded"), self.settings.steps[stage - 1]
        recipe.output = str(output)
        recipe.data.scenes, recipe.data.scene_seed = self.settings.scenes, self.settings.seed
        train = recipe.train
        train.steps, train.seed, train.warmup_steps = steps, self.settings.seed, min(train.warmup_steps, steps // 4)
        # Plain AdamW for all rows: standardized inputs are for a single layer over frozen features, which not every row has.
        train.standardize, train.adam_beta2, train.learning_rate = False, 0.999, learning_rate or RATE
        if stage == 2:
            train.learning_rate *= STAGE2_RATE
        return recipe

    def _base(self, name):
        """What the recipe's `model.base` says; a base of random weights is drawn when it is first asked for."""
        if name == "siglip":
            return self._drawn("siglip", SIGLIP)
        return str(self.output / PRETRAINING / "model") if name == "qformer" else name

    def _drawn(self, name, fields):
        """The folder of the embedded default with other config fields, as a light model with random weights."""
        folder = self.output / "bases" / name
        if not folder.is_dir():
            torch.manual_seed(self.settings.seed)
            export(*load_embedded(projection=None, **fields), folder, light=True)
        return str(folder)

    def _steps_of(self, share):
        return max(1, round(self.settings.steps[0] * share / 100))

    def _after_stage1(self, name):
        """The folder of the model that a row's stage 2 begins with."""
        share = ABLATIONS[name].share
        kept = f"step-{self._steps_of(share)}" if share < 100 else "model"
        return self.output / ("default" if share < 100 else name) / "stage1" / kept

    # Training and asking

    def measure(self, name):
        """Trains both stages of a row and asks after each, as far as it has not been done."""
        if all(self._said_path(name, stage).is_file() for stage in (1, 2)):
            return
        if ABLATIONS[name].base == "qformer":
            self._pretrain_qformer()
        at_hand = None  # (model, processor), trained up to here
        for stage in (1, 2):
            if stage == 2 or ABLATIONS[name].share == 100:
                at_hand = self._trained(self.recipe(name, stage), lambda: self._seen(name), at_hand=at_hand)
            elif not self._after_stage1(name).is_dir():
                self._trained(self.recipe("default", 1), lambda: self._seen("default"))
            if not self._said_path(name, stage).is_file():
                at_hand = at_hand or load_model(self._section_after(name, stage))
                self._ask(name, stage, *at_hand)

    def _said_path(self, name, stage):
        return self.output / name / f"stage{stage}" / "said.json"

    def _trained(self, recipe, seen, pictures=None, at_hand=None):
        """(model, processor) of a recipe that is run now; None if it has been.

        Args:
            seen: gives the features of the pictures, those of all rows unless it is told which.
            at_hand: (model, processor) to train, if they are loaded.
        """
        if (Path(recipe.output) / "summary.json").is_file():
            return None
        texts = training_data(recipe.data, recipe.stage).texts
        data = PictureTexts(pictures or self.pictures, texts, seen()[0])
        model, processor, _ = train(recipe, *(at_hand or (None, None)), data)
        return model, processor

    def _pretrain_qformer(self):
        """The Q-Former of two rows: on the captions of other scenes, together with a projection that is thrown away.

        No small one that has been trained comes with pip; BLIP-2's own was trained on pictures with texts, too.
        """
        recipe = self._recipe(1, self.output / PRETRAINING, QFORMER_RATE)
        if (self.output / PRETRAINING / "summary.json").is_file():
            return
        recipe.model.base = self._drawn("qformer", QFORMER)
        recipe.model.trained_parts = ["projection", "qformer"]
        recipe.data.scene_seed = self.settings.seed + 1
        print(f"     {PRETRAINING}: the Q-Former learns from {recipe.data.scenes} other scenes")
        pictures = scenes(recipe.data.scenes, recipe.data.scene_seed)
        self.held_out.assert_disjoint(pictures)
        self._trained(recipe, lambda: [cache_features(*load_model(recipe.model), pictures)], pictures)

    def _seen(self, name):
        """(features of the scenes to learn from, of those held out) as a row's frozen vision part gives them."""
        ablation = ABLATIONS[name]
        tuned = "qformer" in ablation.model.get("trained_parts", ())
        key = "embedded" if tuned else ablation.base  # before a Q-Former that is trained, the tower's are kept
        if key not in self._features:
            model, processor = load_model(self.recipe(name, 1).model)
            held_out = cache_features(model, processor, self.held_out.pictures)[:, 0]
            self._features[key] = cache_features(model, processor, self.pictures), held_out
        return self._features[key]

    def _section_after(self, name, stage):
        """The recipe's model section that loads a row's model as it is after a stage."""
        section = self.recipe(name, 2).model  # begins where stage 1 ended
        if stage == 2:
            section.projection = str(self.output / name / "stage2" / "model")
        return section

    def _ask(self, name, stage, model, processor):
        """Writes what the model of a row says after a stage."""
        model.eval()
        self.held_out.features = self._seen(name)[1]
        captions = self.held_out.captions(model, processor)
        descriptions, answers = self.held_out.conversation(model, processor, ANSWER_TOKENS)
        choices = self.held_out.choices(model, processor)
        said = {"captions": captions, "descriptions": descriptions, "answers": answers, "choices": choices}
        write_json(self._said_path(name, stage), said)

    # Figures

    def results(self):
        """The content of results.json: every finished row, with the settings and versions."""
        done = [name for name in ABLATIONS if all(self._said_path(name, stage).is_file() for stage in (1, 2))]
        return {
            "settings": asdict(self.settings),
            "versions": versions(),
            "n": {"scenes": len(self.held_out.rows), "questions": len(self.held_out.questions)},
            "questions_right_blind": _blind(self.held_out.questions),
            PRETRAINING: self._training(self.output / PRETRAINING),
            "rows": {name: self._row(name) for name in done},
        }

    def _row(self, name):
        ablation = ABLATIONS[name]
        row = {"title": ablation.title, "paper": dict(ablation.paper), "share": ablation.share}
        if name == "default":
            row["paper"] |= PAPER_WHOLE
        for stage in (1, 2):
            sums = self._sums(name, stage)
            row[f"stage{stage}"] = {figure: measured(*of) for figure, of in sums.items()}
            if name != "default" and self._said_path("default", stage).is_file():
                default = self._sums("default", stage)
                row[f"stage{stage}_minus_default"] = {
                    figure: difference(rows, default[figure][0], pictures) for figure, (rows, pictures) in sums.items()
                }
        row["training"] = {stage: self._training(self.output / name / stage) for stage in STAGES}
        row["recipes"] = {f"stage{stage}": asdict(self.recipe(name, stage)) for stage in (1, 2)}
        if ablation.share < 100:
            row["training"]["stage1"] = {"steps": self._steps_of(ablation.share), "of": "default"}
            row["recipes"]["stage1"] = asdict(self.recipe("default", 1))
        return row

    def _sums(self, name, stage):
        """{figure: (rows of hits and tries, the scene of each)}."""
        said, rows = json.loads(self._said_path(name, stage).read_text("utf-8")), self.held_out.rows
        asked = self.held_out.questions
        right = [[composed.is_right(question, text), 1] for question, text in zip(asked, said["answers"], strict=True)]
        captions = [composed.caption_hits(row, text) for row, text in zip(rows, said["captions"], strict=True)]
        named = [composed.named_objects(row, text) for row, text in zip(rows, said["descriptions"], strict=True)]
        places = list(range(len(rows)))
        scene = [question["scene"] for question in asked]
        return {
            "choices_right": ([[choice == 0, 1] for choice in said["choices"]], scene),
            "questions_right": (right, scene),
            "description_recall": (named, places),
            "caption_recall": ([hits["object_recall"] for hits in captions], places),
            "caption_exact": ([hits["caption_exact"] for hits in captions], places),
        }

    @staticmethod
    def _training(folder):
        path = folder / "summary.json"
        if not path.is_file():
            return None
        summary = json.loads(path.read_text("utf-8"))
        kept = ("steps", "global_batch", "first_loss", "seconds", "seconds_per_step", "versions")
        last = [loss for step, loss in summary["losses"] if step > 0.8 * summary["steps"]]
        return {**{key: summary[key] for key in kept}, "end_loss": sum(last) / len(last)}  # of the last fifth


_NOTE = """\
After stage 1 ({} steps) -> after stage 2 ({} steps). Loss: mean over the last fifth of a training. All else in percent, with
the 95% bootstrap interval over {scenes} held-out scenes and {questions} questions. One of four: the true answer is likelier
than three others, as AOK-VQA asks; chance is 25%. Questions right: answered freely; {blind:.1f}% are right without looking,
with the commonest answer to each kind. A difference whose interval holds 0 is noise. One training seed: its noise is in no
interval.
"""


def table(results):
    """`Bench.results` as a Markdown table, after stage 1 and after stage 2, with the 95% interval of the latter."""
    figures = {
        "one of four": "choices_right",
        "questions right": "questions_right",
        "objects in descriptions": "description_recall",
        "objects in captions": "caption_recall",
        "captions exact": "caption_exact",
    }
    head = ["", "paper", "loss", *figures, "one of four, beside the default"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in results["rows"].values():
        cells = [f"{_percent(row['stage1'][key])} -> {_with_interval(row['stage2'][key])}" for key in figures.values()]
        beside = row.get("stage2_minus_default")
        paper = ", ".join(f"{benchmark} {value}" for benchmark, value in row["paper"].items())
        losses = " -> ".join(f"{of['end_loss']:.2f}" for of in row["training"].values() if "end_loss" in of)
        difference = _difference(beside["choices_right"]) if beside else ""
        lines.append(_line([row["title"], paper, losses, *cells, difference]))
    n, steps = results["n"], results["settings"]["steps"]
    said = _NOTE.format(*steps, **n, blind=100 * results["questions_right_blind"])
    return "\n".join(lines) + f"\n\n{said}"


def _blind(questions):
    """Share of the questions that the commonest answer to each kind of question gets right."""
    answers = {}
    for question in questions:
        answers.setdefault(question["question"], Counter())[question["answer"][0]] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(questions)


def _shares():
    return {ablation.share for ablation in ABLATIONS.values()} - {100}


def _line(cells):
    return f"| {' | '.join(cells)} |"


def _percent(figure):
    return f"{100 * figure['value']:.1f}"


def _with_interval(figure):
    low, high = figure["interval"]
    return f"{_percent(figure)} ({100 * low:.0f} to {100 * high:.0f})"


def _difference(figure):
    low, high = figure["interval"]
    noise = ", noise" if low <= 0 <= high else ""
    return f"{100 * figure['value']:+.1f} ({100 * low:+.0f} to {100 * high:+.0f}{noise})"
