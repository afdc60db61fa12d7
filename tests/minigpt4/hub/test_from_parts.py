"""MiniGPT-4 from base models: the same model as from the original's files, light and full, and what can go wrong."""

import json
import shutil

import pytest
import torch
from real_templates import byte_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    Qwen2VLConfig,
    RobertaConfig,
)
from vision_parts import write_blip2

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.hub.export import export
from minigpt4.hub.from_parts import check_logits, end_ids, image_token_id, load_config
from minigpt4.inference.named_models import load
from minigpt4.modeling_minigpt4 import parts as parts_of_the_default
from minigpt4.modeling_minigpt4.lora import add_lora
from minigpt4.modeling_minigpt4.own_head import OwnHead
from minigpt4.modeling_minigpt4.repositories import StoredTensors, common_prefix


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
    assert set(StoredTensors(str(light))) == {"model.projection.weight", "model.projection.bias"}
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


@pytest.fixture
def wide(tmp_path):
    """A tiny model whose widths are multiples of 64, as 4-bit weights require, and its parts in folders."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MiniGPT4Config(
        vision_config=Blip2VisionConfig(**sizes, image_size=56, initializer_range=0.02),
        qformer_config=Blip2QFormerConfig(**sizes),
        text_config=LlamaConfig(**sizes, vocab_size=512, pad_token_id=2),
        num_query_tokens=5,
    )
    model = MiniGPT4ForConditionalGeneration(config).eval()
    blip2, llm = write_blip2(model, tmp_path / "wide"), AutoModelForCausalLM.from_config(config.text_config)
    llm.load_state_dict({**llm.state_dict(), **model.lm_head.state_dict(prefix="lm_head.")})
    llm.model.load_state_dict(model.model.language_model.state_dict())
    llm.save_pretrained(tmp_path / "llm")
    origins = {"vision_tower": blip2, "qformer": blip2, "language_model": tmp_path / "llm"}
    config.base_parts = {part: {"repo": str(folder), "revision": None} for part, folder in origins.items()}
    return model


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize(("bits", "dtype", "loss"), [(8, torch.int8, 0.05), (4, torch.uint8, 0.2)])
def test_quantization_leaves_the_projection_alone(bits, dtype, loss, light, wide, tokenizer, tmp_path, picture):
    """Small weights of the frozen parts by bitsandbytes, straight from a repository's files."""
    processor = MiniGPT4Processor.for_model(wide.config, tokenizer)
    folder = export(wide, processor, tmp_path / "model", light=light)
    bits = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, bnb_4bit_compute_dtype=torch.float32)
    small = MiniGPT4ForConditionalGeneration.from_pretrained(folder, quantization_config=bits, device_map="cpu")
    assert small.model.projection.weight.dtype == small.lm_head.weight.dtype == torch.float32
    frozen = (small.model.vision_tower.encoder, small.model.qformer.encoder, small.model.language_model.layers)
    linear = [module.weight.dtype for part in frozen for module in part.modules() if isinstance(module, torch.nn.Linear)]
    assert set(linear) == {dtype}
    inputs = processor(images=picture(), text="<unk> a", return_tensors="pt")
    with torch.inference_mode():
        found, expected = small(**inputs).logits, wide(**inputs).logits
    assert 0 < (found - expected).norm() / expected.norm() < loss
    if light:  # what is trained on small weights is stored light as ever, and for weights of any size
        again = export(small, processor, tmp_path / "again", light=True)
        assert set(StoredTensors(str(again))) == {"model.projection.weight", "model.projection.bias"}
        assert same_weights(load(str(again))[0], wide)
        assert small.config.quantization_config is not None
        with pytest.raises(ValueError, match="adapters are on quantized weights: export light"):
            export(add_lora(small), processor, tmp_path / "full")


def test_a_quantization_config_as_a_dict_spares_the_projection_too(wide, tokenizer, tmp_path):
    folder = export(wide, MiniGPT4Processor.for_model(wide.config, tokenizer), tmp_path / "model")
    bits = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    small = MiniGPT4ForConditionalGeneration.from_pretrained(folder, quantization_config=bits, device_map="cpu")
    assert small.model.projection.weight.dtype == small.lm_head.weight.dtype == torch.float32
    assert small.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    assert bits == {"quant_method": "bitsandbytes", "load_in_8bit": True}


