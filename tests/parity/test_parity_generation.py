"""Answers of both variants against plain loops without cache, batch or padding (reference.py): same ids, same logits."""

import pytest
import torch
from reference import IMAGE, llama_2_chat, vicuna_chat

from minigpt4 import MiniGPT4Processor
from minigpt4.inference.generation import answers
from minigpt4.modeling_minigpt4.chat import answer_text

# (pictures, what is asked, the answer); the last answer is the model's.
CHATS = {
    "one turn": [(1, "What is this?", None)],
    "several turns": [(1, "What is this?", "A cat on a mat."), (0, "Which colour?", "Red."), (0, "Sure?", None)],
    "several pictures": [(3, "How do they differ?", None)],
    "pictures in several turns": [(1, "What is this?", "A cat."), (2, "And those two?", None)],
    "no picture": [(0, "Tell me of Zürich, 東京 and 🐈.", None)],
}
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 2}


class Variant:
    """A converted model with its processor, and the plain loops that it must equal."""

    def __init__(self, model, processor, reference, chat):
        self.model, self.processor, self.reference, self.chat = model, processor, reference, chat

    def prompt(self, turns):
        """What the original writes for a conversation."""
        return self.chat(*((" ".join([f"<Img>{IMAGE}</Img>"] * n + [ask]), answer) for n, ask, answer in turns))

    def start(self, turns, pictures):
        """Embeddings of the original's prompt, [1, L, LLM width]."""
        return self.reference.splice(self.prompt(turns), self.reference.visual_tokens(pictures) if pictures else [])

    def inputs(self, turns, pictures):
        """Model inputs of one conversation, by way of the chat template."""
        return self.processor.apply_chat_template(
            messages(turns, pictures), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def batch(self, chats, pictures):
        """Model inputs of several conversations, padded on the left."""
        texts = [
            self.processor.apply_chat_template(messages(turns, own), add_generation_prompt=True)
            for turns, own in zip(chats, pictures, strict=True)
        ]
        flat = [picture for own in pictures for picture in own]
        return self.processor(text=texts, images=flat, return_tensors="pt", padding=True, padding_side="left")

    def new_tokens(self, inputs, steps, **arguments):
        """What our `generate` appends, a list for each row."""
        output = self.model.generate(**inputs, **{**GREEDY, "max_new_tokens": steps, **arguments})
        return output[:, inputs["input_ids"].shape[1] :].tolist()


def messages(turns, pictures):
    """The conversation as the Hub writes it; pictures in their order."""
    left, found = list(pictures), []
    for count, ask, answer in turns:
        images = [{"type": "image", "image": left.pop(0)} for _ in range(count)]
        found.append({"role": "user", "content": [*images, {"type": "text", "text": ask}]})
        if answer is not None:
            found.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return found


@pytest.fixture(params=["vicuna", "llama-2"])
def variant(request, original, processor, reference, llama_2, llama_2_processor, llama_2_reference):
    """Each test on both: with Q-Former and "###Human:", without and "[INST]"."""
    if request.param == "vicuna":
        return Variant(original, processor, reference, vicuna_chat)
    return Variant(llama_2, llama_2_processor, llama_2_reference, llama_2_chat)


@pytest.fixture
def pictures(picture):
    """pictures(turns, seed): as many as the conversation shows."""
    return lambda turns, seed=0: [picture(seed + n) for n in range(sum(count for count, _, _ in turns))]


@pytest.mark.parametrize("name", CHATS)
def test_chat_has_the_originals_ids_logits_and_answer(name, variant, pictures):
    turns, own = CHATS[name], pictures(CHATS[name])
    inputs, start = variant.inputs(turns, own), variant.start(turns, own)
    assert inputs["input_ids"].tolist() == [variant.reference.ids_with_places(variant.prompt(turns))]
    assert inputs["attention_mask"].all()

    seen = {}
    hook = variant.model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    logits = variant.model(**inputs).logits
    hook.remove()
    torch.testing.assert_close(seen["inputs_embeds"], start, rtol=0, atol=1e-5)
    expected = variant.reference.llama(inputs_embeds=start).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5)
    assert variant.new_tokens(inputs, 12) == [variant.reference.greedy(start, 12)]


@pytest.mark.parametrize(
    ("beams", "penalty"), [(1, 1.0), (1, 3.0), (2, 1.0), (2, 3.0)], ids=["greedy", "penalty", "beams", "both"]
)
def test_left_padded_rows_answer_as_the_original_does_alone(beams, penalty, variant, pictures):
    chats = list(CHATS.values())
    own = [pictures(turns, seed) for seed, turns in enumerate(chats)]
    expected = []
    for turns, shown in zip(chats, own, strict=True):
        start = variant.start(turns, shown)
        if beams == 1:
            expected.append(variant.reference.greedy(start, 8, penalty=penalty))
        else:
            expected.append(variant.reference.beams(start, 8, beams, penalty=penalty))
    inputs = variant.batch(chats, own)
    assert variant.new_tokens(inputs, 8, num_beams=beams, repetition_penalty=penalty) == expected


