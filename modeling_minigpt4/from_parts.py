"""A MiniGPT-4 from base models: vision tower, Q-Former and LLM out of their own repositories, joined by a projection.

    MiniGPT4ForConditionalGeneration.from_parts(vision="Salesforce/blip2-flan-t5-xxl", text="lmsys/vicuna-7b-v1.5")

The configuration follows from those of the parts; `config.base_parts` names them, so that the model can be saved light.
"""

from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from ..configuration.configuration_minigpt4 import MiniGPT4Config
from ..processing.processing_minigpt4 import MiniGPT4Processor
from .convert import mend_llama_config, mend_llama_tokenizer, projection_weights, read_checkpoint
from .light import assemble
from .repositories import split_revision
from .vision_tower import measure, sees_images

FROM_VISION_REPO = "from vision repo"


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
    tokenizer = load_tokenizer(text, hub)
    fields = {"image_token_id": image_token_id(tokenizer, image_token, text), **(config or {})}
    config = config_of_parts(vision, text, qformer, hub, **fields)
    model = assemble(cls, config, given, source=str(projection), hub=hub, **arguments)
    if projection is None:
        model.draw_projection()
    processor = MiniGPT4Processor.for_model(model.config, tokenizer, template)
    model.generation_config = generation_defaults(model.config, processor)
    return model


def config_of_parts(vision, text, qformer=FROM_VISION_REPO, hub=None, **fields):
    """The `MiniGPT4Config` of parts that lie in repositories.

    Args:
        vision, text, qformer: see `from_parts`.
        hub: how they are fetched: token, cache_dir, local_files_only.
        fields: further fields of the config.

    Raises:
        OSError: a repository that is not there.
        ValueError: a repository without the part.
    """
    eyes, text_config = load_config(vision, hub), mend_llama_config(load_config(text, hub))
    found = vision_fields(vision, eyes)
    origins = {"vision_tower": origin_of(vision, eyes), "language_model": origin_of(text, text_config)}
    if qformer == FROM_VISION_REPO:
        qformer = vision if getattr(eyes, "qformer_config", None) is not None else None
    if qformer is not None:
        queries = eyes if qformer == vision else load_config(qformer, hub)
        found |= qformer_fields(qformer, queries)
        origins["qformer"] = origin_of(qformer, queries)
    return MiniGPT4Config(text_config=text_config, base_parts=origins, dtype=text_config.dtype, **{**found, **fields})


def vision_fields(source, config):
    """What the config of a repository says of its vision tower, as fields of `MiniGPT4Config`.

    Raises:
        ValueError: it has no vision tower, or one that does not take images of one size alone.
    """
    tower = getattr(config, "vision_config", None) or config
    if not sees_images(tower):
        raise ValueError(f"{source}: a {config.model_type}, which has no vision tower; expected a BLIP-2 or a vision model")
    try:
        measure(tower)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return {"vision_config": tower}


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
    """The tokenizer of an LLM's repository, with the special tokens of an old LLaMA repository mended."""
    repo, revision = split_revision(text)
    return mend_llama_tokenizer(AutoTokenizer.from_pretrained(repo, revision=revision, **(hub or {})))


def image_token_id(tokenizer, image_token, source):
    """The id that stands for visual tokens: of `image_token`, or else of `<unk>` or a reserved special token.

    Raises:
        ValueError: the tokenizer has none, or not the one that is named.
    """
    if image_token is not None:
        if image_token not in tokenizer.get_vocab():
            raise ValueError(f"{source}: its vocabulary does not hold the image token {image_token!r}")
        return tokenizer.convert_tokens_to_ids(image_token)
    ends = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    template = str(tokenizer.chat_template or "")
    reserved = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special and str(t) not in template]
    for token in [tokenizer.unk_token, *reserved]:
        if token is not None and token not in ends:
            return tokenizer.convert_tokens_to_ids(token)
    raise ValueError(f"{source}: its tokenizer reserves no token that could stand for a picture; name one with image_token")


def generation_defaults(config, processor):
    """The original demo's settings: top-p 0.9 at temperature 1, 300 tokens; an answer ends where the LLM's turn ends."""
    text = config.text_config
    return GenerationConfig(
        do_sample=True,
        top_p=0.9,
        temperature=1.0,
        repetition_penalty=1.05,
        max_new_tokens=300,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id if text.pad_token_id is not None else text.eos_token_id,
        turn_ends=processor.turn_ends,
    )


def load_config(source, hub=None):
    """The config of a repository; raises OSError, naming it, where there is none that transformers knows."""
    repo, revision = split_revision(source)
    try:
        return AutoConfig.from_pretrained(repo, revision=revision, **(hub or {}))
    except (OSError, ValueError) as error:
        raise OSError(f"{source}: no folder or Hub repository of a model ({str(error).splitlines()[0]})") from error


def origin_of(source, config):
    """{"repo", "revision"} for `config.base_parts`; on the Hub the commit that `config` was read from."""
    repo, revision = split_revision(source)
    commit = None if Path(repo).is_dir() else getattr(config, "_commit_hash", None)
    return {"repo": repo, "revision": commit or revision}
