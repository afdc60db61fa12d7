"""Training recipes: YAML files that are checked against the fields below, each with its description.

A recipe has four sections, `model`, `data`, `train` and `output`; fields that it leaves out come from the recipe that it
`extends`, or else from the defaults below. On the command line, `--set train.steps=100 data.path=shards` changes single
fields. An unknown key is an error that suggests the nearest known one.
"""

import difflib
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import yaml

from minigpt4.durable_files import write_bytes

RECIPES = Path(__file__).with_name("recipes")

# The smallest values that make sense.
_AT_LEAST = {
    **dict.fromkeys(("data.scenes", "data.views", "data.shuffle_buffer"), 1),
    **dict.fromkeys(("data.held_out", "data.max_dropped_share", "data.image_size", "data.validation_share"), 0),
    **dict.fromkeys(("data.detailed_answers", "data.short_answers", "data.plain_captions", "train.warmup_steps"), 0),
    **dict.fromkeys(("data.joined_captions", "data.varied_captions", "data.questions", "data.conversations"), 0),
    **dict.fromkeys(("train.steps", "train.batch_size", "train.accumulation", "train.max_answer_tokens"), 1),
    **dict.fromkeys(("train.max_batch_size", "train.save_total_limit"), 1),
    "train.processes": 0,
    **dict.fromkeys(("train.weight_decay", "train.feature_dropout", "train.min_learning_rate", "train.seed"), 0),
    **dict.fromkeys(("train.save_steps", "train.eval_steps", "data.validation_limit", "model.projection_layers"), 1),
    **dict.fromkeys(("train.global_batch", "train.sample_steps", "train.workers", "train.tokens_at_once"), 0),
    **dict.fromkeys(("model.lora_rank", "model.lora_alpha", "train.early_stopping"), 0),
    "train.adam_beta2": 0,
    "train.learning_rate": 1e-12,
}
# Fields of `train` that may change when a run resumes. The examples per step may not: the checkpoint depends on them.
_OF_THE_MACHINE = (
    *("batch_size", "accumulation", "global_batch", "max_batch_size", "processes", "workers", "tokens_at_once"),
    *("gradient_checkpointing", "compile", "save_steps", "save_total_limit", "report_to"),
)
_AT_MOST = {"data.validation_share": 0.5}
_ONE_OF = {
    "model.patch_fit": ("pad", "pool"),
    "model.load_in": ("", "4bit", "8bit"),
    "train.metric": ("loss", "cider", "bleu4", "rouge_l"),
}


@dataclass
class ModelSection:
    """Which model is trained, and how its projection is initialised."""

    base: str = "embedded"  # "embedded", or a folder or Hub id of a MiniGPT-4; ignored if `text` is given
    vision: str = ""  # from parts: a BLIP-2 or any vision tower, as ID or ID@REVISION or a folder
    text: str = ""  # from parts: any causal LLM
    qformer: bool = True  # from parts: take the Q-Former of the vision repository; false: the variant without one
    template: str = ""  # from parts: "vicuna", "vicuna-v1", "llama-2", "chatml" or a Jinja file; "": the LLM's own
    patch_merge: str | int = ""  # from parts, no Q-Former: "2x2" or "4x4" patches per token, or 4 in a row; "": by the tower
    patch_fit: str = "pad"  # from parts: a grid that does not divide is padded with empty patches, or averaged down: "pool"
    vision_feature_layer: int = -1  # from parts, no Q-Former: -1 is the tower's output, -2 the input of its last layer
    image_token: str = ""  # from parts: the LLM's token that represents an image; "": its <unk> or a reserved one
    projection: str = "fresh"  # "fresh": random initialisation; "base": the base's own; or the folder of an earlier stage
    projection_layers: int = 1  # from parts or "embedded": the paper's ablation has three (GELU between, widths of the LLM)
    trained_parts: list[str] = field(default_factory=lambda: ["projection"])  # also "qformer" in an ablation
    lora_rank: int = 0  # rank of LoRA on the LLM's attention, through peft (an ablation of the paper); 0: none
    lora_alpha: int = 16  # its updates are scaled by alpha / rank
    lora_targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])  # linear layers of the LLM by name
    load_in: str = ""  # "4bit" or "8bit": quantize the frozen parts with bitsandbytes; with LoRA this is QLoRA
    dtype: str = "auto"  # of the frozen parts: "bfloat16", ...; "auto": as stored, or a fast one on this device
    attn_implementation: str = "sdpa"  # "eager" is faster for short sequences on a CPU


@dataclass
class SourceSection:
    """One source of images with texts. Its format is detected: see processing/data/sources.py."""

    path: str | list = ""  # a file, folder, glob, hf://, https:// or s3:// address, a list of those, or a Hub data set
    subset: str = ""  # for a Hub data set with several
    split: str = "train"  # for a Hub or saved data set
    image_column: str = ""  # default: the first usual name found: image, jpg, file_name, ...
    text_column: str = ""  # likewise: captions, text, caption, ...; or messages, with an images column
    instruction_column: str = ""  # stage 2: by default, one of the paper's four instructions at random
    weight: float = 1.0  # with several sources: how often this one is sampled


