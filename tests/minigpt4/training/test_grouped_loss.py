"""Grouped and packed give the loss and the gradients of one padded batch with all its logits, the plain forward's."""

import itertools
import random
from contextlib import nullcontext

import pytest
import torch
from transformers import LlamaForCausalLM

from minigpt4 import MiniGPT4DataCollator
from minigpt4.training.frozen_llm import FrozenLLM
from minigpt4.training.grouped_loss import group_rows

TEXTS = ["a cat", "two people walking on the beach at sunset", "a red mat and a dog", "dogs", "a man with a hat and a cat"]


@pytest.fixture(params=["captions", "instructions", "conversations"])
def examples(request, picture):
    """Five examples of different length; among the conversations several pictures in a row, and none."""
    if request.param == "conversations":
        image, examples = {"type": "image"}, []
        for pictures, text in zip((2, 0, 1, 0, 3), TEXTS, strict=True):
            question = [*[image] * pictures, {"type": "text", "text": "What is it?"}]
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
            more = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "no more"}]
            examples.append({"images": [picture(i) for i in range(pictures)], "messages": turns + more})
        return examples
    instruction = {"instruction": "What is it?"} if request.param == "instructions" else {}
    return [{"image": picture(i), "text": text, **instruction} for i, text in enumerate(TEXTS)]


@pytest.fixture
def lengths(original):
    """Lengths of what the LLM is given, in the order of its calls."""
    seen = []
    original.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    return seen


def loss_and_gradients(model, batch, factor=1.0, way=None):
    """The loss, and by name the gradient of each parameter that has one; `way`: a `FrozenLLM`, or None for the plain way."""
    model.zero_grad()
    with way or nullcontext():
        loss = model(**batch).loss
    if loss.requires_grad:
        (loss * factor).backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("tokens_at_once", [1, 60, 10**6])
def test_loss_and_gradients_are_those_of_the_padded_batch(tokens_at_once, packing, original, processor, examples, lengths):
    padded = MiniGPT4DataCollator(processor)(examples)
    expected = loss_and_gradients(original.train(), padded, factor=3.0)
    assert expected[1].keys() == {"model.projection.weight", "model.projection.bias"}
    lengths.clear()
    batch = MiniGPT4DataCollator(processor, packing=packing)(examples)
    assert_same(loss_and_gradients(original, batch, factor=3.0, way=FrozenLLM(original, tokens_at_once)), expected)
    assert sum(rows for rows, _ in lengths) == len(examples)
    if tokens_at_once == 1:  # each by itself, without padding and without its last token, which predicts nothing
        assert sorted(length for _, length in lengths) == sorted((padded["attention_mask"].sum(1) - 1).tolist())


def test_accumulated_batches_weigh_by_their_tokens(original, collator, examples):
    """As the Trainer accumulates: it passes `num_items_in_batch` over all of them."""
    expected = loss_and_gradients(original.eval(), collator(examples))
    parts = [collator(examples[:2]), collator(examples[2:])]
    tokens = sum((part["labels"] != -100).sum() for part in parts)
    original.train().zero_grad()
    with FrozenLLM(original):
        losses = [original(**part, num_items_in_batch=tokens).loss for part in parts]
    for loss in losses:
        if loss.requires_grad:
            loss.backward()
    found = {name: weight.grad for name, weight in original.named_parameters() if weight.grad is not None}
    assert_same((sum(loss.detach() for loss in losses), found), expected)


def test_batch_without_pictures_has_a_loss(original, collator):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    batch = collator([{"messages": messages}] * 2)
    expected = original(**batch).loss
    with FrozenLLM(original.train()):
        loss = original(**batch).loss
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected)


def test_without_gradients_nothing_is_computed_for_them(original, collator, examples):
    batch = collator(examples)
    expected = original(**batch).loss.detach()
    with torch.no_grad(), FrozenLLM(original.train()):
        loss = original(**batch).loss
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    "trained",
    ["model.query_tokens", "model.qformer", "model.vision_tower", "model.language_model.layers.1.mlp", "lm_head"],
)
def test_whatever_else_is_trained_takes_its_gradient(trained, original, collator, examples, lengths):
    """What comes before the LLM gets its gradient through the groups; with a trained part of the LLM there are none."""
    part = original.get_parameter(trained) if trained.endswith("tokens") else original.get_submodule(trained)
    part.requires_grad_(True)
    batch = collator(examples)
    expected = loss_and_gradients(original, batch)
    assert any(name.startswith(trained) for name in expected[1])
    lengths.clear()
    found = loss_and_gradients(original.train(), batch, way=FrozenLLM(original, tokens_at_once=60))
    assert_same(found, expected)
    assert (len(lengths) == 1) == trained.startswith(("model.language_model", "lm_head"))


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_padding_on_the_left_is_masked(fast, positions, original, collator, examples):
    """Also where plain positions are given beside the mask, which for transformers are a packed row if none is."""
    batch = collator(examples)
    expected = loss_and_gradients(original, batch)
    for name in ("input_ids", "attention_mask", "labels"):
        shifts = (batch["attention_mask"] == 0).sum(1).tolist()
        batch[name] = torch.stack([row.roll(shift) for row, shift in zip(batch[name], shifts, strict=True)])
    # The LLM counts positions from the padding on, but rotary embeddings only depend on distances.
    if positions:
        batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    assert_same(loss_and_gradients(original.train(), batch, way=FrozenLLM(original) if fast else None), expected)


