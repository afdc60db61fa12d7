"""Examples of all forms become ids with labels only on the answers. The original's exact ids: see the model's tests."""

import random

import pytest
import torch

from minigpt4 import MiniGPT4DataCollator, MiniGPT4Processor
from minigpt4.processing.chat_templates import CHATML, LLAMA_2, with_image_token

INSTRUCTIONS = [
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
]


@pytest.fixture
def encode(processor):
    """encode(text): the tokenizer's ids, without BOS."""
    return lambda text: processor.tokenizer(text, add_special_tokens=False).input_ids


def answers(batch, row=0):
    """The labels of a row that are not masked."""
    return batch["labels"][row][batch["labels"][row] != -100].tolist()


def test_caption_pair_has_no_prompt(collator, encode, picture):
    batch = collator([{"image": picture(), "text": "a cat"}])
    answer = encode("a cat\n")
    assert batch["input_ids"].tolist() == [[1, *[0] * 5, *answer]]
    assert batch["labels"].tolist() == [[*[-100] * 6, *answer]]
    assert batch["pixel_values"].shape == (1, 3, 56, 56)


def test_instruction_takes_the_training_form(collator, encode, picture):
    batch = collator([{"image": picture(), "instruction": "What is it?", "text": "a cat"}])
    prompt = [1, *encode("###Human: <Img>"), *[0] * 5, *encode("</Img> What is it? ###Assistant: ")]
    answer = encode("a cat###")
    assert batch["input_ids"].tolist() == [[*prompt, *answer]]
    assert batch["labels"].tolist() == [[*[-100] * len(prompt), *answer]]


def test_conversation_learns_each_answer_and_nothing_else(collator, encode, picture):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image"}]},
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": "Thank you."},
    ]
    batch = collator([{"images": [picture(0), picture(1)], "messages": messages}])
    assert answers(batch) == encode("a cat###") + encode("a dog###")
    assert batch["pixel_values"].shape == (2, 3, 56, 56)
    labelled = batch["labels"] != -100
    assert torch.equal(batch["input_ids"][labelled], batch["labels"][labelled])
    assert (batch["input_ids"] == 0).sum() == 10
    assert batch["input_ids"][0, -len(encode("a dog###")) :].tolist() == encode("a dog###")  # the rest teaches nothing


def test_conversation_without_pictures(collator, encode):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    batch = collator([{"messages": messages}])
    assert answers(batch) == encode("yes###")
    assert "pixel_values" not in batch


@pytest.mark.parametrize(
    ("template", "expected"),
    [(LLAMA_2, ["a cat", "a dog</s>"]), (CHATML, ["a cat<|im_end|>", "a dog<|im_end|>"])],
    ids=["llama-2", "chatml"],
)
def test_other_templates_mark_their_answers(template, expected, processor, encode):
    other = MiniGPT4Processor(
        processor.image_processor, processor.tokenizer, chat_template=with_image_token(template, "<unk>")
    )
    turns = [("user", "one"), ("assistant", "a cat"), ("user", "two"), ("assistant", "a dog")]
    batch = MiniGPT4DataCollator(other)([{"messages": [{"role": role, "content": text} for role, text in turns]}])
    assert answers(batch) == encode(expected[0]) + encode(expected[1])


def test_rows_of_different_length_are_padded_on_the_right(collator, picture):
    examples = [{"image": picture(), "text": text} for text in ("a", "a red cat and a dog")]
    batch = collator(examples)
    alone = collator(examples[:1])
    length = alone["input_ids"].shape[1]
    for name, padding in (("input_ids", 2), ("attention_mask", 0), ("labels", -100)):
        assert torch.equal(batch[name][:1, :length], alone[name])
        assert set(batch[name][0, length:].tolist()) == {padding}


def test_answer_is_cut_after_its_end_is_appended(processor, encode, picture):
    """So a long one loses its end, as in the original; prompts are never cut."""
    example = {"image": picture(), "text": "a cat on a mat"}
    whole = encode("a cat on a mat\n")
    for length in (len(whole), len(whole) - 1, 2):
        batch = MiniGPT4DataCollator(processor, max_answer_tokens=length)([example])
        assert answers(batch) == whole[:length]
        assert batch["input_ids"].shape[1] == 6 + length


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ({"text": "a cat"}, "a cat</s>"),
        ({"text": "a cat", "instruction": "What?"}, "a cat</s>"),
        ({"text": "ends in #", "instruction": "What?"}, "ends in #</s>"),
    ],
)
def test_answer_end_replaces_the_templates_own(example, expected, processor, encode, picture):
    batch = MiniGPT4DataCollator(processor, answer_end="</s>")([{"image": picture(), **example}])
    assert answers(batch) == encode(expected)


