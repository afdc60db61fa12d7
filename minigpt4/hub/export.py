"""Writes a model as a folder for the Hub that loads where this package is not installed, and uploads it.

    config.json, generation_config.json              `auto_map` says which class is in which file
    model.safetensors                                every weight, or with `light` the trained ones
    processor_config.json, tokenizer files, chat_template.jinja
    *.py                                             the code of model and processor
    lora/                                            with `light`: LoRA adapters; otherwise they are merged into the weights
    handler.py, app.py, requirements.txt             for an Endpoint and a Space; what the code above imports
    abilities/*                                      example images of the Space
    README.md, LICENSE, CITATION.cff                 the model card, from `model_card.md`
    examples/*.jpg                                   images that the card shows, with the model's own answers
    training.json                                    recipes and summaries of the runs that trained it

transformers runs code from a repository only if its files are in one folder, so the relative imports are rewritten.
"""

import ast
import contextlib
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import torch
import yaml
from huggingface_hub import HfApi, eval_result_entries_to_yaml
from huggingface_hub.errors import HTTPError  # httpx's or httpx2's, whichever this version uses
from packaging.requirements import Requirement
from safetensors import SafetensorError

from ..configuration.configuration_minigpt4 import MiniGPT4Config
from ..durable_files import folder_in_place
from ..modeling_minigpt4 import chat
from ..modeling_minigpt4.light import MiniGPT4ForConditionalGeneration, own_parameters
from ..modeling_minigpt4.lora import LORA, has_lora, merged_state_dict
from ..modeling_minigpt4.modeling_minigpt4 import MiniGPT4ForConditionalGeneration as FullMiniGPT4
from ..modeling_minigpt4.parts import BASE_PARTS
from ..processing.image_processing_minigpt4 import MiniGPT4ImageProcessor
from ..processing.processing_minigpt4 import ASKING, MiniGPT4Processor
from .model_card import EXAMPLE_QUESTION, REPOSITORY, Answered, as_dict, model_card, origins_to_publish

# `AutoModel` is the class with a head, so the model that it loads can generate.
_MODELS = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
FULL_CLASSES = {"AutoConfig": MiniGPT4Config, **dict.fromkeys(_MODELS, FullMiniGPT4)}
LIGHT_CLASSES = {"AutoConfig": MiniGPT4Config, **dict.fromkeys(_MODELS, MiniGPT4ForConditionalGeneration)}
PROCESSOR_CLASSES = {"AutoProcessor": MiniGPT4Processor}
IMAGE_PROCESSOR_CLASSES = {"AutoImageProcessor": MiniGPT4ImageProcessor}

_COPIED = [*(REPOSITORY / name for name in ("LICENSE", "CITATION.cff")), Path(__file__).with_name("handler.py")]

_RELATIVE_IMPORT = re.compile(r"^(\s*from )(\.+)((?:\w+\.)*)(\w+)(?= import )", re.MULTILINE)
_EXPORTED_SUFFIXES = {".py", ".json", ".safetensors", ".jinja", ".model", ".txt", ".md", ".cff"}
_EXAMPLES = "examples"
_BENCHMARKS = ".eval_results"  # where the Hub looks for them
_ABILITIES = Path(__file__).with_name("abilities")
# Folders in an export, and what they contain.
_FOLDERS = {
    _EXAMPLES: {".jpg"},
    _BENCHMARKS: {".yaml"},
    _ABILITIES.name: {".png", ".jpg", ".json"},
    LORA: {".json", ".safetensors"},
}
_EXAMPLE_SIDE, _EXAMPLE_TOKENS = 512, 60  # longer side of a stored image in pixels; longest answer about it

# What an earlier export may have left on the Hub: weights in more or fewer files would be loaded instead of the new ones.
_STALE = ["model*.safetensors", "model.safetensors.index.json", "training.json", *(f"{name}/*" for name in _FOLDERS)]

_DISTRIBUTION = "minigpt4-hf"
_OTHER_NAMES = {"PIL": "pillow"}  # {imported: distribution}, if the two differ
# What transformers itself imports: for the `device_map` of the card, and for a GGUF file, the embedded default's LLM.
_DEVICE_MAP, _GGUF = {"accelerate"}, {"gguf"}


