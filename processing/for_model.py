"""The processor of a model built from parts, based on its LLM's template and its tower's repository."""

import uuid

from jinja2.exceptions import TemplateError
from tokenizers import AddedToken
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
    get_image_processor_config,
)

from ..configuration.configuration_minigpt4 import height_and_width
from .chat_templates import VICUNA_V0, own_template, template_text, turn_markers, with_image_token
from .image_processing_minigpt4 import MiniGPT4ImageProcessor

# The name of the image token if the tokenizer has no token for it.
IMAGE_TOKEN = "<image>"

# Settings of a preprocessor_config.json that are followed here, and those that change pixels but are not supported.
_FOLLOWED = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
_NOT_FOLLOWED = ("rescale_offset", "include_top", "do_flip_channel_order")
# From DINO's published files. transformers' own defaults for it are CLIP's, need torchvision, or do not exist.
_IMAGENET = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
_DINO = {
    "dinov2": {**_IMAGENET, "resample": PILImageResampling.BICUBIC},
    "dinov2_with_registers": {**_IMAGENET, "resample": PILImageResampling.BICUBIC},
    "dinov3_vit": {**_IMAGENET, "resample": PILImageResampling.BILINEAR},
    "dinov3_convnext": {**_IMAGENET, "resample": PILImageResampling.BILINEAR},
}


def processor_for(cls, config, tokenizer, chat_template=None, image_processor=None):
    """See `MiniGPT4Processor.for_model`; `cls` is that class."""
    if image_processor is None:
        origin = (config.base_parts or {}).get("vision_tower") or {}
        image_processor = image_processor_for(config.vision_config, origin.get("repo"), revision=origin.get("revision"))
    image_token = _image_token(tokenizer, config.image_token_id)
    named = template_text(chat_template) or ("" if tokenizer.chat_template else VICUNA_V0)
    template = with_image_token(named, image_token) if named else own_template(tokenizer.chat_template, image_token)
    processor = cls(
        image_processor,
        tokenizer,
        image_token=image_token,
        num_image_tokens=config.num_image_tokens,
        turn_markers=turn_markers(named),
        chat_template=template,
    )
    _check_template(processor)
    end = processor.turn_end.strip()
    if not named and any(token not in tokenizer.all_special_ids for token in processor.encode(end)):
        processor.turn_markers = [end]
    return processor


def image_processor_for(vision_config, repo=None, **hub):
    """The image processor of a vision tower, with the size, resampling and colours that it was trained on.

    Args:
        vision_config: the tower's config, with an `image_size`.
        repo: a folder or Hub id whose preprocessor_config.json has the rest; without it, or without that file, the
            settings are transformers' defaults for the tower's family.
        hub: revision, token, cache_dir, local_files_only.

    Raises:
        ValueError: the file asks for something that is not supported here, or nothing is known about the family.
        OSError: the repository cannot be reached.
    """
    said = get_image_processor_config(repo, **hub) if repo else {}
    if changed := [name for name in _NOT_FOLLOWED if said.get(name)]:
        raise ValueError(f"{repo}: its preprocessor_config.json sets {changed[0]}, which is not followed here")
    fields = {name: said[name] for name in _FOLLOWED if said.get(name) is not None}
    if not {"image_mean", "image_std"} <= fields.keys() and fields.get("do_normalize", True):
        fields = {**_of_family(vision_config.model_type), **fields}
    height, width = height_and_width(vision_config.image_size)
    return MiniGPT4ImageProcessor(size={"height": height, "width": width}, **fields)


def _of_family(model_type):
    """The defaults of transformers' image processor for a tower's family; raises ValueError if there is none."""
    if model_type in _DINO:
        return _DINO[model_type]
    module = model_type_to_module_name(model_type)
    names = [names for of, names in IMAGE_PROCESSOR_MAPPING_NAMES.items() if model_type_to_module_name(of) == module]
    family = get_image_processor_class_from_name(names[0]["pil"]) if names and "pil" in names[0] else None
    if family is None:
        raise ValueError(
            f"{model_type}: its repository has no preprocessor_config.json, and transformers has no PIL image processor for "
            "its family; the colors it was trained on are unknown: add the file, or pass an image_processor"
        )
    return {name: getattr(family, name) for name in _FOLLOWED if getattr(family, name, None) is not None}


def _image_token(tokenizer, token_id):
    """The token of an id; for the id after the tokenizer's last one, it is added. Raises ValueError for any other."""
    if token_id == len(tokenizer):
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    token = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
    if token is None:
        raise ValueError(f"the tokenizer, of {len(tokenizer)} tokens, has no token for image_token_id {token_id}")
    return token


def _check_template(processor):
    """Raises ValueError unless the chat template shows a question, its image and the answer."""
    question, answer = (f"{word}-{uuid.uuid4().hex}" for word in ("question", "answer"))
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    try:
        found, _ = processor.segments(messages)
    except (ValueError, TemplateError) as error:
        raise ValueError(f"the chat template cannot be used ({error}); name another") from error
    prompt, answers = ("".join(text for text, is_answer in found if is_answer is kind) for kind in (False, True))
    for what, count in {
        "pictures": prompt.count(processor.image_token),
        "questions": prompt.count(question),
        "answers": answers.count(answer),
    }.items():
        if count != 1:
            raise ValueError(
                f"the chat template shows {count} {what} of a turn that has one of each; expected a template for "
                "conversations, or one of the names in chat_templates.py"
            )
