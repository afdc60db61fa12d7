"""Ids, masks and labels of every variant against plain SentencePiece, piece by piece (reference.py)."""

import pytest
from reference import IGNORE, IMAGE

from minigpt4 import MiniGPT4DataCollator

TEXTS = [
    "a cat sitting on a red mat\n",
    "  two  spaces,\ttabs\n\nand lines ",
    "Zürich, 東京, Ελλάδα: 🐈‍⬛ costs 3½ €",
    "[INST] <Img> </Img> <Image> [/INST] <0x0A> Assistant: Human:",
    "x $$ y$$ $$z",
    "\u00a0no-break\u200bzero width e\u0301 ﬁ",
    "▁ is SentencePiece's own mark",
    "A",
    " ",
    "#1, C# and ## are fine",
]
INSTRUCTION = "Could you describe the contents of this image for me?"
LONG = "a man and a dog and a cat and a kite on the beach at sunset in the city with people " * 12


@pytest.mark.parametrize("text", TEXTS)
def test_text_becomes_sentencepieces_own_ids(text, processor, reference):
    assert processor.tokenizer(text, add_special_tokens=False).input_ids == reference.encode(text)


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_person_types_becomes_the_same_ids(text, processor, reference):
    content = [{"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], training=True, tokenize=True, return_dict=True
    )
    [expected] = reference.prompt_ids(f"###Human: {text} ###")
    assert inputs["input_ids"] in (expected, [expected])


@pytest.mark.parametrize("longest", [None, 32, 12])
@pytest.mark.parametrize("variant", ["vicuna", "llama-2"])
def test_stage_1_has_no_prompt_and_cuts_long_captions(
    variant, longest, processor, llama_2_processor, reference, llama_2_reference, picture
):
    """The end symbol is appended first, so a caption of 32 tokens or more loses it."""
    plain = reference if variant == "vicuna" else llama_2_reference
    collator = MiniGPT4DataCollator(processor if variant == "vicuna" else llama_2_processor, max_answer_tokens=longest)
    captions = ["a cat", LONG.strip(), "two people walking on the beach at sunset with a kite"]
    batch = collator([{"image": picture(), "text": caption} for caption in captions])
    rows = [plain.training_row(IMAGE, f"{caption}\n", longest) for caption in captions]
    check_rows(batch, rows)
    newline = plain.encode("\n")[-1]
    assert (newline in batch["labels"][1]) == (longest is None)


@pytest.mark.parametrize("longest", [None, 160])
def test_stage_2_cuts_long_answers(longest, processor, reference, picture):
    answers = ["It is a cat.", LONG.strip(), "The image shows a large brown dog."]
    collator = MiniGPT4DataCollator(processor, max_answer_tokens=longest)
    batch = collator([{"image": picture(), "instruction": INSTRUCTION, "text": answer} for answer in answers])
    prompt = f"###Human: <Img>{IMAGE}</Img> {INSTRUCTION} ###Assistant: "
    rows = [reference.training_row(prompt, f"{answer}###", longest) for answer in answers]
    check_rows(batch, rows)
    assert (len(rows[1][0]) - rows[1][1].count(IGNORE) == 160) == (longest == 160)


@pytest.mark.parametrize("longest", [None, 160])
def test_stage_2_of_llama_2_cuts_long_answers(longest, llama_2_processor, llama_2_reference, picture):
    answers = ["It is a cat.", LONG.strip(), "The image shows a large brown dog."]
    collator = MiniGPT4DataCollator(llama_2_processor, max_answer_tokens=longest)
    batch = collator([{"image": picture(), "instruction": INSTRUCTION, "text": answer} for answer in answers])
    prompt = f"[INST] <Img>{IMAGE}</Img> {INSTRUCTION} [/INST] "
    rows = [llama_2_reference.training_row(prompt, f"{answer}</s>", longest) for answer in answers]
    check_rows(batch, rows)
    assert (batch["labels"][1] == 2).any() == (longest is None)


def check_rows(batch, rows):
    """A batch contains these rows, padded on the right: [(ids, labels), ...]."""
    longest = max(len(ids) for ids, _ in rows)
    padding = [longest - len(ids) for ids, _ in rows]
    expected = {
        "input_ids": [ids + [2] * pad for (ids, _), pad in zip(rows, padding, strict=True)],
        "attention_mask": [[1] * len(ids) + [0] * pad for (ids, _), pad in zip(rows, padding, strict=True)],
        "labels": [labels + [IGNORE] * pad for (_, labels), pad in zip(rows, padding, strict=True)],
    }
    assert {name: batch[name].tolist() for name in expected} == expected