def export(
    model,
    processor,
    directory,
    light=False,
    card_data=None,
    repo_id=None,
    examples=(),
    training=(),
    trained=None,
    benchmarks=(),
):
    """Writes `directory` atomically: it contains either the whole export or its previous content. Returns its path.

    Args:
        model: a `MiniGPT4ForConditionalGeneration`, which is not changed.
        processor: its `MiniGPT4Processor`.
        directory: a new or empty folder, or an earlier export, which is replaced.
        light: leave out what `config.base_parts` provides: for a trained model, store only the trained tensors.
        card_data: `ModelCardData` or a dict of its fields, for what is not known from the model: datasets, language,
            `eval_results`. It overrides other values, except for `tags`, which are added.
        repo_id: the name that the model card's example loads; by default that of the folder.
        examples: an `Example` for each image that the card shows. They are stored, and the model is asked about them.
        training: the runs that trained it, for the card: [{"stage", "recipe": dict, "summary": dict}, ...], as
            `minigpt4.hub.run_records.training_runs` returns them.
        trained: the tensors for a light export, if `own_tensors` was called beforehand: by every process, for a model that
            is spread over them.
        benchmarks: results on benchmarks registered on the Hub, as huggingface_hub's `EvalResultEntry`.

    Raises:
        ValueError: the folder contains something else, or the model's frozen parts have no known source.
        OSError: the folder cannot be written.
    """
    directory = check_target(directory)
    if light:
        check_light(model)
    try:
        with folder_in_place(directory) as folder:
            answered = _write_examples(model, processor, examples, folder)
            _write_model(model, folder, light, trained)
            _write_processor(processor, folder)
            _write_about(model, folder, repo_id or directory.name, light, card_data, answered, training)
            _write_benchmarks(benchmarks, folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{directory}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    return directory


def check_target(directory):
    """The absolute path of a folder to export to.

    Raises:
        ValueError: it is a file, or contains anything but an earlier export.
        OSError: it cannot be written.
    """
    directory = Path(directory).resolve()
    nearest = next(path for path in [directory, *directory.parents] if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"{directory}: {nearest.name} is a file; expected a new folder to export to")
    place = directory.parent if nearest == directory else nearest  # the folder's replacement is written next to it
    if not os.access(place, os.W_OK):
        raise OSError(f"{directory}: cannot be written (no permission to write to {place})")
    if nearest != directory:
        return directory
    found = sorted(directory.iterdir())
    foreign = [path.name for path in found if not _is_exported(path)]
    if found and (foreign or not _is_export(directory)):
        raise ValueError(
            f"{directory}: contains {foreign[0] if foreign else found[0].name}, and is not an earlier export; "
            "choose another folder, or empty it"
        )
    return directory


def create_repository(repo_id, private=False, token=None):
    """Checks that a Hub repository can be pushed to, and is private if requested; returns its id.

    Raises:
        ValueError: not a repository id; or it should be private, but exists and is public.
        OSError: the Hub cannot be reached, or refuses.
    """
    api = HfApi(token=token)
    with _hub_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ValueError(f"{repo_id}: exists and is public; make it private on the Hub, or choose another name")
    return repo_id


def push(directory, repo_id, stale=_STALE, **commit):
    """Uploads an exported folder in one commit, removing files of an earlier one; returns the `CommitInfo`.

    `commit`: further arguments of `HfApi.upload_folder` (commit_message, revision, create_pr, token, ...).
    """
    commit = {"commit_message": "Export of minigpt4-hf", **commit}
    with _hub_errors(repo_id):
        return HfApi().upload_folder(repo_id=repo_id, folder_path=directory, delete_patterns=stale, **commit)


def push_model(
    model, repo_id, light=False, card_data=None, training=(), private=None, tags=None, max_shard_size="50GB", **commit
):
    """Implements `model.push_to_hub`: uploads an export in one commit, without the processor's files.

    Args:
        light, card_data, training: see `export`. Examples need the processor; `minigpt4 export` has both.
        private, tags, max_shard_size, commit: as in `PreTrainedModel.push_to_hub`.
    """
    if light:
        check_light(model)
    card_data = as_dict(card_data)
    card_data["tags"] = [*(card_data.get("tags") or []), *([tags] if isinstance(tags, str) else tags or [])]
    repo_id = create_repository(repo_id, private, commit.get("token"))
    with tempfile.TemporaryDirectory() as folder:
        _write_model(model, Path(folder), light, max_shard_size=max_shard_size)
        _write_about(model, Path(folder), repo_id, light, card_data, (), training)
        return push(folder, repo_id, **commit)


def push_processor(processor, repo_id, private=None, **commit):
    """Implements `processor.push_to_hub`: uploads processor, tokenizer, chat template and their code in one commit."""
    repo_id = create_repository(repo_id, private, commit.get("token"))
    with tempfile.TemporaryDirectory() as folder:
        _write_processor(processor, Path(folder))
        return push(folder, repo_id, stale=None, **commit)


def check_light(model):
    """Raises ValueError if a model cannot be exported light: unknown frozen parts, or nothing trained."""
    if model.config.base_parts is None:
        raise ValueError(
            "light: this model's config has no base_parts that say where its frozen weights come from; "
            "export it in full, without light"
        )
    if not own_parameters(model):
        raise ValueError("light: no weight of this model is trainable, so nothing would be stored; call model.freeze()")


def _write_model(model, folder, light, trained=None, **saving):
    classes = LIGHT_CLASSES if light else FULL_CLASSES
    fields = {"auto_map": _auto_map(classes)}
    if not light:
        fields["trained_parts"] = [part for part in model.config.trained_parts if part != LORA]
        fields["made_from"] = origins_to_publish(model.config)
        fields["base_parts"] = None
    model.save_pretrained(folder, state_dict=trained if light else merged_state_dict(model), **saving)
    _edit_json(folder / "config.json", fields)
    for weights in folder.rglob("*.safetensors"):
        shutil.copymode(folder / "config.json", weights)  # safetensors makes it readable only for the owner
    _write_code(folder, classes)


def _write_processor(processor, folder):
    processor.save_pretrained(folder)
    path = folder / "processor_config.json"
    image_processor = json.loads(path.read_text("utf-8"))["image_processor"]
    image_processor["auto_map"] = _auto_map(IMAGE_PROCESSOR_CLASSES)
    _edit_json(path, {"auto_map": _auto_map(PROCESSOR_CLASSES), "image_processor": image_processor})
    _write_code(folder, {**PROCESSOR_CLASSES, **IMAGE_PROCESSOR_CLASSES})


def _write_about(model, folder, repo_id, light, card_data, examples, training):
    """Writes the rest: card, licence, citation, requirements, a Space's app.py, and the training runs for the card."""
    for source in _COPIED:
        shutil.copyfile(source, folder / source.name)
    (folder / "app.py").write_text(space_app(), "utf-8")
    shutil.copytree(_ABILITIES, folder / _ABILITIES.name, copy_function=shutil.copyfile)
    requirements = _requirements(model, light)
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", "utf-8")
    if training:
        (folder / "training.json").write_text(json.dumps(list(training), indent=2) + "\n", "utf-8")
    card = model_card(model, repo_id, light, card_data, requirements, examples, training)
    card.save(folder / "README.md")


def space_app():
    """A Space's app.py: the page of `minigpt4 web`, with the source of chat.py where it imports it."""
    page, conversation = (Path(file).read_text("utf-8") for file in (Path(__file__).with_name("app.py"), chat.__file__))
    before, after = page.split("from ..modeling_minigpt4.chat import ChatSession\n")
    return f"{before}\n{conversation}\n{after}"


def _write_benchmarks(entries, folder):
    """One file per data set, in the Hub's format (huggingface.co/docs/hub/eval-results)."""
    for dataset in {entry.dataset_id for entry in entries}:
        path = folder / _BENCHMARKS / f"{dataset.replace('/', '--')}.yaml"
        path.parent.mkdir(exist_ok=True)
        own = eval_result_entries_to_yaml([entry for entry in entries if entry.dataset_id == dataset])
        path.write_text(yaml.safe_dump(own, sort_keys=False), "utf-8")


def _write_examples(model, processor, examples, folder):
    """Stores the images; returns an `Answered` for each, with the model's answer about the image as stored."""
    if not examples:
        return []
    (folder / _EXAMPLES).mkdir()
    answered = []
    for number, (name, picture, credit) in enumerate(examples, 1):
        path = f"{_EXAMPLES}/{number}-{re.sub(r'[^a-zA-Z0-9]+', '-', name).strip('-')}.jpg"
        stored = picture.convert("RGB")
        stored.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE))
        stored.save(folder / path, quality=90, comment=b"")
        answered.append(Answered(name, path, credit, _answer(model, processor, folder / path)))
    return answered


