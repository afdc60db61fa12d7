"""The grid of a vision tower's patches if its config does not say: measured, without weights or memory."""

import inspect
import math

import torch
from transformers import MODEL_MAPPING

from ..configuration.configuration_minigpt4 import height_and_width
from .vision_tower import VISION_TOWERS, build_vision_tower, look


def sees_images(config):
    """Whether a config belongs to a tower that takes only images."""
    tower_class = VISION_TOWERS.get(config.model_type) or MODEL_MAPPING.get(type(config), None)
    return getattr(tower_class, "main_input_name", None) == "pixel_values"


def measure(config, layer=-1):
    """(rows, columns, width) of a tower's patches at a layer, from one run without weights or memory.

    Raises:
        ValueError: it needs more than images, has no fixed image size, or its tokens form no grid; one line with its name.
    """
    name = f"the vision tower {config.model_type}"
    size = getattr(config, "image_size", None)
    if not sees_images(config):
        raise ValueError(f"{name}: transformers has no model for it that takes only images; expected a vision tower")
    with torch.device("meta"):
        tower = build_vision_tower(config).eval()
    _check_inputs(tower, name)
    if not size:
        raise ValueError(f"{name}: its config has no image_size, which determines the number of visual tokens")
    size = height_and_width(size)
    try:
        with torch.no_grad():
            pixel_values = torch.empty(1, 3, *size, device="meta")
            output, tokens = look(tower, pixel_values, layer, output_hidden_states=True)
    except Exception as error:  # each tower fails in its own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name}: cannot look at an image of {size[0]} x {size[1]} in layer {layer} ({reason})") from error
    grid = _grid(config, output, tokens.shape[1], layer, size)
    if grid is None:
        raise ValueError(f"{name}: gives {tokens.shape[1]} tokens for an image of {size[0]} x {size[1]}, which form no grid")
    return *grid, tokens.shape[2]


def _check_inputs(tower, name):
    """Raises ValueError if a tower needs more than images of one size."""
    needed = [
        parameter.name
        for parameter in inspect.signature(tower.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.name != "pixel_values"
    ]
    if needed:
        raise ValueError(
            f"{name}: needs {', '.join(needed)} besides the image, for images of any size and number of patches (NaFlex or "
            "the like); here every image has equally many visual tokens, so use the tower's variant of one resolution"
        )


def _grid(config, output, length, layer, size):
    """(rows, columns) of `length` tokens: those of the feature map, of the config's patches, or of a square; or None."""
    maps = [output.last_hidden_state, *(output.hidden_states or [])[layer:][:1]]
    for found in maps if layer == -1 else maps[1:]:
        if found.ndim == 4:
            return tuple(found.shape[-2:])
    patch = getattr(config, "patch_size", None)
    if patch:
        patch = patch if isinstance(patch, list | tuple) else (patch, patch)
        grid = tuple(side // of_one for side, of_one in zip(size, patch, strict=True))
        if math.prod(grid) <= length:
            return grid
    side = math.isqrt(length)
    return (side, side) if side**2 == length and size[0] == size[1] else None
