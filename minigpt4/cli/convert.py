"""Turns the authors' published files into a model folder that loads in one line, here and on the Hub."""

import json
from pathlib import Path


def add_arguments(parser):
    """Adds the arguments of `minigpt4 convert`."""
    parser.add_argument("--projection", required=True, metavar="FILE", help="pretrained_minigpt4_7b.pth, or a runner's own")
    parser.add_argument("--vision", required=True, metavar="FILE|DIR|ID", help="eva_vit_g.pth, or a BLIP-2 (ID@REVISION)")
    parser.add_argument(
        "--qformer",
        metavar="FILE|DIR|ID",
        help="blip2_pretrained_flant5xxl.pth, or a BLIP-2; none for the Llama-2 variant",
    )
    parser.add_argument("--text", required=True, metavar="DIR|ID", help="the LLM: Vicuna-7B or 13B, Llama-2-7B-chat")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or an earlier export to replace")
    parser.add_argument("--config", metavar="FILE.json", help="dimensions of other sizes: docs/published-checkpoints.md")
    parser.add_argument("--light", action="store_true", help="name the base models instead of storing them")


def run(arguments):
    """Converts, and prints the folder; raises ValueError or OSError with one line."""
    from ..hub import export as hub_folder
    from ..hub.authors_checkpoints import load_originals

    hub_folder.check_target(arguments.output)
    dims = read_dims(arguments.config) if arguments.config else {}
    model, processor = load_originals(arguments.projection, arguments.vision, arguments.text, arguments.qformer, dims)
    directory = hub_folder.export(model, processor, arguments.output, arguments.light)
    size = sum(path.stat().st_size for path in directory.iterdir()) / 1e6
    print(f"{arguments.output}: {'light, without the base models' if arguments.light else 'every weight'}, {size:.1f} MB")


# The original's names of settings, and ours.
_ORIGINAL_NAMES = {
    "vit_heads": ("vision_config", "num_attention_heads"),
    "vit_depth": ("vision_config", "num_hidden_layers"),
    "img_size": ("vision_config", "image_size"),
    "q_heads": ("qformer_config", "num_attention_heads"),
}


def read_dims(path):
    """{"vision_config": {...}, "qformer_config": {...}} of a JSON file, which may also use the original's names.

    Raises:
        ValueError: the file is missing, not JSON, or in neither form.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    dims = {"vision_config": {}, "qformer_config": {}}
    for name, value in content.items() if isinstance(content, dict) else ():
        if name in dims and isinstance(value, dict):
            dims[name].update(value)
        elif name in _ORIGINAL_NAMES:
            part, ours = _ORIGINAL_NAMES[name]
            dims[part][ours] = value
    if not any(dims.values()):
        raise ValueError(f"{path}: expected vision_config and qformer_config, or {', '.join(_ORIGINAL_NAMES)}")
    return dims
