"""Builds a MiniGPT-4 from base models: vision tower, Q-Former and LLM from their own repositories, plus a projection.

    MiniGPT4ForConditionalGeneration.from_parts(vision="Salesforce/blip2-flan-t5-xxl", text="Vision-CAIR/vicuna-7b")

The configuration follows from those of the parts; `config.base_parts` names them, so the model can be saved light.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME, cached_file, logging

from ..configuration.configuration_minigpt4 import MiniGPT4Config
from ..modeling_minigpt4.light import assemble
from ..modeling_minigpt4.own_head import base_models, is_causal_llm, without_weights
from ..modeling_minigpt4.repositories import split_revision
from ..modeling_minigpt4.tower_grid import measure, sees_images
from ..processing.chat_templates import template_text
from ..processing.for_model import IMAGE_TOKEN
from ..processing.processing_minigpt4 import MiniGPT4Processor
from ..processing.turns import written
from .convert import mend_llama_config, mend_llama_tokenizer, projection_weights, read_checkpoint
from .llm_versions import check_published, template_hint

logger = logging.get_logger(__name__)

FROM_VISION_REPO = "from vision repo"

# For `check_logits`; enough tokens for attention to matter.
CHECKED_TOKENS = 4
TOLERANCE = 1e-5


def from_parts(
    cls,
    vision,
    text,
    qformer=FROM_VISION_REPO,
    projection=None,
    image_token=None,
    template=None,
    config=None,
    **arguments,
):
    """See `MiniGPT4ForConditionalGeneration.from_parts`."""
    given = {} if projection is None else read_projection(projection)
    hub = {name: arguments.pop(name) for name in ("token", "cache_dir", "local_files_only") if name in arguments}
    tokenizer, fields = load_tokenizer(text, hub), config or {}
    config = config_of_parts(vision, text, qformer, hub, **fields)
    ends = end_ids(text, config.text_config, hub)
    if "image_token_id" not in fields:
        own, rows = template_text(template or tokenizer.chat_template), config.text_config.vocab_size
        config.image_token_id = image_token_id(tokenizer, image_token, text, ends, own, rows)
    if projection is not None and Path(projection).suffix != ".safetensors":
        shape = given["model.projection.weight"].shape
        check_published(shape, config.text_config, tokenizer, projection, text)
    if template is None and (hint := template_hint(config.text_config, tokenizer)):
        logger.warning(f"{text}: {hint}")
    processor = MiniGPT4Processor.for_model(config, tokenizer, template)
    model = assemble(cls, config, given, source=str(projection), hub=hub, **arguments)
    if projection is None:
        model.draw_projection()
    check_logits(model)
    model.generation_config = generation_defaults(model.config, processor, ends)
    return model


@torch.no_grad()
def check_logits(model):
    """Compares a model's logits on a few tokens with those of the LLM's own class around the same modules.

    Args:
        model: a `MiniGPT4ForConditionalGeneration` in eval mode.

    Raises:
        ValueError: they differ, or are not numbers; with the name of the class and the difference.
    """
    llm = without_weights(model.config.text_config).eval()
    for name in base_models(llm):
        setattr(llm, name, model.model.language_model)
    llm.set_output_embeddings(model.lm_head)
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(1, 1 + CHECKED_TOKENS, device=device)[None] % model.config.text_config.vocab_size
    expected, found = (one(input_ids=ids, use_cache=False).logits.float() for one in (llm, model))
    scale = expected.abs().max().clamp(min=1)
    difference = ((found - expected).abs().max() / scale).item()
    if not difference <= TOLERANCE:  # nor is a NaN
        raise ValueError(
            f"{type(llm).__name__}: in this model, logits on text differ from its own by {difference:.1e} of the largest, "
            f"expected at most {TOLERANCE}; this LLM is not supported"
        )


def config_of_parts(vision, text, qformer=FROM_VISION_REPO, hub=None, **fields):
    """The `MiniGPT4Config` of parts in repositories.

    Args:
        vision, text, qformer: see `from_parts`.
        hub: how they are downloaded: token, cache_dir, local_files_only.
        fields: further fields of the config.

    Raises:
        OSError: a repository does not exist.
        ValueError: a repository does not have the part.
    """
    eyes, whole = load_config(vision, hub), load_config(text, hub)
    text_config = text_config_of(text, whole)
    found = vision_fields(vision, eyes)
    origins = {"vision_tower": origin_of(vision, eyes), "language_model": origin_of(text, whole)}
    if qformer == FROM_VISION_REPO:
        qformer = vision if getattr(eyes, "qformer_config", None) is not None else None
    if qformer is not None:
        queries = eyes if qformer == vision else load_config(qformer, hub)
        found |= qformer_fields(qformer, queries)
        origins["qformer"] = origin_of(qformer, queries)
    return MiniGPT4Config(text_config=text_config, base_parts=origins, dtype=text_config.dtype, **{**found, **fields})


def vision_fields(source, config):
    """The vision tower in a repository's config, as fields of `MiniGPT4Config`.

    Raises:
        ValueError: it has no vision tower, or one that needs more than images of one size.
    """
    tower = getattr(config, "vision_config", None) or config
    if not sees_images(tower):
        raise ValueError(f"{source}: a {config.model_type}, which has no vision tower; expected a BLIP-2 or a vision model")
    try:
        measure(tower)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return {"vision_config": tower}


def text_config_of(source, config):
    """The config of the LLM in a repository; for a vision-language model, that of its text model.

    Raises:
        ValueError: it is not a causal LLM.
    """
    text = config.get_text_config(decoder=True)
    if not is_causal_llm(text):
        where = "" if text is config else f"its text model is a {text.model_type}, "
        raise ValueError(
            f"{source}: a {config.model_type}; {where}which transformers has no causal LLM for (AutoModelForCausalLM); "
            "expected one"
        )
    if text is not config:  # transformers relies on it
        text.tie_word_embeddings = config.tie_word_embeddings
        text.dtype = text.dtype or config.dtype
        text.eos_token_id = getattr(config, "eos_token_id", None) or text.eos_token_id
    return mend_llama_config(text)


def qformer_fields(source, config):
    """The same for a Q-Former and its queries; raises ValueError if there is none."""
    if getattr(config, "qformer_config", None) is None:
        raise ValueError(f"{source}: its config.json has no qformer_config; expected a BLIP-2, or none at all")
    return {"qformer_config": config.qformer_config, "num_query_tokens": config.num_query_tokens}


def read_projection(path):
    """{name in the model: tensor} of a projection file: the original's (.pth), or safetensors as this package stores it."""
    if Path(path).suffix == ".safetensors":
        return load_file(path)
    return projection_weights(read_checkpoint(path))


