"""The authors' files as one model: the outputs of the original, whatever the variant, and each thing that can be wrong."""

import copy
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from vision_parts import write_blip2

from minigpt4.cli import main
from minigpt4.hub.authors_checkpoints import load_originals
from minigpt4.hub.convert import eva_vit_weights, logger, mend_llama_config, read_checkpoint
from minigpt4.inference.named_models import load

HEADS = {"vision_config": {"num_attention_heads": 4}, "qformer_config": {"num_attention_heads": 3}}


@pytest.fixture
def files(parity_dir, tmp_path):
    """{option: path} of `minigpt4 convert` for the original's tiny files."""
    checkpoints = parity_dir / "checkpoints"
    dims = tmp_path / "dims.json"
    dims.write_text(json.dumps(HEADS))
    return {
        "projection": checkpoints / "pretrained_minigpt4_tiny.pth",
        "vision": checkpoints / "eva_vit_g.pth",
        "qformer": checkpoints / "blip2_pretrained_flant5xxl.pth",
        "text": parity_dir / "llama_tiny",
        "config": dims,
        "output": tmp_path / "out",
    }


def convert(files, *more):
    """Exit status of `minigpt4 convert` with these options."""
    return main(["convert", *[f"--{name}={path}" for name, path in files.items() if path is not None], *more])


def says(capsys):
    """The last line on stderr."""
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("more", [(), ("--light",)])
def test_gives_the_originals_outputs(files, more, parity, capsys):
    assert convert(files, *more) == 0
    assert "MB" in capsys.readouterr().out
    model, processor = load(str(files["output"]))
    expected = parity("out_vision.pth")
    with torch.inference_mode():
        states = model.model.get_vision_features(expected["pixel_values"])
        projected = model.get_image_features(expected["pixel_values"], return_dict=True).pooler_output
    torch.testing.assert_close(states, expected["qformer_last_hidden_state"], atol=1e-5, rtol=0)
    torch.testing.assert_close(projected, expected["projected"], atol=1e-5, rtol=0)
    assert processor.num_image_tokens == 5
    assert model.generation_config.top_p == 0.9
    assert model.generation_config.turn_ends == processor.turn_ends != []
    stored = load_file(files["output"] / "model.safetensors")
    assert any("language_model" in name for name in stored) == (not more)


def test_names_of_the_originals_own_settings(files, parity_dir):
    assert convert({**files, "config": parity_dir / "tiny_config.json"}) == 0


@pytest.mark.parametrize(
    ("option", "name"),
    [("projection", "runner_saved_checkpoint.pth"), ("qformer", "blip2_pretrained_textbranch.pth")],
)
def test_other_files_of_the_same_model(option, name, files, parity_dir):
    other = {**files, option: parity_dir / "checkpoints" / name}
    model, _ = load_originals(other["projection"], files["vision"], files["text"], other["qformer"], HEADS)
    assert model.config.num_image_tokens == 5


@pytest.mark.parametrize("more", [(), ("--light",)])
@pytest.mark.parametrize("replaced", [("vision",), ("qformer",), ("vision", "qformer")])
def test_a_blip2_in_place_of_files(replaced, more, files, original, tmp_path):
    """`ln_vision` is the Q-Former's, wherever that comes from."""
    blip2 = copy.deepcopy(original)
    if "qformer" not in replaced:
        blip2.model.vision_tower.post_layernorm.weight.data.fill_(3)
    blip2 = write_blip2(blip2, tmp_path / "blip2")
    assert convert(files | dict.fromkeys(replaced, blip2), *more) == 0
    found, expected = load(str(files["output"]))[0].state_dict(), original.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0, msg=name)


def test_the_variant_without_qformer(files, parity_dir, parity):
    files |= {"projection": parity_dir / "checkpoints" / "pretrained_minigpt4_llama2_tiny.pth", "qformer": None}
    assert convert(files) == 0
    model, processor = load(str(files["output"]))
    # Neighboring patches side by side, CLS left out, after a LayerNorm that nobody trained.
    expected = parity("out_vision.pth")
    seen = torch.nn.functional.layer_norm(expected["vit_output"], (32,), eps=1e-5)[:, 1:]
    merged = torch.stack([torch.cat([picture[4 * i + k] for k in range(4)]) for picture in seen for i in range(4)])
    weights = read_checkpoint(files["projection"])
    projected = merged @ weights["llama_proj.weight"].T + weights["llama_proj.bias"]
    with torch.inference_mode():
        found = model.get_image_features(expected["pixel_values"], return_dict=True).pooler_output
    torch.testing.assert_close(found, projected.view(2, 4, -1), atol=1e-5, rtol=0)
    prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    assert "[INST] <Img><unk></Img>" in prompt


