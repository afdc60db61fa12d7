"""MiniGPT-4 from base models: the same model as from the original's files, light and full, and what can go wrong."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Blip2Config,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    OPTConfig,
)

from minigpt4 import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.modeling_minigpt4.export import export
from minigpt4.modeling_minigpt4.from_parts import image_token_id
from minigpt4.modeling_minigpt4.repositories import common_prefix, stored_tensors, weight_map
from minigpt4.models import load


@pytest.fixture
def blip2(original, tmp_path):
    """Folder of a BLIP-2 with the original's vision side, in two shards: the second holds another LLM alone."""
    folder, model = tmp_path / "blip2", original.model
    folder.mkdir()
    seeing = {f"vision_model.{name}": tensor for name, tensor in model.vision_tower.state_dict().items()}
    seeing |= {f"qformer.{name}": tensor for name, tensor in model.qformer.state_dict().items()}
    seeing["query_tokens"] = model.query_tokens.data
    speaking = {"language_model.model.decoder.embed_tokens.weight": torch.zeros(9, 9)}
    shards = {"model-00001-of-00002.safetensors": seeing, "model-00002-of-00002.safetensors": speaking}
    for name, tensors in shards.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, {"format": "pt"})
    index = {key: name for name, tensors in shards.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = original.config
    Blip2Config(
        vision_config=config.vision_config.to_dict(),
        qformer_config=config.qformer_config.to_dict(),
        text_config=OPTConfig(hidden_size=16, ffn_dim=16, num_attention_heads=2, num_hidden_layers=1).to_dict(),
        num_query_tokens=config.num_query_tokens,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def parts(blip2, parity_dir):
    """Arguments of `from_parts` for the original's tiny model."""
    projection = parity_dir / "checkpoints" / "pretrained_minigpt4_tiny.pth"
    return {"vision": str(blip2), "text": str(parity_dir / "llama_tiny"), "projection": projection}


def same_weights(model, other):
    """Whether two models have the same tensors, bit by bit."""
    found, expected = model.state_dict(), other.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_equals_the_original(parts, original):
    model = MiniGPT4ForConditionalGeneration.from_parts(**parts)
    assert same_weights(model, original)
    assert not model.training
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "model.projection.weight",
        "model.projection.bias",
    ]
    assert model.model.vision_tower.post_layernorm.eps == 1e-5


def test_the_llm_of_a_blip2_is_never_opened(parts, blip2):
    (blip2 / "model-00002-of-00002.safetensors").unlink()
    MiniGPT4ForConditionalGeneration.from_parts(**parts)


def test_dtype_holds_for_all_but_the_projection(parts):
    model = MiniGPT4ForConditionalGeneration.from_parts(**parts, dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in model.named_parameters() if "model.projection." not in name}
    assert set(dtypes.values()) == {torch.bfloat16}
    assert model.model.projection.weight.dtype == torch.float32


def test_light_and_full_give_the_same_model(parts, original, tokenizer, tmp_path):
    model = MiniGPT4ForConditionalGeneration.from_parts(**parts)
    processor = MiniGPT4Processor.for_model(model.config, tokenizer)
    light = export(model, processor, tmp_path / "light", light=True)
    full = export(model, processor, tmp_path / "full")
    assert set(stored_tensors(str(light), weight_map(str(light)))) == {"model.projection.weight", "model.projection.bias"}
    for folder in (light, full):
        again, _ = load(str(folder))
        assert same_weights(again, original)
        assert again.generation_config.max_new_tokens == 300


def test_a_fresh_projection_is_a_linear_layer_as_pytorch_draws_it(parts):
    torch.manual_seed(0)
    first = MiniGPT4ForConditionalGeneration.from_parts(parts["vision"], parts["text"]).model.projection
    second = MiniGPT4ForConditionalGeneration.from_parts(parts["vision"], parts["text"]).model.projection
    assert not torch.equal(first.weight, second.weight)
    bound = first.in_features**-0.5
    assert 0.9 * bound < first.weight.abs().max() <= bound
    assert first.bias.any()


def test_without_qformer_the_norm_of_blip2_is_not_taken(parts, parity_dir, tokenizer, tmp_path):
    projection = parity_dir / "checkpoints" / "pretrained_minigpt4_llama2_tiny.pth"
    model = MiniGPT4ForConditionalGeneration.from_parts(**{**parts, "projection": projection}, qformer=None)
    folder = export(model, MiniGPT4Processor.for_model(model.config, tokenizer), tmp_path / "light", light=True)
    for one in (model, load(str(folder))[0]):
        norm = one.model.vision_tower.post_layernorm
        assert norm.weight.eq(1).all() and norm.bias.eq(0).all()
    assert model.config.num_image_tokens == 4


def test_without_qformer_and_with_another_tower_and_llm(tmp_path, tokenizer, picture):
    """Any vision tower and any causal LLM, whatever they call their tensors; an LLM in PyTorch's own format."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=56, patch_size=14))
    tower.save_pretrained(tmp_path / "tower")
    llm = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=512, n_embd=48, n_layer=2, n_head=4))
    llm.config.save_pretrained(tmp_path / "llm")
    torch.save(llm.state_dict(), tmp_path / "llm" / "pytorch_model.bin")
    tokenizer.save_pretrained(tmp_path / "llm")
    model = MiniGPT4ForConditionalGeneration.from_parts(str(tmp_path / "tower"), str(tmp_path / "llm"), image_token="<unk>")
    for mine, theirs in ((model.model.vision_tower, tower), (model.model.language_model, llm.transformer)):
        assert same_weights(mine, theirs)
    assert model.model.qformer is None
    assert model.config.num_image_tokens == 4
    processor = MiniGPT4Processor.for_model(model.config, tokenizer)
    inputs = processor(images=picture(), text="<unk> a", return_tensors="pt")
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("light", [False, True])
def test_quantization_leaves_the_projection_alone(parts, light, tokenizer, tmp_path, parity):
    """int8 weights of the frozen parts by bitsandbytes, straight from a repository's files."""
    model = MiniGPT4ForConditionalGeneration.from_parts(**parts)
    folder = export(model, MiniGPT4Processor.for_model(model.config, tokenizer), tmp_path / "model", light=light)
    small = MiniGPT4ForConditionalGeneration.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    assert small.model.projection.weight.dtype == small.lm_head.weight.dtype == torch.float32
    assert small.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    inputs = {
        "input_ids": torch.tensor([[1, 0, 0, 0, 0, 0, 9]]),
        "pixel_values": parity("out_vision.pth")["pixel_values"][:1],
    }
    with torch.inference_mode():
        found, expected = small(**inputs).logits, model(**inputs).logits
    assert 0 < (found - expected).norm() / expected.norm() < 0.05


def test_a_projection_of_another_variant(parts, tmp_path):
    projection = tmp_path / "13b.safetensors"
    save_file({"model.projection.weight": torch.zeros(5120, 768), "model.projection.bias": torch.zeros(5120)}, projection)
    with pytest.raises(ValueError, match=r"\(5120, 768\), expected \(48, 24\).*MiniGPT-4 with Vicuna-13B"):
        MiniGPT4ForConditionalGeneration.from_parts(**{**parts, "projection": projection})


def test_a_light_repository_over_a_base_of_another_shape(parts, blip2, tokenizer, tmp_path):
    model = MiniGPT4ForConditionalGeneration.from_parts(**parts)
    folder = export(model, MiniGPT4Processor.for_model(model.config, tokenizer), tmp_path / "light", light=True)
    tensors = {name: tensor[...] for name, tensor in stored_tensors(str(blip2), weight_map(str(blip2))).items()}
    tensors["query_tokens"] = torch.zeros(1, 7, 24)
    (blip2 / "model.safetensors.index.json").unlink()
    save_file(tensors, blip2 / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model.query_tokens' has shape \(1, 7, 24\), expected \(1, 5, 24\)"):
        load(str(folder))


def test_a_base_that_lacks_a_tensor(parts, blip2):
    index = json.loads((blip2 / "model.safetensors.index.json").read_text())
    del index["weight_map"]["qformer.layernorm.weight"]
    (blip2 / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"missing: model\.qformer.layernorm\.weight, the first of 1$"):
        MiniGPT4ForConditionalGeneration.from_parts(**parts)


def test_repositories_that_are_something_else(parts, tmp_path, parity_dir):
    with pytest.raises(OSError, match="nothere"):
        MiniGPT4ForConditionalGeneration.from_parts(vision=str(tmp_path / "nothere"), text=parts["text"])
    with pytest.raises(ValueError, match="has no qformer_config; expected a BLIP-2"):
        MiniGPT4ForConditionalGeneration.from_parts(parts["vision"], parts["text"], qformer=parts["text"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((parity_dir / "llama_tiny" / "config.json").read_text())
    with pytest.raises(OSError, match="no weights there; expected "):
        weight_map(str(tmp_path / "empty"))


def test_a_file_of_weights_that_is_none(tmp_path):
    file = tmp_path / "model.safetensors"
    for content, message in (
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        (b"x" * 99, "cannot be"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            weight_map(str(tmp_path))
    file.unlink()
    torch.save({"a": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        weight_map(str(tmp_path))


def test_the_token_of_a_picture(tokenizer):
    assert image_token_id(tokenizer, None, "it") == tokenizer.unk_token_id
    assert image_token_id(tokenizer, "</s>", "it") == 2
    with pytest.raises(ValueError, match="it: its vocabulary does not hold the image token '<image>'"):
        image_token_id(tokenizer, "<image>", "it")


def test_common_prefix():
    names = ["a.b.x", "a.b.y.z", "x", "c.y.z"]
    assert common_prefix(names, ["x", "y.z"]) == "a.b."
    assert common_prefix(names, ["nothing"]) is None