def load_tokenizer(text, hub=None):
    """The tokenizer of an LLM's repository, with the special tokens of old LLaMA repositories corrected."""
    repo, revision = split_revision(text)
    return mend_llama_tokenizer(AutoTokenizer.from_pretrained(repo, revision=revision, **(hub or {})))


def end_ids(text, text_config, hub=None):
    """The ids that end an LLM's output: all that its repository's config and generation config name."""
    repo, revision = split_revision(text)
    configs, hub = [text_config], {"revision": revision, **(hub or {})}
    if file := cached_file(repo, GENERATION_CONFIG_NAME, **hub, _raise_exceptions_for_missing_entries=False):
        generation = GenerationConfig.from_pretrained(Path(file).parent)
        if not generation._from_model_config:  # otherwise it repeats the config, which is corrected above
            configs.append(generation)
    named = [getattr(config, "eos_token_id", None) for config in configs]
    named = [ids if isinstance(ids, list | tuple) else [ids] for ids in named if ids is not None]
    return list(dict.fromkeys(token for ids in named for token in ids))


def image_token_id(tokenizer, image_token, source, ends=(), template="", rows=math.inf):
    """The id for visual tokens: that of `image_token`, or else one that the LLM never writes.

    That is its <unk>, if its tokenizer falls back to bytes and so never yields it; a reserved special token; or an unused
    row of the embedding table, which then gets a token (see `MiniGPT4Processor.for_model`). It must not be an end id or
    occur in the LLM's template.

    Args:
        ends: ids that end the LLM's output, see `end_ids`.
        template: its chat template.
        rows: number of rows of its embedding table. Without it, no unused row is taken.

    Raises:
        ValueError: the tokenizer has none, or not the named one, or that has no row.
    """
    vocabulary = tokenizer.get_vocab()
    if image_token is not None:
        if image_token not in vocabulary:
            raise ValueError(f"{source}: its vocabulary does not have the image token {image_token!r}")
        if vocabulary[image_token] >= rows:
            raise ValueError(
                f"{source}: the image token {image_token!r} is id {vocabulary[image_token]}, outside the embedding table of "
                f"{rows} rows"
            )
        return vocabulary[image_token]
    template = written(template, tokenizer)
    used = {*ends, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    reserved = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    for token in [*_never_given(tokenizer), *(token for token in reserved if token != tokenizer.unk_token)]:
        if token not in template and vocabulary[token] not in used and vocabulary[token] < rows:
            return vocabulary[token]
    if len(tokenizer) < rows < math.inf and IMAGE_TOKEN not in vocabulary:
        return len(tokenizer)
    raise ValueError(f"{source}: its tokenizer reserves no token that could stand for a picture; name one with image_token")


def _never_given(tokenizer):
    """[<unk>] of a tokenizer that spells unknown text in bytes, as SentencePiece's do; or []."""
    spells = getattr(tokenizer.backend_tokenizer.model, "byte_fallback", False)
    return [tokenizer.unk_token] if spells and tokenizer.unk_token is not None else []


def generation_defaults(config, processor, ends):
    """The original demo's settings: top-p 0.9 at temperature 1, 300 tokens; an answer ends where the LLM's turn ends.

    Args:
        ends: see `end_ids`; what the template puts after an answer is added to them.
    """
    text = config.text_config
    ends = list(dict.fromkeys([*ends, *processor.turn_end_ids]))
    return GenerationConfig(
        do_sample=True,
        top_p=0.9,
        temperature=1.0,
        repetition_penalty=1.05,
        max_new_tokens=300,
        bos_token_id=text.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=processor.tokenizer.pad_token_id if text.pad_token_id is None else text.pad_token_id,
        turn_ends=processor.turn_ends,
    )


def load_config(source, hub=None):
    """The config of a repository; raises OSError, naming it, if there is none that transformers knows."""
    repo, revision = split_revision(source)
    try:
        return AutoConfig.from_pretrained(repo, revision=revision, **(hub or {}))
    except (OSError, ValueError) as error:
        raise OSError(f"{source}: not the folder or Hub repository of a model ({str(error).splitlines()[0]})") from error


def origin_of(source, config):
    """{"repo", "revision"} for `config.base_parts`; on the Hub, the commit that `config` was read from."""
    repo, revision = split_revision(source)
    commit = None if Path(repo).is_dir() else getattr(config, "_commit_hash", None)
    return {"repo": repo, "revision": commit or revision}
