"""Combines a vision tower and an LLM into a model folder, ready for stage 1: any of the families in
docs/own-llm-and-tower.md, or one line that says why not."""

from pathlib import Path


def add_arguments(parser):
    """Adds the arguments of `minigpt4 build`."""
    parser.add_argument("--vision", required=True, metavar="ID|DIR", help="the vision tower, or a BLIP-2 (ID@REVISION)")
    parser.add_argument("--text", required=True, metavar="ID|DIR", help="the LLM (ID@REVISION)")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or an earlier export to replace")
    parser.add_argument(
        "--qformer", metavar="ID|none", help="a BLIP-2 to take the Q-Former from (default: that of --vision, if it has one)"
    )
    parser.add_argument("--projection", metavar="FILE", help="the original's .pth or safetensors (default: a new one)")
    parser.add_argument("--light", action="store_true", help="name the base models instead of storing them")
    parser.add_argument(
        "--patch-merge",
        metavar="2x2|4x4|N",
        help="neighboring patches per visual token (default: 4 in a row for EVA, 2x2 for others)",
    )
    parser.add_argument("--patch-fit", choices=("pad", "pool"), default="pad", help="if the patch grid does not divide")
    parser.add_argument(
        "--vision-feature-layer", type=int, default=-1, metavar="N", help="-1: the tower's output, -2: last layer's input"
    )
    parser.add_argument("--projection-layers", type=int, default=1, metavar="N", help="linear layers of the projection")
    parser.add_argument("--image-token", metavar="TOKEN", help="the LLM's token that represents an image")
    parser.add_argument("--template", metavar="NAME|FILE", help="conversation template (default: the LLM's own)")
    parser.add_argument("--dtype", default="auto", metavar="auto|float32|bfloat16|float16", help="of the frozen parts")
    parser.add_argument("--seed", type=int, default=0, help="for initializing the projection")


def run(arguments):
    """Builds the model, runs one image through it, and prints its folder; raises ValueError or OSError with one line."""
    import torch

    from ..configuration.recipe import ModelSection
    from ..hub import export as hub_folder
    from ..training.run import load_parts

    hub_folder.check_target(arguments.output)
    if arguments.projection and not Path(arguments.projection).is_file():
        raise ValueError(f"--projection {arguments.projection}: no such file; expected a .pth or .safetensors")
    torch.manual_seed(arguments.seed)
    section = ModelSection(
        vision=arguments.vision,
        text=arguments.text,
        patch_merge=arguments.patch_merge or "",
        patch_fit=arguments.patch_fit,
        vision_feature_layer=arguments.vision_feature_layer,
        projection_layers=arguments.projection_layers,
        image_token=arguments.image_token or "",
        template=arguments.template or "",
        qformer=arguments.qformer != "none",
        dtype=arguments.dtype,
    )
    other = {"qformer": arguments.qformer} if arguments.qformer not in (None, "none") else {}
    model, processor = load_parts(section, projection=arguments.projection, **other)
    _check(model, processor)
    directory = hub_folder.export(model, processor, arguments.output, arguments.light)
    config = model.config
    size = sum(path.stat().st_size for path in directory.iterdir()) / 1e6
    height, width = config.image_size
    print(
        f"{arguments.output}: {config.vision_config.model_type} ({height} x {width} pixels) and "
        f"{config.text_config.model_type}, {config.num_image_tokens} visual tokens a picture, "
        f"{'light, without the base models' if arguments.light else 'every weight'}, {size:.1f} MB"
    )
    kept = " model.projection=base" if arguments.projection else ""
    print(f"next: accelerate launch trainer_scripts/stage1.py --set model.base={arguments.output}{kept}")


def _check(model, processor):
    """Raises ValueError unless an image becomes as many finite visual tokens as the processor has places for."""
    import torch
    from PIL import Image

    height, width = model.config.image_size
    pixels = processor.image_processor(Image.radial_gradient("L").resize((width, height)), return_tensors="pt")
    pixel_values = pixels["pixel_values"].to(model.device, model.dtype)
    with torch.no_grad():
        tokens = model.get_image_features(pixel_values, return_dict=True).pooler_output
    if tuple(tokens.shape[:2]) != (1, processor.num_image_tokens) or not tokens.isfinite().all():
        raise ValueError(
            f"the vision tower gives {tokens.shape[1]} visual tokens for a picture, the processor has places for "
            f"{processor.num_image_tokens}, or they are not finite numbers; its weights are damaged, or from another model"
        )
