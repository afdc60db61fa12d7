"""The original's checkpoints are read whole: each tensor lands somewhere or is a known leftover. Values: see parity."""

import argparse
import warnings

import pytest
import torch

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from minigpt4.hub.convert import eva_vit_weights, projection_weights, qformer_weights, read_checkpoint

EVA, QFORMER, TEXT_BRANCH = "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "blip2_pretrained_textbranch.pth"


@pytest.fixture
def checkpoint(parity_dir):
    """checkpoint(file name): its tensors."""
    return lambda name: read_checkpoint(parity_dir / "checkpoints" / name)


def test_eva_drops_the_last_block_and_fuses_the_biases(checkpoint):
    state = checkpoint(EVA)
    weights = eva_vit_weights(state, num_layers=3)
    assert not [name for name in weights if "layers.3" in name]
    fused = weights["model.vision_tower.encoder.layers.1.self_attn.qkv.bias"]
    query, key, value = fused.chunk(3)
    assert torch.equal(query, state["blocks.1.attn.q_bias"])
    assert torch.equal(value, state["blocks.1.attn.v_bias"])
    assert not key.any()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert len(eva_vit_weights(state, num_layers=4)) > len(weights)  # a file without the extra block


def test_qformer_file_with_text_branch_gives_the_same_names(checkpoint):
    weights = qformer_weights(checkpoint(QFORMER))
    assert weights.keys() == qformer_weights(checkpoint(TEXT_BRANCH)).keys()
    assert "model.vision_tower.post_layernorm.weight" in weights


@pytest.mark.parametrize("name", ["pretrained_minigpt4_tiny.pth", "runner_saved_checkpoint.pth"])
def test_projection_file_may_hold_leftover_buffers(checkpoint, name):
    weights = projection_weights(checkpoint(name))
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "model.projection.weight": (48, 24),
        "model.projection.bias": (48,),
    }


def test_the_files_together_are_all_but_the_llm_of_the_published_model():
    """By names of the full-size model; fixtures of the published files' names, without their values."""
    block = ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.qkv.weight", "attn.proj.weight"]
    block += ["attn.proj.bias", "attn.q_bias", "attn.v_bias"]
    block += [f"mlp.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    eva = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"]
    eva += [f"blocks.{layer}.{name}" for layer in range(40) for name in block]
    bert = []
    for layer in range(12):
        attention = ["attention"] if layer % 2 else ["attention", "crossattention"]
        parts = [f"self.{part}" for part in ("query", "key", "value")] + ["output.dense", "output.LayerNorm"]
        parts = [f"{kind}.{part}" for kind in attention for part in parts]
        parts += ["intermediate_query.dense", "output_query.dense", "output_query.LayerNorm"]
        bert += [f"Qformer.bert.encoder.layer.{layer}.{part}" for part in parts]
    bert += ["Qformer.bert.embeddings.LayerNorm", "ln_vision", "t5_proj"]
    bert = ["query_tokens", *[f"{part}.{kind}" for part in bert for kind in ("weight", "bias")]]
    weights = {
        **eva_vit_weights(dict.fromkeys(eva, torch.zeros(1)), num_layers=39),
        **qformer_weights(dict.fromkeys(bert, torch.zeros(1))),
        **projection_weights({"llama_proj.weight": torch.zeros(1), "llama_proj.bias": torch.zeros(1)}),
    }
    with torch.device("meta"):
        names = MiniGPT4ForConditionalGeneration(MiniGPT4Config.preset("vicuna-7b")).state_dict().keys()
    assert weights.keys() == {name for name in names if not name.startswith(("model.language_model.", "lm_head."))}


@pytest.mark.parametrize(
    ("convert", "file", "stranger"),
    [
        (lambda state: eva_vit_weights(state, 3), EVA, "blocks.0.attn.relative_position_bias_table"),
        (lambda state: eva_vit_weights(state, 3), EVA, "blocks.3.extra"),
        (qformer_weights, QFORMER, "Qformer.bert.pooler.dense.weight"),
        (qformer_weights, TEXT_BRANCH, "visual_encoder.cls_token"),
        (projection_weights, "runner_saved_checkpoint.pth", "llama_model.model.layers.0.lora_A.weight"),
    ],
)
def test_unknown_tensor_is_named(checkpoint, convert, file, stranger):
    with pytest.raises(ValueError, match=f"{stranger}.* not known"):
        convert({**checkpoint(file), stranger: torch.zeros(1)})


@pytest.mark.parametrize(
    ("convert", "file", "name"),
    [
        (lambda state: eva_vit_weights(state, 3), EVA, "blocks.2.attn.v_bias"),
        (qformer_weights, QFORMER, "Qformer.bert.encoder.layer.2.crossattention.self.key.bias"),
        (qformer_weights, QFORMER, "query_tokens"),
        (projection_weights, "pretrained_minigpt4_tiny.pth", "llama_proj.bias"),
    ],
)
def test_missing_tensor_is_named(checkpoint, convert, file, name):
    state = checkpoint(file)
    del state[name]
    with pytest.raises(ValueError, match=f"{name}.* is missing"):
        convert(state)


def test_config_of_another_depth_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"2 blocks: the tensor 'blocks\.3\..*not known"):
        eva_vit_weights(checkpoint(EVA), num_layers=2)
    with pytest.raises(ValueError, match=r"5 blocks: the tensor 'blocks\.4\..*missing"):
        eva_vit_weights(checkpoint(EVA), num_layers=5)


def test_another_kind_of_checkpoint_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"projection checkpoint: the tensor .* is missing"):
        projection_weights(checkpoint(EVA))


def test_checkpoint_is_read_flat_or_under_model(tmp_path):
    for content in ({"w": torch.ones(2)}, {"model": {"w": torch.ones(2)}, "epoch": 3}):
        torch.save(content, tmp_path / "x.pth")
        assert read_checkpoint(tmp_path / "x.pth")["w"].tolist() == [1, 1]
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pth")["w"].tolist() == [1, 1]


class Bomb:
    """Pickled, it would run code when it is read."""

    def __reduce__(self):
        return print, ("pickled code ran",)


def write_checkpoint(content, legacy=False):
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def cut_in_half(write):
    def write_half(path):
        write(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write_half


BAD_FILES = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.touch(), "not a checkpoint"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html>"), "not a checkpoint"),
    "git-lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "pickle": (lambda path: path.write_bytes(b"\x80\x02garbage"), "damaged"),
    "truncated": (cut_in_half(write_checkpoint({"w": torch.ones(500)})), "damaged, truncated"),
    "truncated, old": (cut_in_half(write_checkpoint({"w": torch.ones(500)}, legacy=True)), "damaged, truncated"),
    "code": (write_checkpoint({"model": Bomb()}), "refused, it contains a pickled .*print"),
    "code, old": (write_checkpoint({"model": Bomb()}, legacy=True), "refused, it contains a pickled .*print"),
    "objects": (write_checkpoint({"model": {}, "a": argparse.Namespace()}), "a pickled argparse.Namespace"),
    "list": (write_checkpoint([torch.ones(1)]), "no named tensors"),
    "numbers": (write_checkpoint({"model": {"w": 1}}), "no named tensors"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_is_one_clear_line(kind, tmp_path, capsys):
    write, message = BAD_FILES[kind]
    path = tmp_path / "x.pth"
    write(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message) as error:
            read_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""
