"""Answers in conversations as LLMs' own templates write them: those from the wheels, and what no template may do."""

import functools

import pytest
from real_templates import byte_tokenizer, of_trl, of_unsloth
from transformers.utils.chat_template_utils import render_jinja_template

from minigpt4 import MiniGPT4Config, MiniGPT4DataCollator, MiniGPT4ImageProcessor, MiniGPT4Processor
from minigpt4.inference.generation import chat_prompt
from minigpt4.processing.chat_templates import own_template
from minigpt4.processing.processing_minigpt4 import ASKING
from minigpt4.processing.turns import segments, turn_end, written

QUESTION = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
MESSAGES = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": [{"type": "text", "text": "It purrs."}]},
]
PLAIN = [
    {"role": "user", "content": "<image>What is it?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "It purrs."},
]
# What ends a turn, by the templates' own authors; where nothing does, the tokenizer's EOS.
UNSLOTH_ENDS = {
    "zephyr": "</s>",
    "chatml": "<|im_end|>",
    "mistral": "</s>",
    "llama": " </s>",
    "vicuna": "</s>",
    "alpaca": "</s>",
    "gemma": "<end_of_turn>",
    "llama3": "<|eot_id|>",
    "phi3": "<|end|>",
    "llama31": "<|eot_id|>",
    "qwen25": "<|im_end|>",
    "phi4": "<|im_end|>",
    "gemma3": "<end_of_turn>",
    "qwen3": "<|im_end|>",
}
# Only of vision-language models: they accept only lists, and write images in their own way.
FOR_LISTS = {"idefics3", "llava_next", "smolvlm"}
TRL = {name: template for name, template in of_trl().items() if not name.endswith("_training") and name not in FOR_LISTS}


@functools.cache
def unsloth():
    """Its templates; skips where the index does not have the wheel."""
    try:
        return of_unsloth()
    except OSError as error:
        pytest.skip(str(error))


def rendered(template, messages, tokenizer, **arguments):
    """A template as transformers renders it."""
    [text], _ = render_jinja_template(
        conversations=[messages], chat_template=template, **tokenizer.special_tokens_map, **arguments
    )
    return text


def check_answers(template, ends):
    """The text is the LLM's own, picture included; answers are the answers and what ends the turn."""
    tokenizer = byte_tokenizer(template, ["<image>"])
    own = own_template(template, "<image>")
    found, _ = segments(own, MESSAGES, tokenizer)
    answers = [text for text, is_answer in found if is_answer]
    assert [answer.strip() for answer in answers] == [
        f"{text}{end}".strip() for text, end in zip(("A cat.", "It purrs."), ends, strict=True)
    ]
    text, expected = "".join(text for text, _ in found), rendered(template, PLAIN, tokenizer)
    assert text in (expected, expected.removesuffix("\n") + "</s>" + "\n" * expected.endswith("\n"))
    prompt = rendered(own, MESSAGES[:3], tokenizer, add_generation_prompt=True)
    assert prompt == rendered(template, PLAIN[:3], tokenizer, add_generation_prompt=True)
    assert prompt.count("<image>") == 1


@pytest.mark.parametrize("name", UNSLOTH_ENDS)
def test_answers_of_unsloths_templates(name):
    check_answers(unsloth()[name], [UNSLOTH_ENDS[name]] * 2)


@pytest.mark.parametrize("name", TRL)
def test_answers_of_trls_templates(name):
    """Those of the template's author, and of trl's own version for training, where there is one: see `check_trained`."""
    template = TRL[name]
    last = turn_end(own_template(template, "<image>"), byte_tokenizer(template))
    first = "" if name == "glm4moe" else "<|end|>" if name == "gptoss" else last  # within a conversation
    check_answers(template, [first, last])
    if training := of_trl().get(f"{name}_training"):
        check_trained(template, training)


def check_trained(template, training):
    """trl marks what the model writes, with what comes before the answer (a header, empty thoughts) and white space."""
    tokenizer = byte_tokenizer(template, ["<image>"])
    found, _ = segments(own_template(template, "<image>"), MESSAGES, tokenizer)
    [text], [spans] = render_jinja_template(
        conversations=[PLAIN], chat_template=training, return_assistant_tokens_mask=True, **tokenizer.special_tokens_map
    )
    marked = "".join(text[start:end] for start, end in spans)
    for answer in (text for text, is_answer in found if is_answer):
        assert answer.strip().removesuffix("</s>") in marked


def test_qwens_switch_system_text_and_tools_stay():
    template = TRL["qwen3"]
    tokenizer, own = byte_tokenizer(template), own_template(template, "<image>")
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {}}}
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"where": "left"}}}]}
    messages = [{"role": "system", "content": "Be short."}, *PLAIN[:1], called, {"role": "tool", "content": "a cat"}]
    for arguments in ({}, {"enable_thinking": False}, {"enable_thinking": True}, {"tools": [tool]}):
        text = rendered(own, messages, tokenizer, add_generation_prompt=True, **arguments)
        assert text == rendered(template, messages, tokenizer, add_generation_prompt=True, **arguments)
        assert text.endswith("</think>\n\n") == (arguments == {"enable_thinking": False})
        assert '"where": "left"' in text
    assert "Qwen" in rendered(own_template(TRL["qwen2_5"], "<image>"), PLAIN, tokenizer)


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n###\n{% endfor %}", ["A cat.\n###", "It purrs.\n###"]),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", ["A cat.", "It purrs.</s>"]),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}", ["A cat.", "It purrs.\n</s>"]),
    ],
)
def test_ends_that_are_no_special_token(template, answers):
    found, _ = segments(template, PLAIN, byte_tokenizer())
    assert [text for text, is_answer in found if is_answer] == answers