@torch.no_grad()
def _answer(model, processor, picture):
    """The greedy answer to the examples' question, on one line; the model's mode is not changed."""
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": EXAMPLE_QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        **ASKING,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    training = model.training
    model.eval()
    try:
        ids = model.generate(**inputs, max_new_tokens=_EXAMPLE_TOKENS, do_sample=False)[0]
    finally:
        model.train(training)
    return " ".join(processor.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True).split())


def _requirements(model, light):
    """Lines of requirements.txt: what the exported code imports, with the lower bounds that this package declares.

    Undeclared imports come with declared ones (tokenizers with transformers). Only a light repository needs the packages
    that read the embedded default's language model, and peft for adapters.
    """
    imported = {_OTHER_NAMES.get(name, name).replace("_", "-") for name in _imported_packages(light)} - {"peft"}
    wanted = imported | _DEVICE_MAP
    if light and model.config.base_parts == BASE_PARTS:
        wanted |= _GGUF
    if light and has_lora(model):
        wanted.add("peft")
    declared = [Requirement(line) for line in importlib.metadata.requires(_DISTRIBUTION)]
    declared = [entry for entry in declared if not entry.extras]  # the code does not import transformers[serving]
    return sorted(f"{entry.name}{entry.specifier}" for entry in declared if entry.name.replace("_", "-") in wanted)


