"""Any vision tower: built from its config, looked at in any layer, its patches merged by neighbours.

    pixel_values [N, 3, H, W]
      -> tower           [N, extra + P, V], or a feature map [N, V, rows, columns]
      -> look            [N, extra + P, V]      extra: class and register tokens, which every tower has in front
      -> merge_patches   [N, Q, down * across * V]

N images, P = rows * columns patches, V width, Q visual tokens of an image.
"""

import inspect
import math

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, Blip2VisionModel

from .efficientnet_lite import EfficientNetLiteModel

# Towers that `AutoModel` does not build from their config (see VISION_CONFIGS in the configuration).
VISION_TOWERS = {"blip_2_vision_model": Blip2VisionModel, "efficientnet_lite": EfficientNetLiteModel}


def build_vision_tower(config):
    """The tower of a config, without the pooling layer that reads only the class token: nothing here looks at it."""
    tower_class = VISION_TOWERS.get(config.model_type)
    if tower_class is None:
        return AutoModel.from_config(config, **_without_pooling(config))
    tower = tower_class(config)
    if isinstance(tower, Blip2VisionModel):
        tower.post_layernorm.eps = 1e-5  # BLIP-2's ln_vision is a plain LayerNorm; transformers gives it the ViT's 1e-6
    return tower


def sees_images(config):
    """Whether a config is that of a tower that takes images, and nothing else."""
    tower_class = VISION_TOWERS.get(config.model_type) or MODEL_MAPPING.get(type(config), None)
    return getattr(tower_class, "main_input_name", None) == "pixel_values"


def look(tower, pixel_values, layer=-1, **kwargs):
    """(the tower's output, its tokens at a layer [N, extra + P, V]): pixel_values [N, 3, H, W]; -1 is the output.

    A feature map [N, V, rows, columns] becomes tokens in reading order.
    """
    if layer != -1:
        kwargs["output_hidden_states"] = True
    output = tower(pixel_values, return_dict=True, **kwargs)
    tokens = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
    return output, tokens if tokens.ndim == 3 else tokens.flatten(2).mT


def merge_patches(patches, grid, block, fit="pad"):
    """[N, extra + P, V] -> [N, Q, down * across * V]: class and register tokens dropped, neighbours concatenated.

    Args:
        grid: (rows, columns) of the patches.
        block: (down, across) of the patches that become one token, read row by row as the tokens are.
        fit: of a grid that does not divide: "pad" adds zeros at its right and bottom, "pool" averages it down.
    """
    (rows, columns), (down, across) = grid, block
    patches = patches[:, -rows * columns :].unflatten(1, (rows, columns))
    if rows % down or columns % across:
        if fit == "pool":
            smaller = (rows // down * down, columns // across * across)
            patches = nn.functional.adaptive_avg_pool2d(patches.permute(0, 3, 1, 2), smaller).permute(0, 2, 3, 1)
        else:
            patches = nn.functional.pad(patches, (0, 0, 0, -columns % across, 0, -rows % down))
    # [N, rows / down, down, columns / across, across, V], then the two inside a block beside V
    blocks = patches.unflatten(2, (-1, across)).unflatten(1, (-1, down)).transpose(2, 3)
    return blocks.flatten(3).flatten(1, 2)


def measure(config, layer=-1):
    """(rows, columns, width) of a tower's patches at a layer, from one run without weights or memory.

    Raises:
        ValueError: it does not take images alone, not of one size, or its tokens are no grid; one line with its name.
    """
    name = f"the vision tower {config.model_type}"
    size = getattr(config, "image_size", None)
    if not sees_images(config):
        raise ValueError(f"{name}: transformers has no model for it that takes images alone; expected a vision tower")
    with torch.device("meta"):
        tower = build_vision_tower(config).eval()
    _check_inputs(tower, name)
    if not size:
        raise ValueError(f"{name}: its config has no image_size, which the number of visual tokens follows from")
    size = tuple(size) if isinstance(size, list | tuple) else (size, size)
    try:
        with torch.no_grad():
            pixel_values = torch.empty(1, 3, *size, device="meta")
            output, tokens = look(tower, pixel_values, layer, output_hidden_states=True)
    except Exception as error:  # each tower fails in its own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name}: cannot look at an image of {size[0]} x {size[1]} in layer {layer} ({reason})") from error
    grid = _grid(config, output, tokens.shape[1], layer, size)
    if grid is None:
        raise ValueError(f"{name}: gives {tokens.shape[1]} tokens for an image of {size[0]} x {size[1]}, which are no grid")
    return *grid, tokens.shape[2]


def _check_inputs(tower, name):
    """Raises ValueError where a tower wants more than images of one size."""
    needed = [
        parameter.name
        for parameter in inspect.signature(tower.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.name != "pixel_values"
    ]
    if needed:
        raise ValueError(
            f"{name}: wants {', '.join(needed)} beside the image, for images of any size and number of patches (NaFlex or "
            "the like); every image has as many visual tokens here, so take the tower's variant of one resolution"
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


def _without_pooling(config):
    tower_class = MODEL_MAPPING.get(type(config), None)
    takes = inspect.signature(tower_class.__init__).parameters if tower_class else {}
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}
