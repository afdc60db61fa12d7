"""Generation, as transformers tests it on its own models: caches, beams, padding and assistants change no answer."""

import copy

import pytest
import torch
from transformers.generation import utils as generation

from minigpt4 import MiniGPT4ForConditionalGeneration

ARGUMENTS = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "temperature": 2.0, "top_k": 50},
}


@pytest.fixture(params=["Q-Former", "merged patches"])
def model(request, original, tiny_config):
    """The tiny model with the original's weights; without the Q-Former its projection is drawn."""
    if request.param == "Q-Former":
        return original
    config = copy.deepcopy(tiny_config)
    config.qformer_config = None
    torch.manual_seed(0)
    model = MiniGPT4ForConditionalGeneration(config).eval()
    weights = {name: weight for name, weight in original.state_dict().items() if ".projection." not in name}
    model.load_state_dict({**model.state_dict(), **weights}, strict=False)
    return model


@pytest.fixture
def rows(model):
    """Three rows of different length: with one picture, with two, with none."""
    torch.manual_seed(1)
    picture = [0] * model.config.num_image_tokens
    ids = [[1, *picture, 11, 12], [1, 21, *picture, 22, *picture, 23, 24, 25], [1, 31, 32, 33]]
    rows = [{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)} for row in ids]
    for row, pictures in zip(rows, (1, 2), strict=False):
        row["pixel_values"] = torch.randn(pictures, 3, 56, 56)
    return rows


@pytest.fixture
def batch(rows):
    """The rows, left-padded to one length."""
    length = max(row["input_ids"].shape[1] for row in rows)

    def padded(name, value):
        return torch.cat([torch.nn.functional.pad(row[name], (length - row[name].shape[1], 0), value=value) for row in rows])

    pixel_values = torch.cat([row["pixel_values"] for row in rows if "pixel_values" in row])
    return {"input_ids": padded("input_ids", 2), "attention_mask": padded("attention_mask", 0), "pixel_values": pixel_values}


def answers(model, inputs, **arguments):
    """The new tokens of each row; sampling draws the same each time."""
    torch.manual_seed(0)
    return model.generate(**inputs, **{**ARGUMENTS, **arguments})[:, inputs["input_ids"].shape[1] :].tolist()


def scored(model, inputs, **arguments):
    """Beam search with everything that it can return."""
    return model.generate(**inputs, **ARGUMENTS, **arguments, output_scores=True, return_dict_in_generate=True)


@pytest.mark.parametrize("way", WAYS)
def test_cached_as_uncached(way, model, batch):
    assert answers(model, batch, **WAYS[way]) == answers(model, batch, **WAYS[way], use_cache=False)


@pytest.mark.parametrize("way", WAYS)
def test_static_cache_as_dynamic(way, model, batch):
    assert answers(model, batch, **WAYS[way]) == answers(model, batch, **WAYS[way], cache_implementation="static")


@pytest.mark.skipif(
    not hasattr(generation, "_slice_mm_encoder_output"), reason="transformers 5.18 leaves pictures out of a chunked prefill"
)
def test_prefill_in_chunks_as_at_once(model, batch):
    """Chunks may also end inside an image."""
    assert answers(model, batch, prefill_chunk_size=4) == answers(model, batch)


def test_padding_left_changes_no_logits(model, rows, batch):
    output = model.generate(**batch, **ARGUMENTS, output_logits=True, return_dict_in_generate=True)
    for index, row in enumerate(rows):
        alone = model.generate(**row, **ARGUMENTS, output_logits=True, return_dict_in_generate=True)
        for padded, expected in zip(output.logits, alone.logits, strict=True):
            torch.testing.assert_close(padded[index], expected[0], rtol=0, atol=1e-5)