def test_a_layer_unfrozen_by_hand_is_kept_however_often_it_is_saved(parts, tokenizer, tmp_path):
    model = MiniGPT4ForConditionalGeneration.from_parts(**parts)
    processor = MiniGPT4Processor.for_model(model.config, tokenizer)
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    layer = model.get_parameter(name).requires_grad_()
    layer.data.add_(1)
    for number in range(3):
        folder = export(model, processor, tmp_path / str(number), light=True)
        assert set(StoredTensors(str(folder))) == {"model.projection.weight", "model.projection.bias", name}
        model, _ = load(str(folder))
        assert torch.equal(model.get_parameter(name), layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_qformer_is_stored(dtype, parts, tokenizer, tmp_path, picture):
    """The paper's ablation: with its queries, and in the precision that it learned in, whatever that of the frozen parts."""
    fields = {"trained_parts": ["projection", "qformer"]}
    model = MiniGPT4ForConditionalGeneration.from_parts(**parts, config=fields, dtype=dtype)
    processor = MiniGPT4Processor.for_model(model.config, tokenizer)
    inputs = processor(images=picture(), text="<unk> a", return_tensors="pt")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[1] for name in trained} == {"projection", "qformer", "query_tokens"}
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(parameter.grad.any() for name, parameter in trained.items() if "key.bias" not in name)
    torch.optim.SGD(trained.values(), lr=1e-4).step()
    folder = export(model.eval(), processor, tmp_path / "light", light=True)
    assert set(StoredTensors(str(folder))) == set(trained)
    again, _ = load(str(folder), dtype)
    assert same_weights(again, model)
    assert {parameter.dtype for name, parameter in again.named_parameters() if name in trained} == {torch.float32}
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_the_norm_comes_with_the_qformer(parts, blip2, original, tokenizer, tmp_path):
    """Of two BLIP-2s, `ln_vision` is that of the one whose Q-Former is taken: the authors' file has it there, too."""
    other = tmp_path / "other"
    original.model.vision_tower.post_layernorm.weight.data.fill_(3)
    write_blip2(original, other)
    model = MiniGPT4ForConditionalGeneration.from_parts(**parts, qformer=str(other))
    folder = export(model, MiniGPT4Processor.for_model(model.config, tokenizer), tmp_path / "light", light=True)
    for one in (model, load(str(folder))[0]):
        assert same_weights(one, original)


def test_a_projection_of_another_variant(parts, tmp_path):
    projection = tmp_path / "13b.safetensors"
    save_file({"model.projection.weight": torch.zeros(5120, 768), "model.projection.bias": torch.zeros(5120)}, projection)
    with pytest.raises(ValueError, match=r"\(5120, 768\), expected \(48, 24\).*MiniGPT-4 with Vicuna-13B"):
        MiniGPT4ForConditionalGeneration.from_parts(**{**parts, "projection": projection})


def test_a_light_repository_over_a_base_of_another_shape(parts, blip2, tokenizer, tmp_path):
    model = MiniGPT4ForConditionalGeneration.from_parts(**parts)
    folder = export(model, MiniGPT4Processor.for_model(model.config, tokenizer), tmp_path / "light", light=True)
    tensors = {name: tensor[...] for name, tensor in StoredTensors(str(blip2)).items()}
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
    with pytest.raises(ValueError, match="a llama, which has no vision tower; expected a BLIP-2"):
        MiniGPT4ForConditionalGeneration.from_parts(parts["text"], parts["text"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((parity_dir / "llama_tiny" / "config.json").read_text())
    with pytest.raises(OSError, match="no weights there; expected "):
        StoredTensors(str(tmp_path / "empty"))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}
    (tmp_path / "empty" / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(1)}, tmp_path / "empty" / "model-1.safetensors")
    with pytest.raises(ValueError, match=r"model-1\.safetensors does not have the tensor 'b'"):
        StoredTensors(str(tmp_path / "empty"))["b"]