def test_white_space_of_an_answer_is_the_templates_business():
    messages = [PLAIN[0], {"role": "assistant", "content": "  two\n\n"}]
    for trim, answer in (("", "  two\n\n</s>"), ("|trim", "two</s>")):
        template = f"{{% for m in messages %}}{{{{ m.content{trim} }}}}{{{{ eos_token }}}}{{% endfor %}}"
        assert segments(template, messages, byte_tokenizer())[0][1] == (answer, True)


def test_a_template_that_leaves_answers_out():
    with pytest.raises(ValueError, match="shows 0 answers of a conversation that has 2; expected each once"):
        segments("{{ messages[0].content }}", PLAIN, byte_tokenizer())


def test_what_a_template_writes_is_known_from_what_it_renders():
    """Zephyr, Phi-3 and others put the role between the brackets of a token: it is in no text of theirs."""
    template = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    assert "<|user|>" not in template
    assert "<|user|>" in written(template, byte_tokenizer())
    assert "<|system|>" in written(template, byte_tokenizer())


@pytest.fixture
def llms_own(tiny_config):
    """llms_own(template): the processor of an LLM whose tokenizer brings that template."""

    def make(template, named=None):
        tokenizer = byte_tokenizer(template, ["<image>"])
        tiny_config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
        return MiniGPT4Processor.for_model(tiny_config, tokenizer, named)

    before = tiny_config.image_token_id
    yield make
    tiny_config.image_token_id = before


@pytest.mark.parametrize("name", ["llama3_2", "gemma", "phi3", "qwen3", "cohere", "glm4moe"])
def test_labels_are_the_answers_with_the_ids_of_the_whole_conversation(name, llms_own, picture):
    processor = llms_own(TRL[name])
    input_ids, labels = MiniGPT4DataCollator(processor).encode({"images": [picture()], "messages": MESSAGES})
    found, _ = processor.segments(MESSAGES, enable_thinking=False)
    assert processor.tokenizer.decode([token for token in labels if token != -100]) == "".join(
        text for text, is_answer in found if is_answer
    )
    text = "".join(text for text, _ in found[:-1])
    assert input_ids == processor.encode(text)
    assert input_ids.count(processor.image_token_id) == processor.num_image_tokens


@pytest.mark.parametrize("name", ["llama3_2", "gemma", "phi3", "qwen3", "cohere"])
def test_an_answer_is_asked_for_as_training_shows_one(name, llms_own, picture):
    """Qwen3's has empty thoughts before it in training, and asks for full ones unless it is told otherwise."""
    processor = llms_own(TRL[name])
    example = {"image": picture(), "instruction": "What is it?", "text": "A cat."}
    input_ids, labels = MiniGPT4DataCollator(processor).encode(example)
    asked = processor.encode(chat_prompt(processor, "What is it?"))
    assert input_ids[: len(asked)] == asked
    assert len(asked) == next(place for place, label in enumerate(labels) if label != -100)