def test_repetition_penalty_counts_what_was_said_and_not_the_prompt(variant, pictures):
    """The original generates from embeddings: its penalty never sees the prompt's ids."""
    turns, own = CHATS["one turn"], pictures(CHATS["one turn"], seed=4)
    inputs, start = variant.inputs(turns, own), variant.start(turns, own)
    free = variant.reference.greedy(start, 25)
    for penalty in (1.05, 3.0):
        expected = variant.reference.greedy(start, 25, penalty=penalty)
        assert expected != free  # otherwise this test would show nothing
        assert variant.new_tokens(inputs, 25, repetition_penalty=penalty) == [expected]


def test_repetition_penalty_from_embeddings_is_the_same(variant, pictures):
    """Also left-padded: transformers would subtract the padding's length from the answer."""
    chats = [CHATS["one turn"], CHATS["several turns"]]
    own = [pictures(turns) for turns in chats]
    inputs = variant.batch(chats, own)
    expected = variant.new_tokens(inputs, 30, repetition_penalty=3.0)
    inputs["inputs_embeds"] = variant.model.get_input_embeddings()(inputs.pop("input_ids"))
    given = {**GREEDY, "max_new_tokens": 30, "repetition_penalty": 3.0}
    assert variant.model.generate(**inputs, **given).tolist() == expected


def test_beams_end_as_the_original_ends_them(variant, pictures):
    """With an end of sequence, the best hypothesis by log-probability a token."""
    turns, own = CHATS["one turn"], pictures(CHATS["one turn"])
    inputs, start = variant.inputs(turns, own), variant.start(turns, own)
    unended = variant.reference.beams(start, 10, 3)
    for end in dict.fromkeys([*unended, *variant.reference.greedy(start, 4)]):
        expected = variant.reference.beams(start, 10, 3, end=end)
        [found] = variant.new_tokens(inputs, 10, num_beams=3, eos_token_id=end)
        assert found == expected, end


def test_each_row_stops_where_the_original_stops_alone(variant, pictures):
    """At one of several sequences of ids, as ([835], [2277, 29937]) are Vicuna's."""
    chats = [CHATS["one turn"], CHATS["several turns"], CHATS["no picture"]]
    own = [pictures(turns) for turns in chats]
    starts = [variant.start(turns, shown) for turns, shown in zip(chats, own, strict=True)]
    first, second = (variant.reference.greedy(start, 12) for start in starts[:2])
    stops = [first[4:6], second[2:3]]
    expected = [variant.reference.greedy(start, 12, stops) for start in starts]
    assert expected[0] == first[:6] and expected[1] == second[:3]
    variant.model.generation_config.turn_ends = stops
    found = variant.new_tokens(variant.batch(chats, own), 12, eos_token_id=2)
    longest = max(map(len, expected))
    assert found == [row + [2] * (longest - len(row)) for row in expected]


def test_turn_ends_are_what_sentencepiece_makes_of_the_marker(processor, reference):
    """By itself, and after text; the tiny vocabulary has one piece for each, Vicuna's two for the second."""
    assert processor.turn_ends == [reference.encode("###"), reference.encode("a###")[1:]] == [[326], [321]]
    other = MiniGPT4Processor(processor.image_processor, processor.tokenizer, num_image_tokens=5, turn_markers=["Human:"])
    assert other.turn_ends == [reference.encode("Human:"), reference.encode("aHuman:")[1:]]
    assert [len(ids) for ids in other.turn_ends] == [3, 2]
    other.turn_markers = []
    assert not other.turn_ends


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("A cat.###Human: And", "A cat."),
        ("A cat. ###", "A cat."),
        ("Assistant: A cat.</s>", "A cat."),
        ("A cat", "A cat"),
        ("###", ""),
    ],
)
def test_answer_is_cut_at_the_marker(written, text, processor, reference):
    assert answer_text(processor, reference.encode(written)) == text


def test_a_stop_text_is_its_last_id(variant, pictures, monkeypatch):
    """SentencePiece writes a word-start mark before a lone "\n"; the mark by itself ends nothing."""
    given = {}
    monkeypatch.setattr(variant.model, "generate", lambda **kwargs: given.update(kwargs) or kwargs["input_ids"])
    features = variant.reference.vision_features(pictures(CHATS["one turn"]))
    answers(variant.model, variant.processor, ["<s><unk>"], features, stop="\n")
    assert given["eos_token_id"] == [2, variant.reference.encode("\n")[-1]]


def test_answers_end_at_the_marker(variant, pictures):
    """The batched answers of metrics and reports, for a model that ends its turns with a marker."""
    model, processor, turns = variant.model, variant.processor, CHATS["one turn"]
    own = pictures(turns)
    spoken = variant.reference.greedy(variant.start(turns, own), 8)
    features = variant.reference.vision_features(own)
    prompt = processor.apply_chat_template(messages(turns, own), add_generation_prompt=True)
    whole = processor.decode(spoken, skip_special_tokens=True).strip()
    assert answers(model, processor, [prompt], features, max_new_tokens=8) == [whole]
    marker = processor.tokenizer.convert_ids_to_tokens(spoken[3]).replace("▁", " ")
    processor.turn_markers = [marker]
    assert spoken[3:4] in processor.turn_ends
    model.generation_config.turn_ends = processor.turn_ends
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    cut = processor.decode(spoken[:4], skip_special_tokens=True)
    assert answers(model, processor, [prompt], features, max_new_tokens=8) == [cut.split(marker)[0].strip()]
    assert len(calls) == 4