def test_position_embeddings_of_another_picture_size(parity_dir):
    checkpoints = parity_dir / "checkpoints"
    state = {**read_checkpoint(checkpoints / "eva_vit_g.pth"), **read_checkpoint(checkpoints / "eva_pos_embed_28px.pth")}
    resized = eva_vit_weights(state, 3, num_patches=16)["model.vision_tower.embeddings.position_embedding"]
    small = state["pos_embed"]
    assert resized.shape == (1, 17, 32)
    assert torch.equal(resized[:, 0], small[:, 0])
    # The cubic convolution of Keys with a = -0.75, pixel centers aligned, edges repeated: 2 x 2 -> 4 x 4.
    kernel = lambda x: 1.25 * x**3 - 2.25 * x**2 + 1 if x < 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)  # noqa: E731
    along = torch.zeros(4, 2)
    for target in range(4):
        centre = (target + 0.5) / 2 - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            along[target, min(max(tap, 0), 1)] += kernel(abs(centre - tap))
    grid = small[0, 1:].float().view(2, 2, 32)
    expected = torch.einsum("yi,xj,ijc->yxc", along, along, grid).flatten(0, 1)
    torch.testing.assert_close(resized[0, 1:].float(), expected, atol=2e-3, rtol=0)  # stored in half precision


def test_vicuna_v0_is_mended_and_it_is_said(files, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logger, "warning", said.append)
    folder = tmp_path / "vicuna"
    shutil.copytree(files["text"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}))
    model, _ = load_originals(files["projection"], files["vision"], str(folder), files["qformer"], HEADS)
    text = model.config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (1, 2, 2)
    assert model.generation_config.eos_token_id == 2
    text.vocab_size, text.pad_token_id = 32001, -1
    assert mend_llama_config(text).pad_token_id == 32000
    assert ["bos 0 and eos 1" in said[0], "32001 tokens" in said[1], len(said)] == [True, True, 2]


def swapped(files):
    return {**files, "vision": files["qformer"], "qformer": files["vision"]}


def pointer(files):
    path = files["output"].with_name("pointer.pth")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    return {**files, "projection": path}


def code(files):
    path = files["output"].with_name("code.pth")
    torch.save({"model": {"llama_proj.weight": print}}, path)
    return {**files, "projection": path}


def not_a_number(files):
    path = files["output"].with_name("nan.pth")
    torch.save({"model": {"llama_proj.weight": torch.full((48, 24), torch.nan), "llama_proj.bias": torch.zeros(48)}}, path)
    return {**files, "projection": path}


def unknown_tensor(files):
    path = files["output"].with_name("more.pth")
    torch.save({"model": {**read_checkpoint(files["projection"]), "lora_a": torch.zeros(1)}}, path)
    return {**files, "projection": path}


def large_projection(files):
    path = files["output"].with_name("13b.pth")
    torch.save({"model": {"llama_proj.weight": torch.zeros(5120, 768), "llama_proj.bias": torch.zeros(5120)}}, path)
    return {**files, "projection": path}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda files: {**files, "projection": files["output"]}, "no such file; expected a checkpoint"),
        (swapped, "the tensor 'pos_embed' is missing; is it the wrong file?"),
        (pointer, "a git-lfs pointer, not the file itself"),
        (code, "refused, it contains a pickled"),
        (not_a_number, "model.projection.weight has values that are not finite numbers"),
        (unknown_tensor, "the tensor 'lora_a' is not known"),
        (
            large_projection,
            "expect (48, 24); give the vision tower, Q-Former and LLM that it was trained with; it is that of",
        ),
        (lambda files: {**files, "qformer": None}, "llama_proj.weight has shape (48, 24), these parts expect (48, 128)"),
        (lambda files: {**files, "text": "nobody/nothere"}, "nobody/nothere"),
        (lambda files: {**files, "vision": "nobody/blip2@abc"}, "nobody/blip2@abc: not the folder or Hub repository"),
        (
            lambda files: {**files, "vision": "no such/name here"},
            "no such/name here: not the folder or Hub repository of a model",
        ),
        (lambda files: {**files, "qformer": "nothere/blip2.pth"}, "nothere/blip2.pth: no such file; expected a checkpoint"),
        (lambda files: {**files, "vision": files["text"]}, "a llama, which has no vision tower; expected a BLIP-2"),
        (lambda files: {**files, "qformer": files["text"]}, "has no qformer_config; expected a BLIP-2"),
        (lambda files: {**files, "vision": files["config"].parent}, "not the folder or Hub repository of a model"),
        (lambda files: {**files, "config": None}, "its shapes do not tell the heads; give them with --config"),
        (lambda files: {**files, "config": files["vision"]}, "cannot be read as JSON"),
    ],
)
def test_one_line_and_no_output(spoil, message, files, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert convert(spoil(files)) == 2
    line = says(capsys)
    assert line.startswith("minigpt4 convert: ") and message in line
    assert not files["output"].exists()
