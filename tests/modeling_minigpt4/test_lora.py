"""LoRA on the LLM: what learns, what is stored and who can read it, and what does not fit."""

import copy
import json

import pytest
import torch
from elsewhere import answer, consume
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from minigpt4 import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.hub.export import export
from minigpt4.inference.named_models import load
from minigpt4.modeling_minigpt4.lora import add_lora, load_lora


@pytest.fixture
def base(parts):
    """The original's tiny model, which knows where its parts come from."""
    return MiniGPT4ForConditionalGeneration.from_parts(**parts)


@pytest.fixture
def processor(base, tokenizer):
    return MiniGPT4Processor.for_model(base.config, tokenizer)


@pytest.fixture
def inputs(processor, picture):
    return processor(images=picture(), text="<unk> a photo", return_tensors="pt")


@pytest.fixture
def adapted(base):
    """A copy of it with adapters that change its output."""
    model = add_lora(copy.deepcopy(base), rank=4, alpha=8)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def logits(model, inputs):
    return model.eval()(**inputs).logits


def test_adapters_and_projection_learn_and_nothing_else(base, inputs):
    before = logits(base, inputs)
    model = add_lora(base, rank=4, dropout=0.0)
    assert torch.equal(logits(model, inputs), before)  # B is zero
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = len(model.model.language_model.layers)
    assert len(trained) == 2 + 2 * 2 * layers  # projection, and A and B of query and value
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # in the first step only B has a gradient
        optimizer.zero_grad()
        model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    assert {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])} == trained
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in trained)


def test_a_light_repository_has_the_adapters_as_peft_has_them(base, adapted, processor, inputs, tmp_path):
    expected = logits(adapted, inputs)
    assert not torch.allclose(expected, logits(base, inputs), atol=1e-2)
    folder = export(adapted, processor, tmp_path / "light", light=True)
    assert set(load_file(folder / "model.safetensors")) == {"model.projection.weight", "model.projection.bias"}
    assert {path.name for path in (folder / "lora").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((folder / "lora" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert "\npeft>=" in (folder / "requirements.txt").read_text()
    assert "LoRA adapters of the language model" in (folder / "README.md").read_text()
    again, _ = load(str(folder))
    assert torch.equal(logits(again, inputs), expected)
    trained = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert torch.equal(logits(PeftModel.from_pretrained(base, folder / "lora"), inputs), expected)
    export(again, processor, folder, light=True)  # what was loaded replaces what it was loaded from
    assert torch.equal(logits(load(str(folder))[0], inputs), expected)


def test_a_full_repository_has_them_merged(base, adapted, processor, inputs, tmp_path):
    expected = logits(adapted, inputs)
    folder = export(adapted, processor, tmp_path / "full")
    assert torch.equal(logits(adapted, inputs), expected)  # the model stays as it is
    assert not (folder / "lora").exists()
    assert set(load_file(folder / "model.safetensors")) == set(base.state_dict())
    again, _ = load(str(folder))
    assert again.config.trained_parts == ["projection"]
    torch.testing.assert_close(logits(again, inputs), expected, atol=1e-5, rtol=0)


def test_every_weight_and_the_adapters_in_one_folder(adapted, inputs, tmp_path):
    """What `save_pretrained` does for a model that names no base parts."""
    adapted.config.base_parts = None
    adapted.save_pretrained(tmp_path / "all")
    again = MiniGPT4ForConditionalGeneration.from_pretrained(tmp_path / "all")
    assert torch.equal(logits(again, inputs), logits(adapted, inputs))


def test_precision_of_a_half_precision_llm(parts, processor, inputs, tmp_path):
    model = add_lora(MiniGPT4ForConditionalGeneration.from_parts(**parts, dtype=torch.bfloat16))
    folder = export(model, processor, tmp_path / "light", light=True)
    again, _ = load(str(folder), "bfloat16")
    for name, parameter in again.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora" in name or ".projection" in name[:17] else torch.bfloat16), name
    assert torch.equal(logits(again, inputs), logits(model, inputs))


def test_adapters_go_into_a_model_in_place(base, adapted, processor, inputs, tmp_path):
    folder = export(adapted, processor, tmp_path / "light", light=True)
    model = add_lora(copy.deepcopy(base), rank=4, alpha=8)
    parameters = dict(model.named_parameters())
    load_lora(model, folder)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert torch.equal(logits(model, inputs), logits(adapted, inputs))
    with pytest.raises(ValueError, match=r"has for '.*lora_A\.weight' \(4, 48\), the model expects \(2, 48\)"):
        load_lora(add_lora(copy.deepcopy(base), rank=2, alpha=8), folder)
    with pytest.raises(ValueError, match="its adapters have lora_alpha 8, the model's 16"):
        load_lora(add_lora(copy.deepcopy(base), rank=4), folder)
    file = folder / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.more": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"has for 'more' \(1,\), the model expects no such tensor"):
        load(str(folder))
    for damaged in (file, folder / "lora" / "adapter_config.json"):
        damaged.write_bytes(damaged.read_bytes()[:20])
        with pytest.raises(ValueError, match="its adapters in lora/ are damaged"):
            load_lora(adapted, folder)
    file.unlink()
    with pytest.raises(OSError, match=r"lora/adapter_model\.safetensors"):
        load(str(folder))


def test_modules_that_the_llm_does_not_have(base):
    with pytest.raises(
        ValueError, match="no modules called 'c_attn'; its linear layers are down_proj, gate_proj, k_proj, o"
    ):
        add_lora(base, target_modules=["q_proj", "c_attn"])
    with pytest.raises(ValueError, match="already has adapters"):
        add_lora(add_lora(base))


@pytest.mark.slow
def test_loads_without_this_package_and_saves_again(adapted, processor, picture, tmp_path, monkeypatch):
    folder, again = tmp_path / "exported", tmp_path / "again"
    adapted.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=2)
    export(adapted, processor, folder, light=True)
    report = consume(folder.name, again, picture())
    monkeypatch.chdir(tmp_path)
    assert report["answers"] == dict.fromkeys(report["answers"], answer(adapted.eval(), processor)[0])
    assert (again / "lora" / "adapter_model.safetensors").is_file()
    assert (again / "model.safetensors").stat().st_size < 10_000
