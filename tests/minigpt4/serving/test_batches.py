"""Requests answered together, on the tiny model: each gets what `generate` returns for it separately."""

import asyncio

import pytest
import torch
from transformers import AutoTokenizer

from minigpt4 import MiniGPT4ImageProcessor, MiniGPT4Processor
from minigpt4.modeling_minigpt4.chat import answer_text
from minigpt4.serving.batches import Batches, Settings


@pytest.fixture
def model(original, monkeypatch):
    """The tiny model; `model.batch_sizes` has the rows of each of its batches."""
    generate, sizes = original.generate, []

    def counted(**inputs):
        sizes.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(original, "generate", counted)
    monkeypatch.setattr(original, "batch_sizes", sizes, raising=False)
    monkeypatch.setattr(original, "alone", generate, raising=False)
    return original


@pytest.fixture(scope="module")
def processor(tiny_config, parity_dir):
    image_processor = MiniGPT4ImageProcessor(size={"height": 56, "width": 56})
    tokenizer = AutoTokenizer.from_pretrained(parity_dir / "llama_tiny")
    return MiniGPT4Processor(image_processor, tokenizer, num_image_tokens=tiny_config.num_image_tokens)


@pytest.fixture
def batches(model, processor):
    batches = Batches(model, processor)
    yield batches
    batches.close()


@pytest.fixture
def prompt(processor):
    """prompt(text, *images): the inputs of a question."""

    def inputs(text, *shown):
        content = [*({"type": "image", "image": image} for image in shown), {"type": "text", "text": text}]
        form = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        return processor.apply_chat_template([{"role": "user", "content": content}], **form)

    return inputs


@pytest.fixture
def prompts(prompt, picture):
    """Prompts of different lengths, with no, one and two images."""
    return [prompt("Hello"), prompt("What is this?", picture(0)), prompt("a " * 40), prompt("Both?", picture(1), picture(0))]


def alone(model, processor, inputs, settings):
    """(ids, text) of `generate` for one request."""
    if settings.seed is not None:
        torch.manual_seed(settings.seed)
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p} if settings.do_sample else {}
    ids = model.alone(**inputs, max_new_tokens=settings.max_new_tokens, do_sample=settings.do_sample, **sampling)
    ids = ids[0, inputs["input_ids"].shape[1] :].tolist()
    return ids, answer_text(processor, ids)


def together(batches, requests, read=None):
    """The answers to requests, (inputs, settings) each, that all wait when the batch begins, as (ids, text)."""

    async def ask():
        with batches._change:  # the thread that answers waits for it
            answers = [batches.ask(*request) for request in requests]

        async def whole(answer):
            return answer.ids, "".join([piece async for piece, _ in answer])

        return await asyncio.gather(*map(read or whole, answers), return_exceptions=True)

    return asyncio.run(ask())


def test_each_row_has_its_own_length_and_the_text_of_generate(batches, model, processor, prompts):
    requests = [(inputs, Settings(max_new_tokens)) for inputs, max_new_tokens in zip(prompts, (3, 12, 1, 7), strict=True)]
    assert together(batches, requests) == [alone(model, processor, *request) for request in requests]
    assert model.batch_sizes == [4]


def test_rows_that_sample_draw_what_generate_draws_beside_greedy_ones(batches, model, processor, prompts):
    settings = [
        Settings(8, do_sample=True, temperature=1.5, seed=1),
        Settings(8),
        Settings(8, do_sample=True, temperature=0.7, top_p=0.5, seed=2),
        Settings(8, do_sample=True, temperature=1.5, seed=3),
    ]
    for shown in (prompts, prompts[:1] * 4):
        requests = list(zip(shown, settings, strict=True))
        assert together(batches, requests) == [alone(model, processor, *request) for request in requests]
    assert model.batch_sizes == [4, 4]


def test_a_turn_that_ends_leaves_the_others_alone(batches, model, processor, prompts, monkeypatch):
    """The token that one row writes third ends an answer: it ends there, without a pad token of the others."""
    written, _ = alone(model, processor, prompts[1], Settings(8))
    monkeypatch.setattr(model.generation_config, "eos_token_id", written[2])
    requests = [(inputs, Settings(8)) for inputs in prompts]
    expected = [alone(model, processor, *request) for request in requests]
    assert together(batches, requests) == expected
    assert len(expected[1][0]) == written.index(written[2]) + 1 and max(len(ids) for ids, _ in expected) == 8


def test_a_cancelled_row_ends_and_the_others_do_not(batches, model, processor, prompts):
    async def read(answer):
        if answer.settings.max_new_tokens == 400:
            await anext(aiter(answer))
            answer.cancel()
        pieces = [piece async for piece, _ in answer]
        return len(answer.ids), "".join(pieces)

    settings = [Settings(400, do_sample=True, temperature=2.0, seed=seed) for seed in (0, 1)]
    longest = max(settings, key=lambda one: len(alone(model, processor, prompts[0], one)[0]))
    assert len(alone(model, processor, prompts[0], longest)[0]) > 30
    other = prompts[1], Settings(20)
    (length, _), (_, text) = together(batches, [(prompts[0], longest), other], read)
    assert length < 30 and text == alone(model, processor, *other)[1]


def test_what_does_not_fit_into_memory_together_is_answered_in_turn(batches, model, processor, prompts, monkeypatch):
    requests = [(inputs, Settings(4)) for inputs in prompts]
    monkeypatch.setattr(batches, "_room", lambda: 0)
    assert together(batches, requests) == [alone(model, processor, *request) for request in requests]
    assert model.batch_sizes == [1, 1, 1, 1]
    assert Batches._room(batches) > 1_000_000  # tokens of this tiny model


def test_a_prompt_of_very_different_length_is_left_to_the_next_batch(batches, model, processor, prompt):
    """Padding up to it would cost more than all the others' text."""
    hello, long = prompt("Hello"), prompt("What is a dog, and why? " * 24)
    assert long["input_ids"].shape[1] > 4 * hello["input_ids"].shape[1]
    requests = [(inputs, Settings(4)) for inputs in (hello, hello, hello, long, long)]
    assert together(batches, requests) == [alone(model, processor, *request) for request in requests]
    assert model.batch_sizes == [3, 2]


def test_a_batch_that_fails_says_so_to_all_and_the_next_is_answered(batches, model, processor, prompts):
    broken = {**prompts[0], "input_ids": prompts[0]["input_ids"] + 10**6}
    errors = together(batches, [(broken, Settings(4)), (prompts[1], Settings(4))])
    assert [type(error) for error in errors] == [RuntimeError, RuntimeError]
    assert together(batches, [(prompts[1], Settings(4))]) == [alone(model, processor, prompts[1], Settings(4))]


def test_the_end_of_the_server_ends_its_answers(batches, prompts):
    async def read(answer):
        if answer.settings.max_new_tokens == 400:
            batches.close()
        async for _ in answer:
            pass
        return len(answer.ids)

    first, second = together(batches, [(prompts[0], Settings(400)), (prompts[0], Settings(399))], read)
    assert max(first, second) < 399 and not batches._thread.is_alive()