def _imported_packages(light):
    """Top-level names of all external imports of the exported code."""
    names = set()
    classes = LIGHT_CLASSES if light else FULL_CLASSES
    for source in _sources({**classes, **PROCESSOR_CLASSES, **IMAGE_PROCESSOR_CLASSES}):
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names


def _write_code(folder, classes):
    """The sources of classes, given by the names of their Auto classes, and of everything they need."""
    for source in _sources(classes):
        (folder / source.name).write_text(_RELATIVE_IMPORT.sub(r"\1.\4", source.read_text("utf-8")), "utf-8")


def _sources(classes):
    """The files of classes and, following relative imports, of everything they need."""
    waiting, found = [Path(inspect.getfile(cls)) for cls in classes.values()], set()
    while waiting:
        source = waiting.pop()
        if source in found:
            continue
        found.add(source)
        for _, dots, package, module in _RELATIVE_IMPORT.findall(source.read_text("utf-8")):
            waiting.append(source.parents[len(dots) - 1] / package.replace(".", "/") / f"{module}.py")
    return found


def _auto_map(classes):
    """{Auto class: "file.Class"}, as transformers looks it up in a repository."""
    return {auto: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for auto, cls in classes.items()}


def _edit_json(path, fields):
    content = {**json.loads(path.read_text("utf-8")), **fields}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _is_exported(path):
    """Whether an export may contain a file or folder of this name."""
    if path.is_dir():
        return path.name in _FOLDERS and all(inside.suffix in _FOLDERS[path.name] for inside in path.iterdir())
    return path.suffix in _EXPORTED_SUFFIXES or path.name == "LICENSE"


def _is_export(directory):
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return config.get("model_type") == MiniGPT4Config.model_type and "auto_map" in config


@contextlib.contextmanager
def _hub_errors(repo_id):
    """Turns the Hub's errors into one line."""
    try:
        yield
    except HTTPError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        refused = getattr(getattr(error, "response", None), "status_code", None) == 401
        hint = "; log in with `hf auth login`" if refused else ""
        raise OSError(f"{repo_id}: the Hub rejected it ({reason}){hint}") from error