def test_beams_of_a_batch_are_those_of_its_rows(model, rows, batch):
    together = scored(model, batch, num_beams=2, num_return_sequences=2)
    alone = [scored(model, row, num_beams=2, num_return_sequences=2) for row in rows]
    torch.testing.assert_close(
        together.sequences_scores, torch.cat([row.sequences_scores for row in alone]), rtol=0, atol=1e-5
    )
    assert together.sequences[:, -6:].tolist() == [answer for row in alone for answer in row.sequences[:, -6:].tolist()]


def test_returned_beams_differ_and_carry_their_own_likelihood(model, rows):
    """The score of a beam is the mean log-likelihood that the model itself gives its tokens in one forward pass."""
    for row in rows:
        beams = scored(model, row, num_beams=2, num_return_sequences=2)
        assert beams.sequences[0].tolist() != beams.sequences[1].tolist()
        assert beams.sequences_scores[0] >= beams.sequences_scores[1]
        best = scored(model, row, num_beams=2)
        assert best.sequences.tolist() == beams.sequences[:1].tolist()
        pictures = {"pixel_values": row["pixel_values"]} if "pixel_values" in row else {}
        for sequence, score in zip(beams.sequences, beams.sequences_scores, strict=True):
            logits = model(input_ids=sequence[None], **pictures).logits[0, -7:-1]
            tokens = logits.log_softmax(-1).gather(1, sequence[-6:, None])
            torch.testing.assert_close(tokens.mean(), score, rtol=0, atol=1e-4)


def test_next_turn_reads_the_cache_of_the_last(model, rows):
    """Six tokens at once are four and, from their cache, two."""
    for row in rows:
        first = model.generate(**row, **{**ARGUMENTS, "max_new_tokens": 4}, return_dict_in_generate=True)
        mask = torch.ones_like(first.sequences)
        rest = {"input_ids": first.sequences, "attention_mask": mask, "past_key_values": first.past_key_values}
        assert answers(model, row)[0][4:] == answers(model, rest, max_new_tokens=2)[0]


def test_assistant_changes_no_answer(model, rows):
    """Another model proposes tokens; wrong ones are rejected."""
    assistant = copy.deepcopy(model)
    torch.manual_seed(2)
    noise = torch.randn_like(assistant.lm_head.weight)
    assistant.lm_head.weight.data += assistant.lm_head.weight.std() * noise
    for row in rows:
        alone = answers(model, row)
        assert answers(assistant, row) != alone  # otherwise this test would show nothing
        assert answers(model, row, assistant_model=assistant) == alone
        assert answers(model, row, prompt_lookup_num_tokens=3) == alone


def test_every_step_tells_its_scores_states_and_attentions(model, batch):
    model.set_attn_implementation("eager")
    output = model.generate(
        **batch,
        **ARGUMENTS,
        output_scores=True,
        output_hidden_states=True,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    rows, length = batch["input_ids"].shape
    text = model.config.text_config
    assert [tuple(step.shape) for step in output.scores] == [(rows, text.vocab_size)] * 6
    for step, (states, attentions) in enumerate(zip(output.hidden_states, output.attentions, strict=True)):
        new, seen = (length, length) if step == 0 else (1, length + step)
        assert [tuple(state.shape) for state in states] == [(rows, new, text.hidden_size)] * (text.num_hidden_layers + 1)
        shape = (rows, text.num_attention_heads, new, seen)
        assert [tuple(attention.shape) for attention in attentions] == [shape] * text.num_hidden_layers


@pytest.mark.parametrize("way", WAYS)
def test_the_image_token_is_never_written(way, model, batch):
    """Not even where it is the likeliest, as it may be with untrained weights."""
    model = copy.deepcopy(model)
    head, image_token = model.lm_head.weight.data, model.config.image_token_id
    likeliest = answers(model, batch)[0][0]
    head[image_token] = 2 * head[likeliest]
    arguments = {**WAYS[way], "return_dict_in_generate": True, "output_logits": True}
    output = model.generate(**batch, **{**ARGUMENTS, **arguments})
    assert output.logits[0].argmax(-1)[0] == image_token
    assert not (output.sequences[:, batch["input_ids"].shape[1] :] == image_token).any()
