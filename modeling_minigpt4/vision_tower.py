"""Any vision tower: built from its config, read at any layer, with neighbouring patches merged.

    pixel_values [N, 3, H, W]
      -> tower           [N, extra + P, V], or a feature map [N, V, rows, columns]
      -> look            [N, extra + P, V]      extra: class and register tokens, which every tower has in front
      -> merge_patches   [N, Q, down * across * V]

N images, P = rows * columns patches, V width, Q visual tokens per image. The tower of the embedded default is at the end,
because transformers has no such model.
"""

import inspect

import torch
from torch import nn
from torch.nn import functional as F
from transformers import MODEL_MAPPING, AutoModel, Blip2VisionModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from ..configuration.configuration_minigpt4 import EfficientNetLiteConfig


def build_vision_tower(config):
    """The tower of a config, without the pooling layer over the class token, which is not used here."""
    tower_class = VISION_TOWERS.get(config.model_type)
    if tower_class is None:
        return AutoModel.from_config(config, **_without_pooling(config))
    tower = tower_class(config)
    if isinstance(tower, Blip2VisionModel):
        tower.post_layernorm.eps = 1e-5  # BLIP-2's ln_vision is a plain LayerNorm; transformers gives it the ViT's 1e-6
    return tower


def look(tower, pixel_values, layer=-1, **kwargs):
    """(the tower's output, its tokens at a layer [N, extra + P, V]) for pixel_values [N, 3, H, W]; layer -1 is the output.

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
        block: (down, across): the patches that become one token, read row by row as the tokens are.
        fit: how to treat a grid that does not divide: "pad" adds zeros at its right and bottom, "pool" averages it down.
    """
    (rows, columns), (down, across) = grid, block
    patches = patches[:, -rows * columns :].unflatten(1, (rows, columns))
    if rows % down or columns % across:
        if fit == "pool":
            smaller = (rows // down * down, columns // across * across)
            patches = F.adaptive_avg_pool2d(patches.permute(0, 3, 1, 2), smaller).permute(0, 2, 3, 1)
        else:
            patches = F.pad(patches, (0, 0, 0, -columns % across, 0, -rows % down))
    # [N, rows / down, down, columns / across, across, V], then the two inside a block beside V
    blocks = patches.unflatten(2, (-1, across)).unflatten(1, (-1, down)).transpose(2, 3)
    return blocks.flatten(3).flatten(1, 2)


def _without_pooling(config):
    tower_class = MODEL_MAPPING.get(type(config), None)
    takes = inspect.signature(tower_class.__init__).parameters if tower_class else {}
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


# EfficientNet-Lite0: kernel, stride, expansion, channels, repeats of its seven stages.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM_CHANNELS = 32
POSITION_SCALE = 0.5  # largest entry of the position code, beside features of unit variance
IMAGES_AT_ONCE = 4  # on a CPU: what fits its cache; a batch of 16 takes up to 50% longer per image


class SameConv(nn.Conv2d):
    """Convolution with "SAME" padding and, unless `linear`, ReLU6: [N, C, H, W] -> [N, C', H', W'].

    The batch normalisation after each convolution is folded into its weight and bias (parts.py): the tower is frozen.
    """

    def __init__(self, in_channels, out_channels, kernel, stride=1, groups=1, linear=False):
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups)
        self.linear = linear

    def forward(self, hidden):
        left, right, top, bottom = self._same_padding(*hidden.shape[-2:])
        weight = self.weight
        if (left, top) != (right, bottom):  # padding the kernel in front has the effect of padding the image: no large copy
            weight = F.pad(weight, (right - left, 0, bottom - top, 0))
        hidden = F.conv2d(hidden, weight, self.bias, self.stride, (bottom, right), groups=self.groups)
        return hidden if self.linear else F.relu6(hidden, inplace=True)

    def _same_padding(self, height, width):
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (height, width))
        return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter by depth, narrow by 1x1 without activation; added to its input where the shapes agree."""

    def __init__(self, in_channels, out_channels, kernel, stride, expansion):
        super().__init__()
        width = in_channels * expansion
        self.expand = SameConv(in_channels, width, 1) if expansion != 1 else nn.Identity()
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.project = SameConv(width, out_channels, 1, linear=True)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, hidden):
        output = self.project(self.depthwise(self.expand(hidden)))
        return hidden + output if self.residual else output


class EfficientNetLiteModel(PreTrainedModel):
    """EfficientNet-Lite0, the tower of the embedded default (Tan & Le 2019; TensorFlow's "lite" variant, 2020).

        pixel_values [N, 3, H, W] -> stem -> 16 inverted residual blocks -> head [N, 1280, H/32, W/32]
                                  -> average over a `pool_grid` x `pool_grid` grid [N, P, 1280], row by row
                                  -> LayerNorm without parameters -> plus a fixed code of each cell's position

    Lite means ReLU6 everywhere, no squeeze-and-excitation, stem and head not scaled. Convolutions pad like TensorFlow's
    "SAME" (one extra pixel on the right and bottom when the stride is 2), since the weights were trained there.
    """

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["InvertedResidual"]
    # It has no attention, so it supports whichever implementation the LLM uses.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config):
        super().__init__(config)
        self.stem = SameConv(3, STEM_CHANNELS, 3, stride=2)
        blocks, channels = [], STEM_CHANNELS
        for kernel, stride, expansion, out_channels, repeats in STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(channels, out_channels, kernel, stride if repeat == 0 else 1, expansion))
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(channels, config.hidden_size, 1)
        self.post_init()

    def forward(self, pixel_values, **kwargs):
        """pixel_values: float [N, 3, H, W] scaled to (x - 127) / 128. Returns `BaseModelOutput` with [N, P, hidden]."""
        at_once = IMAGES_AT_ONCE if pixel_values.device.type == "cpu" else len(pixel_values)
        hidden = torch.cat([self._cells(some) for some in pixel_values.split(max(1, at_once))])
        hidden = hidden.flatten(2).transpose(1, 2).float()
        hidden = F.layer_norm(hidden, hidden.shape[-1:]) + _position_code(self.config, hidden.device)
        return BaseModelOutput(last_hidden_state=hidden.to(self.stem.weight.dtype))

    def _cells(self, pixel_values):
        """[N, 3, H, W] -> averages over the grid's cells, [N, hidden, pool_grid, pool_grid]."""
        # A depthwise convolution on a CPU is several times faster with the channels innermost, in bf16 above all.
        hidden = pixel_values.to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        hidden = self.stem(hidden)
        for block in self.blocks:
            hidden = block(hidden)
        return F.adaptive_avg_pool2d(self.head(hidden), self.config.pool_grid)


def _position_code(config, device):
    """[pool_grid ** 2, hidden]: cosines of a cell's row in the first half of the channels, its column in the second.

    A convolution's output hardly encodes position: without this code a linear probe finds the column of a cell in 71% of
    cases, and questions about left and right stay unanswered. A ViT has position embeddings for this.
    """
    cells = torch.arange(config.pool_grid, device=device) + 0.5
    frequencies = torch.arange(1, config.hidden_size // 2 + 1, device=device)
    code = POSITION_SCALE * torch.cos(torch.pi * cells[:, None] * frequencies / config.pool_grid)
    rows, columns = code.repeat_interleave(config.pool_grid, 0), code.repeat(config.pool_grid, 1)
    return torch.cat([rows, columns], dim=1)


# Towers that `AutoModel` does not build from their config (see VISION_CONFIGS in the configuration).
VISION_TOWERS = {"blip_2_vision_model": Blip2VisionModel, "efficientnet_lite": EfficientNetLiteModel}
