"""The authors' published files as one model: what `minigpt4 convert` does.

projection  prerained_minigpt4_7b.pth (sic), pretrained_minigpt4.pth, pretrained_minigpt4_llama2_7b.pth, or a checkpoint
            that the original's own training wrote
vision      eva_vit_g.pth, or a BLIP-2 with the same weights: a Hub id or a folder
qformer     blip2_pretrained_flant5xxl.pth, or a BLIP-2; none for the Llama-2 variant
text        the LLM: a Hub id or a folder
"""

import math
from pathlib import Path

from ..configuration.configuration_minigpt4 import MiniGPT4Config
from ..modeling_minigpt4.light import MiniGPT4ForConditionalGeneration, assemble, variant_of
from ..processing.chat_templates import LLAMA_2, VICUNA_V0
from ..processing.processing_minigpt4 import MiniGPT4Processor
from .convert import (
    eva_vit_weights,
    projection_weights,
    qformer_config_of,
    qformer_weights,
    read_checkpoint,
    vision_config_of,
)
from .from_parts import (
    end_ids,
    generation_defaults,
    image_token_id,
    load_config,
    load_tokenizer,
    origin_of,
    qformer_fields,
    text_config_of,
    vision_fields,
)
from .llm_versions import check_published


def load_originals(projection, vision, text, qformer=None, dims=None, **arguments):
    """(model, processor) with every tensor as the authors published it, in the LLM's dtype, in eval mode.

    Args:
        projection: the authors' file.
        vision, qformer: the authors' files, or a BLIP-2: "ID", "ID@REVISION" or a folder.
        text: the LLM, likewise. `config.base_parts` names it, and the BLIP-2.
        dims: {"vision_config": {...}, "qformer_config": {...}} for files of other than the published sizes: fields that do
            not follow from the shapes (num_attention_heads), or differ from them (num_hidden_layers, image_size).
        arguments: arguments of `from_pretrained`.

    Raises:
        OSError: the LLM or the BLIP-2 cannot be found.
        ValueError: one line that names the file, or the tensor, and what is wrong with it.
    """
    given = projection_weights(read_checkpoint(projection))
    fields, weights, origins = _vision_part(vision, **(dims or {}).get("vision_config", {}))
    if qformer is not None:
        parts = _qformer_part(qformer, **(dims or {}).get("qformer_config", {}))
        fields, weights, origins = fields | parts[0], weights | parts[1], origins | parts[2]
    text_config, tokenizer = text_config_of(text, load_config(text)), load_tokenizer(text)
    ends, template = end_ids(text, text_config), LLAMA_2 if qformer is None else VICUNA_V0
    config = MiniGPT4Config(
        text_config=text_config,
        image_token_id=image_token_id(tokenizer, None, text, ends, template),
        base_parts={"language_model": origin_of(text, text_config), **origins},
        **fields,
    )
    weight = given["model.projection.weight"]
    _check_variant(weight, config, qformer)
    check_published(weight.shape, text_config, tokenizer, projection, text)
    weights |= given
    _check_finite(weights)
    model = assemble(MiniGPT4ForConditionalGeneration, config, weights, source=str(projection), **arguments)
    processor = MiniGPT4Processor.for_model(config, tokenizer, template)
    model.generation_config = generation_defaults(config, processor, ends)
    return model.eval(), processor


def _vision_part(source, **dims):
    """({field of the config}, {name: tensor}, base_parts) of a vision tower: a file's tensors, or a BLIP-2's location."""
    if not _is_file(source):
        config = load_config(source)
        return vision_fields(source, config), {}, {"vision_tower": origin_of(source, config)}
    state = read_checkpoint(source)
    config = vision_config_of(state, **dims)
    patches = (config.image_size // config.patch_size) ** 2
    return {"vision_config": config}, eva_vit_weights(state, config.num_hidden_layers, patches), {}


def _qformer_part(source, **dims):
    """The same for a Q-Former and its queries."""
    if not _is_file(source):
        config = load_config(source)
        return qformer_fields(source, config), {}, {"qformer": origin_of(source, config)}
    state = read_checkpoint(source)
    weights = qformer_weights(state)
    queries = weights["model.query_tokens"].shape[1]
    return {"qformer_config": qformer_config_of(state, **dims), "num_query_tokens": queries}, weights, {}


def _is_file(source):
    """Whether this names a checkpoint file, existing or not, and not the folder or Hub id of a model."""
    return Path(source).is_file() or Path(source).suffix in (".pth", ".pt")


def _check_variant(weight, config, qformer):
    """Raises ValueError, naming the published model that fits, if the projection was trained for other parts."""
    found, expected = tuple(weight.shape), (config.text_config.hidden_size, config.projection_width)
    if found == expected:
        return
    hint = "give the vision tower, Q-Former and LLM that it was trained with"
    if found[1] == config.feature_width * math.prod(config.merged_block) and qformer is not None:
        hint = "it is of the variant without Q-Former, so leave --qformer out"
    if variant := variant_of(found):
        hint += f"; it is that of {variant}"
    raise ValueError(f"llama_proj.weight has shape {found}, these parts expect {expected}; {hint}")


def _check_finite(weights):
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite numbers; the file is damaged, download it again")