@pytest.mark.parametrize("fast", [False, True])
def test_positions_of_ones_own_are_kept(fast, original, collator, examples):
    """Positions that are no packing (every other number) go to the LLM with the mask, as its own class takes them."""
    batch = collator(examples[:1])
    batch["position_ids"] = 2 * torch.arange(batch["input_ids"].shape[1])[None]
    inputs_embeds, _ = original.model.embed(batch["input_ids"], batch.get("pixel_values"))
    llm = LlamaForCausalLM(original.config.text_config).eval()
    llm.model, llm.lm_head = original.model.language_model, original.lm_head
    given = {"inputs_embeds": inputs_embeds, "attention_mask": batch["attention_mask"]}
    close_by, expected = (
        llm(**given, position_ids=position_ids, labels=batch["labels"], use_cache=False).loss
        for position_ids in (batch["position_ids"] // 2, batch["position_ids"])
    )
    assert abs(close_by - expected) > 1e-3  # or this test would show nothing
    found, _ = loss_and_gradients(original.train(), batch, way=FrozenLLM(original) if fast else None)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)


def test_half_precision_is_left_to_the_gradient_scaler(original, collator, examples, lengths):
    """It scales the loss, and in fp16 a gradient that is computed before that may vanish."""
    batch = collator(examples)
    one_row = FrozenLLM(original.train(), tokens_at_once=1)
    with torch.autocast("cpu", dtype=torch.float16), one_row:
        original(**batch)
    assert len(lengths) == 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_and_gradients(original, batch, way=one_row)
    assert len(lengths) == 1 + len(examples)
    assert_same(found, loss_and_gradients(original, batch), tolerance=0.05)


@pytest.mark.slow
def test_training_compiles(original, collator, picture):
    torch._dynamo.reset()
    batch = collator([{"image": picture(i), "text": text} for i, text in enumerate(TEXTS[:2])])
    expected = loss_and_gradients(original, batch)
    compiled = torch.compile(original.train(), backend="eager")
    with FrozenLLM(original):
        loss = compiled(**batch).loss
    original.zero_grad()
    loss.backward()
    found = {name: weight.grad for name, weight in original.named_parameters() if weight.grad is not None}
    assert_same((loss.detach(), found), expected)


def test_groups_are_the_cheapest_of_all():
    generator = random.Random(0)
    for _ in range(20):
        lengths = [generator.randint(1, 300) for _ in range(7)]
        groups = group_rows(lengths, tokens_at_once=700)  # a group costs 700 // 16 = 43
        assert sorted(row for rows, _ in groups for row in rows) == list(range(7))
        assert all(length == max(lengths[row] for row in rows) for rows, length in groups)
        assert all(len(rows) == 1 or len(rows) * length <= 700 for rows, length in groups)
        cost = sum(len(rows) * length + 43 for rows, length in groups)
        ordered = sorted(lengths, reverse=True)
        assert cost == min(
            sum(max(part) * len(part) + 43 for part in parts)
            for cuts in itertools.product([False, True], repeat=6)
            for parts in [_cut(ordered, cuts)]
            if all(len(part) == 1 or max(part) * len(part) <= 700 for part in parts)
        )


def _cut(values, cuts):
    borders = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), len(values)]
    return [values[start:end] for start, end in itertools.pairwise(borders)]


def test_answers_of_no_row_give_what_the_plain_way_gives(original, collator, examples):
    batch = collator(examples)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    for way in (nullcontext(), FrozenLLM(original.train())):
        with way:
            assert original(**batch).loss.isnan()
            assert original(**batch, num_items_in_batch=torch.tensor(3)).loss == 0


def test_the_models_own_forward_comes_back(original, collator, examples):
    """After the context, and inside it for a batch that the fast way does not handle."""
    batch = collator(examples)
    plain = original(**batch)
    with FrozenLLM(original) as model:
        assert model(**batch).logits is None
        torch.testing.assert_close(model(**batch, output_hidden_states=True).logits, plain.logits)
    assert "forward" not in vars(original)
    torch.testing.assert_close(original(**batch).logits, plain.logits)