@dataclass
class DataSection(SourceSection):
    """The training data. An empty path means composed scenes; the stage determines the texts."""

    sources: list[SourceSection] = field(default_factory=list)  # instead of path: a weighted mixture
    streaming: bool = False  # endless streaming, for large or remote data; false: scan all data first
    shuffle_buffer: int = 1000  # streaming: encoded samples that each loader worker keeps and shuffles
    random_crop: bool = (
        False  # 50 to 100% of an image's area, 3:4 to 4:3, as in the original training; not with train.cache_features
    )
    image_size: int = 0  # scale larger JPEGs down to this many pixels while decoding (more for crops); 0: the model's
    max_dropped_share: float = 0.01  # broken samples are skipped and counted; a larger share stops the run
    held_out: int = 0  # images kept out of training, to show answers before and after
    validation: str | list = ""  # images with texts, as in `path` and with its columns: their loss is logged
    validation_share: float = 0.0  # or a share of the training images, kept out of training
    validation_limit: int = 200  # the most images to use of either
    holdout_share: float = 0.0  # tar shards: share kept out of training, by key; for `minigpt4 evaluate --holdout-share`
    scenes: int = 8000  # scenes: number of images to compose
    scene_seed: int = 0  # scenes: random seed
    views: int = 1  # cached views of an image: as it is, mirrored, then random crops, every other mirrored
    detailed_answers: int = 4  # stage 2: examples per image with one of the four instructions
    short_answers: int = 0  # stage 2: examples per image that ask for a short caption
    plain_captions: int = 0  # stage 2: captions without a prompt, as in stage 1, so it is not forgotten
    joined_captions: int = 3  # stage 2: without `detail`, an answer joins this many captions, one sentence each; 0: none
    varied_captions: int = 0  # replace captions made from a label, a list or a detail by this many wordings
    questions: int = 0  # stage 2: short questions per image: what is there, is there a ..., how many, what color
    conversations: float = 0.0  # stage 2: share of the images with a conversation of several turns
    clean_captions: bool = True  # plain captions: the original's clean-up (lower case, no punctuation, at most 50 words)


@dataclass
class TrainSection:
    """How the projection is trained; the learning rate follows the original's schedule (see trainer.learning_rate)."""

    steps: int = 400
    batch_size: int = 16  # examples at a time on each device; ignored if global_batch is given
    accumulation: int = 1  # batches whose gradients are added up for one step; ignored if global_batch is given
    global_batch: int = 0  # examples per step, over all processes; 0: batch_size x accumulation x processes
    max_batch_size: int = 64  # with global_batch: the most examples at a time on a device; the rest is accumulated
    processes: int = 0  # the most started processes that take part; 0: all of them
    learning_rate: float = 1e-2  # after warm-up
    min_learning_rate: float = 0.0  # at the end
    warmup_learning_rate: float = 0.0  # at the start
    warmup_steps: int = 20
    weight_decay: float = 0.0  # on weights, never on biases
    adam_beta2: float = 0.999  # AdamW's decay of squared gradients; 0.95 for short runs
    standardize: bool = False  # train the projection as if its cached inputs had mean 0 and variance 1: see standardized.py
    feature_dropout: float = 0.0  # share of cached vision features set to zero in training
    max_answer_tokens: int = 32  # answers are cut to this; in the original, 32 in stage 1 and 160 in stage 2
    cache_features: bool = True  # run the frozen vision parts once per image, not once per step
    save_steps: int = 100  # steps between checkpoints; a run resumes from the last one
    save_total_limit: int = 1  # number of latest checkpoints to keep during the run
    eval_steps: int = 100  # with validation data: steps between evaluations; the best checkpoint is the result
    metric: str = "loss"  # the best has the lowest "loss", or the highest "cider", "bleu4" or "rouge_l" of greedy answers
    early_stopping: int = 0  # stop after this many evaluations without improvement; 0: never
    keep_steps: list[int] = field(default_factory=list)  # also keep the model after these steps, in OUTPUT/step-N
    sample_steps: int = 0  # steps between samples of the model's answers about a few fixed images; 0: never
    workers: int = 0  # additional processes per device that read and decode images
    tokens_at_once: int = 0  # through the frozen LLM; fewer need less memory; 0: 1024 on a CPU, else 4096
    float8: bool = False  # experimental, not run on a GPU yet: frozen linear layers in FP8 (Ada, Hopper; bf16)
    gradient_checkpointing: bool = False  # recompute the LLM's activations: less memory, a third slower
    compile: bool = False  # torch.compile: minutes at the start, for long runs on a GPU
    report_to: list[str] = field(default_factory=list)  # "tensorboard", "trackio", "wandb", if installed
    trackio_space: str = ""  # OWNER/NAME of a Space that trackio writes to and the model card links to; "": local
    check_first_loss: bool = True  # stop if the first loss suggests that the LLM's weights are broken
    seed: int = 0