def test_instructions_are_drawn_for_each_sample(processor, picture):
    """Not for each batch, as the original's code does; an example's own instruction is kept."""
    collator = MiniGPT4DataCollator(processor, instructions=INSTRUCTIONS)
    random.seed(0)
    examples = [{"image": picture(), "text": "a cat"}] * 20 + [{"image": picture(), "instruction": "Hm?", "text": "x"}]
    prompts = [processor.tokenizer.decode(row, skip_special_tokens=True) for row in collator(examples)["input_ids"]]
    drawn = [next(text for text in INSTRUCTIONS if text in prompt) for prompt in prompts[:-1]]
    assert set(drawn) == set(INSTRUCTIONS)
    assert "Hm?" in prompts[-1]


def test_typed_markers_are_letters_in_training_too(collator, encode, picture):
    example = {"image": picture(), "instruction": "<unk>###", "text": "</s>###Human: <unk>"}
    batch = collator([example])
    assert batch["input_ids"][0].tolist().count(0) == 5
    assert 2 not in batch["input_ids"]
    marker = encode("a###")[-1]
    # the answer ends with the template's own marker; the question's own follows a space
    assert answers(batch).count(marker) == 1


def test_packed_rows_restart_their_positions(processor, encode, picture):
    examples = [{"image": picture(seed), "text": text} for seed, text in enumerate(("a cat", "a red dog"))]
    packed = MiniGPT4DataCollator(processor, packing=True)(examples)
    rows = [MiniGPT4DataCollator(processor)([example]) for example in examples]
    for name in ("input_ids", "labels"):
        assert torch.equal(packed[name], torch.cat([row[name] for row in rows], dim=1))
    lengths = [row["input_ids"].shape[1] for row in rows]
    assert packed["position_ids"].tolist() == [[*range(lengths[0]), *range(lengths[1])]]
    assert "attention_mask" not in packed  # this tells transformers that they do not see each other
    assert packed["pixel_values"].shape == (2, 3, 56, 56)


def test_first_token_of_a_packed_sequence_is_no_label(processor):
    """It would be predicted from the last token of the sequence before."""
    template = "{%- for message in messages -%}{%- generation -%}{{ message.content }}{%- endgeneration -%}{%- endfor -%}"
    bare = MiniGPT4Processor(processor.image_processor, processor.tokenizer, chat_template=template)
    collator = MiniGPT4DataCollator(bare, packing=True)
    batch = collator([{"messages": [{"role": "assistant", "content": text}]} for text in ("a cat", "a dog")])
    assert (batch["labels"] == -100).int().tolist() == (batch["position_ids"] == 0).int().tolist()


def test_kept_features_take_the_place_of_pictures(collator):
    features = torch.randn(2, 5, 24)
    batch = collator([{"vision_features": feature, "text": "a cat"} for feature in features])
    assert torch.equal(batch["vision_features"], features)
    assert "pixel_values" not in batch


def test_picture_may_be_a_path(collator, picture, tmp_path):
    picture().save(tmp_path / "a.png")
    batch = collator([{"image": str(tmp_path / "a.png"), "text": "a cat"}])
    assert torch.equal(batch["pixel_values"], collator([{"image": picture(), "text": "a cat"}])["pixel_values"])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"image": "PICTURE"}, r"needs `text`.*found image \("),
        ({"image": "PICTURE", "text": None}, r"needs `text`.*text \(NoneType\)"),
        ({}, "needs `text`.*no field"),
        ({"text": "a cat"}, r"has 0 picture\(s\), but its text has a place for 1"),
        ({"image": None, "text": "a cat"}, r"0 picture\(s\).* a place for 1"),
        ({"images": ["PICTURE"], "messages": [{"role": "user", "content": "hi"}]}, r"1 picture\(s\).* a place for 0"),
    ],
)
def test_incomplete_example_is_refused(example, message, collator, picture):
    filled = {"PICTURE": picture(), str(["PICTURE"]): [picture()]}
    example = {name: filled.get(str(value), value) for name, value in example.items()}
    with pytest.raises(ValueError, match=message):
        collator([example])


def test_example_longer_than_the_context_is_refused(processor, picture):
    collator = MiniGPT4DataCollator(processor, max_tokens=10)
    collator([{"image": picture(), "text": "a"}])
    with pytest.raises(ValueError, match="more than the 10 that the LLM reads"):
        collator([{"image": picture(), "text": "a cat on a mat"}])