def test_a_file_of_weights_that_is_none(tmp_path):
    file = tmp_path / "model.safetensors"
    for content, message in (
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        (b"x" * 99, "cannot be"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            StoredTensors(str(tmp_path))
    file.unlink()
    torch.save({"a": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"refused, it contains a pickled .*print"):
        StoredTensors(str(tmp_path))


def test_the_token_of_a_picture(tokenizer):
    assert image_token_id(tokenizer, None, "it") == tokenizer.unk_token_id
    assert image_token_id(tokenizer, "</s>", "it") == 2
    with pytest.raises(ValueError, match="it: its vocabulary does not have the image token '<image>'"):
        image_token_id(tokenizer, "<image>", "it")


def test_the_token_of_a_picture_ends_nothing_and_is_never_written():
    """As in Llama-3.2, where only the generation config names one of the ends; a template that joins tokens."""
    reserved = ["<|end_of_text|>", "<|eot_id|>", "<|user|>", "<|reserved_0|>"]
    llama = byte_tokenizer(special=reserved)
    template = "{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m.content }}{% endfor %}"
    ends = [llama.convert_tokens_to_ids(token) for token in reserved[:2]]
    found = llama.convert_tokens_to_ids("<|reserved_0|>")
    assert image_token_id(llama, None, "it", ends, template) == found
    with pytest.raises(ValueError, match=f"the image token '<.reserved_0.>' is id {found}, outside the embedding table"):
        image_token_id(llama, "<|reserved_0|>", "it", ends, template, rows=found)
    assert image_token_id(llama, None, "it", ends[:1], "", rows=found) == ends[1]


def test_smollm2s_unk_ends_documents_and_is_no_picture():
    """It is <|endoftext|>, and no text ever gives it, for the tokenizer knows all bytes: but the LLM has learned it."""
    smollm2 = parts_of_the_default.tokenizer()
    assert smollm2.unk_token == "<|endoftext|>"
    found = image_token_id(smollm2, None, "it", [smollm2.eos_token_id], smollm2.chat_template)
    assert smollm2.convert_ids_to_tokens(found) not in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def test_an_llm_whose_tokenizer_reserves_nothing():
    """GPT-2's has one special token, an end; GPT-NeoX's table has rows that no token has."""
    tokenizer = byte_tokenizer()
    assert image_token_id(tokenizer, None, "it", rows=len(tokenizer) + 1) == len(tokenizer)
    with pytest.raises(ValueError, match="it: its tokenizer reserves no token that could stand for a picture; name one"):
        image_token_id(tokenizer, None, "it", rows=len(tokenizer))


def test_all_that_ends_what_the_llm_writes(parts, blip2, tmp_path, parity_dir):
    """A list stays a list; a template's end is added, for a base model that was not tuned."""
    folder = tmp_path / "llm"
    shutil.copytree(parity_dir / "llama_tiny", folder)
    assert end_ids(str(folder), load_config(str(folder))) == [2]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2, 9]}))
    assert end_ids(str(folder), load_config(str(folder))) == [2, 7, 9]
    template = "{% for m in messages %}{{ m.content }}<s>{% endfor %}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model = MiniGPT4ForConditionalGeneration.from_parts(str(blip2), str(folder))
    assert model.generation_config.eos_token_id == [2, 7, 9, 1]
    model = MiniGPT4ForConditionalGeneration.from_parts(str(blip2), str(folder), template="vicuna")
    assert model.generation_config.eos_token_id == [2, 7, 9]
    assert model.generation_config.turn_ends


def test_the_text_model_of_a_vision_language_model(blip2, tmp_path):
    """Gemma-3-4b and others: their configs have parts of their own, and their tensors other names."""
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    seeing = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = Gemma3Config(
        text_config={**sizes, **ids, "head_dim": 8, "num_key_value_heads": 2, "initializer_range": 0.3},
        vision_config={**seeing, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        **ids,
    )
    torch.manual_seed(0)
    folder, llm = tmp_path / "llm", AutoModelForImageTextToText.from_config(whole).eval()
    llm.save_pretrained(folder)
    byte_tokenizer(special=["<image>"]).save_pretrained(folder)
    model = MiniGPT4ForConditionalGeneration.from_parts(str(blip2), str(folder))
    assert model.config.text_config.model_type == "gemma3_text"
    assert same_weights(model.model.language_model, llm.model.language_model)
    input_ids = torch.tensor([[0, 40, 41, 42]])
    assert torch.allclose(model(input_ids).logits, llm(input_ids).logits, atol=1e-5)
    assert MiniGPT4Config(text_config=whole).text_config.hidden_size == 32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RobertaConfig(is_decoder=True), "RobertaForCausalLM: its head has weights besides one linear layer"),
        (CLIPVisionConfig(), "a clip_vision_model; which transformers has no causal LLM for .AutoModelForCausalLM.;"),
        (Qwen2VLConfig(), "a qwen2_vl; its text model is a qwen2_vl_text, which transformers has no causal LLM for"),
    ],
)
def test_an_llm_that_is_not_supported_is_named(config, message, blip2, tmp_path):
    config.save_pretrained(tmp_path)
    byte_tokenizer(special=["<a>", "<image>"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        MiniGPT4ForConditionalGeneration.from_parts(str(blip2), str(tmp_path))
    assert "\n" not in str(refused.value)


def test_an_llm_whose_logits_are_others_is_caught_where_parts_are_put_together(original):
    check_logits(original)
    original._own_head = OwnHead(GraniteConfig(hidden_size=48, logits_scaling=8.0))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: in this model, logits on text differ from its own by \d"):
        check_logits(original)


def test_a_tensor_that_the_llm_does_not_use_is_named(parts, tmp_path, parity_dir):
    """An LLM whose head has a bias, under a config whose class has none: without it, the logits would differ."""
    shutil.copytree(parity_dir / "llama_tiny", tmp_path / "llm")
    file = tmp_path / "llm" / "model.safetensors"
    save_file({**load_file(file), "lm_head.bias": torch.ones(512)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"LlamaModel: does not use the tensor 'lm_head\.bias' of its repository"):
        MiniGPT4ForConditionalGeneration.from_parts(**{**parts, "text": str(tmp_path / "llm")})


def test_common_prefix():
    names = ["a.b.x", "a.b.y.z", "x", "c.y.z"]
    assert common_prefix(names, ["x", "y.z"]) == "a.b."
    assert common_prefix(names, ["nothing"]) is None