@dataclass
class Recipe:
    """A whole run: `stage` 1 trains on captions without a prompt, 2 on answers in the LLM's own conversation format."""

    stage: int = 1
    output: str = "outputs/stage1"  # a light repository of the trained model, summary.json and checkpoints
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    train: TrainSection = field(default_factory=TrainSection)

    def save(self, path):
        """Writes `as_yaml()` to a file."""
        write_bytes(path, self.as_yaml().encode())

    def as_yaml(self):
        """Every field, including defaults."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


def load_recipe(path, settings=()):
    """Reads a recipe and applies "section.key=value" settings.

    Args:
        path: a YAML file, or the name of an included recipe such as "stage1-embedded".
        settings: strings in the form of `--set`; values are YAML.

    Raises:
        ValueError: a missing file, invalid YAML, an unknown key (with the nearest known one), a value of the wrong type.
    """
    values = _read(path)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: expected key=value, for example train.steps=100")
        _set(values, key.split("."), _parse(value, f"--set {setting}"), setting)
    recipe = _build(Recipe, values, str(path))
    if recipe.stage not in (1, 2):
        raise ValueError(f"{path}: stage is {recipe.stage}, expected 1 or 2")
    for setting in settings:
        if recipe.train.global_batch and setting.startswith(("train.batch_size=", "train.accumulation=")):
            raise ValueError(
                f"--set {setting}: is set by train.global_batch={recipe.train.global_batch} and the number of processes; "
                "set train.max_batch_size for fewer at a time, train.global_batch for another step, or to 0 to give both"
            )
    return recipe


def same_training(path, recipe):
    """Whether a recipe file describes the same training, except for the number of processes and memory settings."""
    try:
        other = load_recipe(path)
    except ValueError:  # written by another version
        return False
    machine = {name: getattr(recipe.train, name) for name in _OF_THE_MACHINE}
    return replace(other, train=replace(other.train, **machine)) == recipe


def _read(path, folder=None, depth=0):
    """A recipe's values merged over those of the recipe it extends. `folder`: where names are looked up first."""
    places = [Path(folder or "", path), Path(path), RECIPES / f"{path}.yaml"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise ValueError(f"{path}: no such recipe; expected a YAML file, or one of those that ship: {known}")
    if depth > 5:
        raise ValueError(f"{path}: extends itself, or is more than five recipes deep")
    values = _parse(found.read_text(encoding="utf-8"), str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: found {type(values).__name__}, expected keys such as stage, model, data, train")
    below = values.pop("extends", None)
    return values if below is None else _over(_read(below, found.parent, depth + 1), values)


def _over(below, values):
    """A nested dict with its values overridden by others."""
    both = {key: _over(below[key], value) for key, value in values.items() if isinstance(value, dict) and key in below}
    return {**below, **values, **both}


def _parse(text, source):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not YAML ({str(error).splitlines()[0]})") from error


def _set(values, keys, value, setting):
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {setting}: {key} is a single value, not a section")
    values[keys[-1]] = value


def _build(cls, values, source, prefix=""):
    """A dataclass from a dict; every key must be a field, every value of the field's type."""
    types = get_type_hints(cls)
    built = {}
    for key, value in (values or {}).items():
        if key not in types:
            nearest = difflib.get_close_matches(str(key), types, n=1, cutoff=0.0)[0]
            raise ValueError(f"{source}: unknown key {prefix}{key}; did you mean {prefix}{nearest}?")
        if is_dataclass(types[key]):
            if not isinstance(value, dict):
                raise ValueError(
                    f"{source}: {key} is {value!r}, expected a section with keys such as {fields(types[key])[0].name}"
                )
            built[key] = _build(types[key], value, source, f"{key}.")
        elif types[key] == list[SourceSection]:
            if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
                raise ValueError(f"{source}: {prefix}{key} is {value!r}, expected a list of sections with a path each")
            built[key] = [_build(SourceSection, entry, source, f"{prefix}{key}.") for entry in value]
        else:
            built[key] = _as_type(value, types[key], f"{source}: {prefix}{key}")
            least = _AT_LEAST.get(prefix + key)
            if least is not None and built[key] < least:
                raise ValueError(f"{source}: {prefix}{key} is {value}, expected at least {least}")
            most = _AT_MOST.get(prefix + key)
            if most is not None and built[key] > most:
                raise ValueError(f"{source}: {prefix}{key} is {value}, expected at most {most}")
            choices = _ONE_OF.get(prefix + key, (value,))
            if value not in choices:
                raise ValueError(f"{source}: {prefix}{key} is {value!r}, expected {' or '.join(map(repr, choices))}")
    return cls(**built)


def _as_type(value, expected, where):
    if expected is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as a string
        except ValueError:
            pass
    if get_origin(expected) is list:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}, expected a list, as in [one, another]")
        return [_as_type(entry, get_args(expected)[0], where) for entry in value]
    if not isinstance(value, get_args(expected) or expected) or (expected is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {value!r}, expected {getattr(expected, '__name__', expected)}")
    return value
