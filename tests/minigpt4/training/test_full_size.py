"""Every shipped recipe of a published size, on PyTorch's meta device: nothing is downloaded, and no weight exists.

It builds from its parts' configs, freezes, counts, groups, and takes a step forward and backward, at the full size.
"""

from contextlib import nullcontext

import pytest
import torch
from full_size import LLMS, write_blip2_config, write_llm

from minigpt4.cli.memory import recipe_config
from minigpt4.configuration.recipe import RECIPES, load_recipe
from minigpt4.inference.memory import empty_model
from minigpt4.modeling_minigpt4.lora import add_lora
from minigpt4.training.frozen_llm import FrozenLLM
from minigpt4.training.grouped_loss import may_group

pytestmark = pytest.mark.slow

FULL = sorted(path.stem for path in RECIPES.glob("*.yaml") if load_recipe(path).model.text in LLMS)
LLM_PARAMETERS = {  # as published; v0 has a row more in its embeddings and its head
    "Vision-CAIR/vicuna-7b": 6_738_415_616 + 2 * 4096,
    "Vision-CAIR/vicuna": 13_015_864_320 + 2 * 5120,
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
}
PROJECTION = {"vicuna-13b": 769 * 5120, "llama2-7b-chat": 5633 * 4096, "no-qformer": 5633 * 4096}
PROJECTION["three-layers"] = 769 * 4096 + 2 * 4097 * 4096


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """part(name): the folder of a base part, config and tokenizer only."""
    folders = {}

    def find(name):
        if name not in folders:
            folder = tmp_path_factory.mktemp(name.replace("/", "--"))
            folders[name] = str(write_llm(name, folder) if name in LLMS else write_blip2_config(folder))
        return folders[name]

    return find


def test_there_is_a_recipe_for_every_published_size_and_ablation():
    kinds = {name.partition("-")[2] for name in FULL}
    assert {"vicuna-7b", "vicuna-13b", "llama2-7b-chat", "no-qformer", "three-layers", "qformer-trained", "lora"} <= kinds


@pytest.mark.parametrize("name", FULL)
def test_the_recipe_builds_freezes_counts_and_groups_at_full_size(name, part, monkeypatch):
    recipe = load_recipe(name)
    section, text = recipe.model, recipe.model.text
    section.vision, section.text = part(section.vision), part(text)
    model = empty_model(recipe_config(section))
    base, kind = model.base_model, name.partition("-")[2]
    llm = sum(p.numel() for module in (base.language_model, model.lm_head) for p in module.parameters())
    assert llm == LLM_PARAMETERS[text]
    assert (base.qformer is None) == (not section.qformer)
    assert model.config.num_image_tokens == (32 if section.qformer else 64)

    model.config.trained_parts = list(section.trained_parts)
    model.freeze()
    if section.lora_rank:
        with torch.device("meta"):
            add_lora(model, section.lora_rank, section.lora_alpha, target_modules=section.lora_targets)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    expected = PROJECTION.get(kind, 769 * 4096)
    assert sum(size for name, size in trained.items() if ".projection." in name) == expected
    if section.lora_rank:
        expected += 64 * (4096 + 4096) * 2 * 32  # of queries and values, in 32 layers
    if "qformer" in section.trained_parts:
        expected += sum(p.numel() for p in base.qformer.parameters()) + base.query_tokens.numel()
    assert sum(trained.values()) == expected

    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # it does not know the meta device
    monkeypatch.setattr(torch, "autocast", lambda device, enabled: nullcontext())
    model.train()
    assert not base.vision_tower.training and base.language_model.training
    grouped = may_group(base.language_model, model.lm_head, None, None)
    assert grouped == (not section.lora_rank)
    if grouped:
        _step(model)
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad and p.numel() == 768 * 4096)


def _step(model):
    """Forward and backward of two rows; the collator's plan says what the device cannot be asked."""
    rows, length = 2, model.config.num_image_tokens + 20
    with torch.device("meta"):
        batch = {
            "input_ids": torch.zeros(rows, length, dtype=torch.long),
            "labels": torch.zeros(rows, length, dtype=torch.long),
            "attention_mask": torch.ones(rows, length, dtype=torch.long),
            "pixel_values": torch.zeros(rows, 3, *model.config.image_size),
            "num_items_in_batch": torch.tensor(20),
        }
    plan = {"lengths": [length - 1, length - 4], "answers": [12, 8], "tokens": rows * length}
    with FrozenLLM(model, tokens_at_once=length):
        loss = model(**batch, plan=plan).loss
    loss.backward()
    assert loss.shape == ()