def test_answers_cut_short_and_ended_otherwise(llms_own, picture):
    processor = llms_own(TRL["gemma"])
    example = {"image": picture(), "instruction": "What is it?", "text": "A cat."}
    for arguments, answer in (
        ({}, "A cat.<end_of_turn>"),
        ({"max_answer_tokens": 3}, "A c"),
        ({"answer_end": "!"}, "A cat.!"),
    ):
        _, labels = MiniGPT4DataCollator(processor, **arguments).encode(example)
        assert processor.tokenizer.decode([token for token in labels if token != -100]) == answer


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_2"])
def test_no_template_is_replaced_for_what_it_spells(name, llms_own):
    processor = llms_own(TRL[name])
    text = processor.apply_chat_template(MESSAGES, tokenize=False)
    assert text == rendered(TRL[name], PLAIN, processor.tokenizer)


def test_mistrals_brackets_do_not_make_it_llama_2(llms_own):
    template = unsloth()["mistral"]
    processor = llms_own(template)
    assert processor.apply_chat_template(MESSAGES, tokenize=False) == rendered(template, PLAIN, processor.tokenizer)
    assert "<Img>" in llms_own(template, "llama-2").apply_chat_template(MESSAGES[:2], tokenize=False)


def test_training_and_inference_have_the_same_ids(llms_own, picture):
    """ChatML writes no BOS, though the tokenizer would: neither do the ids have one."""
    processor = llms_own(None, "chatml")
    backend = processor.tokenizer.backend_tokenizer
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert processor.tokenizer("a").input_ids[0] == 0
    asked = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": picture()}, *QUESTION[1:]]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"]
    trained, _ = MiniGPT4DataCollator(processor).encode({"image": picture(), "instruction": "What is it?", "text": "A"})
    asked = asked[0] if isinstance(asked[0], list) else asked
    assert trained[: len(asked)] == asked
    assert processor.conversation_ids(MESSAGES[:1], add_generation_prompt=True) == asked


def test_templates_that_are_none(llms_own):
    for template, message in (
        ("Hello", "shows 0 answers"),
        ("{{ messages[1].content }}", "shows 0 pictures of a turn that has one of each"),
        ("{{ raise_exception('no pictures, please') }}", "cannot be used .no pictures, please.; name another"),
        ("lama-2", "shows 0 answers"),
    ):
        with pytest.raises(ValueError, match=message):
            llms_own(template, template)


def test_an_end_in_letters_is_a_marker(llms_own):
    """A person cannot type it, and it is where answers are cut."""
    processor = llms_own("{% for m in messages %}{{ m.role }}: {{ m.content }}\n@@@\n{% endfor %}")
    assert processor.turn_markers == ["@@@"]
    assert processor.turn_ends
    assert processor.turn_end_ids == []
    assert llms_own(TRL["phi3"]).turn_markers == []


def test_a_row_that_no_token_has_becomes_the_image_token():
    tokenizer = byte_tokenizer(TRL["gemma"])
    config = MiniGPT4Config.preset("embedded", image_token_id=len(tokenizer))
    looks = MiniGPT4ImageProcessor()
    processor = MiniGPT4Processor.for_model(config, tokenizer, image_processor=looks)
    assert (processor.image_token, processor.image_token_id) == ("<image>", config.image_token_id)
    config.image_token_id += 1000
    with pytest.raises(ValueError, match=r"the tokenizer, of \d+ tokens, has no token for image_token_id \d+"):
        MiniGPT4Processor.for_model(config, tokenizer, image_processor=looks)


def test_a_switch_that_the_template_lacks_is_dropped_without_a_warning(processor, monkeypatch):
    def warning(text, *_):
        raise AssertionError(text)

    monkeypatch.setattr("transformers.processing_utils.logger.warning", warning)
    assert processor.apply_chat_template(PLAIN, **ASKING) == processor.apply_chat_template(PLAIN, add_generation_prompt=True)
    assert processor.conversation_ids(PLAIN, **ASKING)
