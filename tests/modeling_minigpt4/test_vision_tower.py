"""Any vision tower: what it says about itself, which of its tokens are patches, and how they are merged."""

import pytest
import torch
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    ConvNextConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    LlamaConfig,
    ResNetConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    SwinConfig,
)

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from minigpt4.modeling_minigpt4.tower_grid import measure
from minigpt4.modeling_minigpt4.vision_tower import look, merge_patches

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}


def numbered(rows, columns, extra=0):
    """[1, extra + rows * columns, 2]: each patch says where it is; class and register tokens say -1."""
    where = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    return torch.cat([torch.full((extra, 2), -1.0), where])[None]


def test_two_by_two_neighbours_of_the_grid_are_merged():
    """14 x 14: four in a row, as they come, joined the end of a row and the start of the next in 7 of 49 tokens."""
    merged = merge_patches(numbered(14, 14, extra=5), (14, 14), (2, 2))
    assert merged.shape == (1, 49, 8)
    assert merged[0, 8].tolist() == [2, 2, 2, 3, 3, 2, 3, 3]  # the second token of the second row
    spread = merged.unflatten(-1, (4, 2))
    assert (spread.amax(2) - spread.amin(2)).eq(1).all()


def test_the_originals_four_in_a_row():
    patches = torch.randn(2, 257, 8)
    assert torch.equal(merge_patches(patches, (16, 16), (1, 4)), patches[:, 1:].reshape(2, 64, 32))


@pytest.mark.parametrize(("side", "block", "padded", "pooled"), [(27, 2, 196, 169), (37, 2, 361, 324), (37, 4, 100, 81)])
def test_a_grid_that_does_not_divide(side, block, padded, pooled):
    """SigLIP so400m at 384 pixels has 27 x 27 patches, DINOv2 at 518 has 37 x 37."""
    patches = numbered(side, side)
    found = merge_patches(patches, (side, side), (block, block))
    assert found.shape == (1, padded, 2 * block**2)
    last = found[0, -1].unflatten(0, (block, block, 2))
    assert last[0, 0].tolist() == [side - side % block] * 2 and not last[-1].any() and not last[:, -1].any()
    found = merge_patches(patches, (side, side), (block, block), fit="pool")
    assert found.shape == (1, pooled, 2 * block**2)
    assert found.mean().item() == pytest.approx(patches.mean().item(), abs=0.1)
    sizes = {"image_size": 14 * side + 6, "patch_size": 14}  # as 384 is not a multiple of 14, either
    config = MiniGPT4Config(vision_config=SiglipVisionConfig(**SIZES, **sizes), patch_merge=f"{block}x{block}")
    assert (config.grid, config.num_image_tokens) == ((side, side), padded)
    config.patch_fit = "pool"
    assert config.num_image_tokens == pooled


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_merge": 4}, r"patch_merge is 4, which does not divide the 14 patches of a row .*use \"2x2\""),
        ({"patch_merge": 0}, "patch_merge is 0; expected"),
        ({"patch_merge": "2*2"}, r"patch_merge is '2\*2'; expected"),
        ({"patch_merge": "2x15"}, "patch_merge is 2x15, more than the vision tower's 14 x 14 patches"),
        ({"patch_fit": "crop"}, "patch_fit is 'crop'; expected"),
        ({"vision_feature_layer": -14}, "vision_feature_layer is -14, but the vision tower has 12 layers"),
    ],
)
def test_what_does_not_fit_a_grid_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        MiniGPT4Config(vision_config=SiglipVisionConfig(), **fields)


def test_a_qformer_reads_the_towers_output():
    with pytest.raises(ValueError, match="vision_feature_layer is -2, but a Q-Former reads the vision tower's output"):
        MiniGPT4Config.preset("vicuna-7b", vision_feature_layer=-2)


STAGED = {
    "convnext": (ConvNextConfig(**STAGES), -1, (2, 2, 32)),
    "convnext, third stage": (ConvNextConfig(**STAGES), -2, (4, 4, 24)),
    "dinov3 convnext": (DINOv3ConvNextConfig(**STAGES), -1, (2, 2, 32)),
    "swin": (SwinConfig(image_size=64, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4), -1, (8, 8, 32)),
}


@pytest.mark.parametrize(("vision_config", "layer", "measured"), STAGED.values(), ids=STAGED)
def test_a_tower_of_stages_is_measured(vision_config, layer, measured, tmp_path):
    config = MiniGPT4Config(vision_config=vision_config, vision_feature_layer=layer)
    assert (*config.vision_grid, config.vision_width) == measured
    config.save_pretrained(tmp_path)
    again = MiniGPT4Config.from_pretrained(tmp_path)
    assert (again.grid, again.feature_width) == (config.grid, config.feature_width)
    with torch.no_grad():
        _, tokens = look(AutoModel.from_config(vision_config).eval(), torch.randn(1, 3, 64, 64), layer)
    rows, columns, width = measured
    assert tokens.shape[2] == width and tokens.shape[1] - rows * columns in (0, 1)


TEXT = LlamaConfig(**{**SIZES, "vocab_size": 64}, pad_token_id=2)
REGISTERS = DINOv3ViTConfig(**SIZES, image_size=56, patch_size=14, num_register_tokens=4)


@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_features_are_those_of_the_layer_without_class_and_register_tokens(layer):
    config = MiniGPT4Config(vision_config=REGISTERS, text_config=TEXT, vision_feature_layer=layer, patch_merge=1)
    model = MiniGPT4ForConditionalGeneration(config).eval().model
    pixel_values = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        output = model.vision_tower(pixel_values, output_hidden_states=True)
        expected = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        assert expected.shape == (2, 1 + 4 + 16, 32)
        assert torch.equal(model.get_vision_features(pixel_values), expected[:, 5:])
        found = model.get_image_features(pixel_values, return_dict=True).pooler_output
        assert torch.equal(found, model.projection(expected[:, 5:]))


def test_a_vit_says_what_it_measures():
    for config in (SiglipVisionConfig(**SIZES), CLIPVisionConfig(**SIZES), REGISTERS):
        ours = MiniGPT4Config(vision_config=config)
        assert (*ours.grid, ours.feature_width) == measure(config) and ours.vision_grid is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Siglip2VisionConfig(),
            r"siglip2_vision_model: needs pixel_attention_mask, spatial_shapes .*\(NaFlex or the like\); .*one resolution",
        ),
        (ResNetConfig(), "resnet: its config has no image_size"),
        (LlamaConfig(), "llama: transformers has no model for it that takes only images"),
        (
            SwinConfig(image_size=[64, 32], depths=[1, 1], num_heads=[1, 1], window_size=4),
            "swin: gives 32 tokens .* form no grid",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_is_no_tower_of_one_resolution_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message) as error:
        measure(config)
    assert "\n" not in str(error.value)
