"""Finds the answers in a rendered conversation, for any chat template.

    messages -> [(text, is_answer), ...]    all texts joined are the conversation; an answer includes its turn's end

A template with `generation` blocks itself marks what the model writes. Any other is rendered with marks as answers: the text
around the marks is the template's, and the turn's end is the part of it that follows an answer, up to and including the
first special tokens.
"""

import contextlib
import re
import uuid

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

# The pattern that transformers uses.
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
# White space on both sides of a mark, which a template that trims answers removes. No tokenizer sees it.
_EDGE = "\v"


def segments(template, messages, tokenizer, **arguments):
    """A conversation as [(text, is_answer), ...], and whether `generation` blocks marked the answers.

    Args:
        template: a Jinja chat template.
        messages: their texts are already data (see `MiniGPT4Processor.plain_text`).
        tokenizer: for its special tokens. If the template puts nothing after the last answer, its EOS ends that.
        arguments: other variables of the template.

    Raises:
        ValueError: the template leaves answers out, or shows them more than once.
    """
    arguments = {**tokenizer.special_tokens_map, **arguments}
    if _GENERATION_BLOCK.search(template):
        [text], [spans] = render_jinja_template(
            conversations=[messages], chat_template=template, return_assistant_tokens_mask=True, **arguments
        )
        if spans:
            return _cut(text, spans), True
    return _by_marks(template, messages, tokenizer, arguments), False


def turn_end(template, tokenizer):
    """What the template puts after an answer that ends a conversation, as text: "<|im_end|>", "###"."""
    mark = _mark()
    found, _ = segments(template, _one_turn(mark), tokenizer)
    [answer] = [text for text, is_answer in found if is_answer]
    return answer.partition(mark)[2]


def written(template, tokenizer):
    """Everything a template may write: its own text, and its output for conversations with the usual roles."""
    texts = [template]
    for roles in (("system", "user", "assistant"), ("user", "assistant"), ("user", "assistant", "tool")):
        messages = [{"role": role, "content": ""} for role in roles]
        with contextlib.suppress(TemplateError, TypeError):  # not every template supports every role
            texts += render_jinja_template(
                conversations=[messages], chat_template=template, add_generation_prompt=True, **tokenizer.special_tokens_map
            )[0]
    return "".join(texts)


def _cut(text, spans):
    """A text as segments; those from start to end of a span are answers."""
    found, last = [], 0
    for start, end in spans:
        found += [(text[last:start], False), (text[start:end], True)]
        last = end
    return [*found, (text[last:], False)]


def _by_marks(template, messages, tokenizer, arguments):
    """See `segments`."""
    answers = [_text(message["content"]) for message in messages if _is_answer(message)]
    pieces = _around_answers(template, messages, arguments)
    [_, tail] = _around_answers(template, _one_turn(""), arguments)
    tail = tail.removeprefix(_EDGE)
    names = "|".join(re.escape(str(token)) for token in tokenizer.added_tokens_decoder.values())
    special = re.compile(f"(?:{names or '(?!)'})")
    found = [(pieces[0], False)]
    for answer, piece in zip(answers, pieces[1:], strict=True):
        text = answer if found[-1][0].endswith(_EDGE) else answer.lstrip()
        text = text if piece.startswith(_EDGE) else text.rstrip()
        behind = piece.removeprefix(_EDGE)
        end = _end(behind, tail, special)
        found += [(text + end, True), (behind.removeprefix(end), False)]
    if answers and not tail.strip():
        found[-2] = found[-2][0] + (tokenizer.eos_token or ""), True
    return [(text if is_answer else text.removesuffix(_EDGE), is_answer) for text, is_answer in found]


def _end(behind, tail, special):
    """The turn's end in what the template puts after an answer; `tail`: the end after a conversation's last answer."""
    first = re.search(f"{special.pattern}+", tail)
    end = tail[: first.end()] if first else tail.rstrip()
    if behind.startswith(end):
        return end
    other = special.match(behind)  # some end the last turn differently from the others
    return other[0] if first and other else ""


def _around_answers(template, messages, arguments):
    """The rendered conversation, split at the answers; with an `_EDGE` next to each, unless the template trims it."""
    marks = [_mark() for message in messages if _is_answer(message)]
    left = iter(marks)
    shown = [{**message, "content": _EDGE + next(left) + _EDGE} if _is_answer(message) else message for message in messages]
    [text], _ = render_jinja_template(conversations=[shown], chat_template=template, **arguments)
    found = re.findall("|".join(marks) or r"(?!)", text)
    if found != marks:
        raise ValueError(
            f"the chat template shows {len(found)} answers of a conversation that has {len(marks)}; expected each once"
        )
    return re.split("|".join(marks) or r"(?!)", text)


def _one_turn(answer):
    return [{"role": "user", "content": ""}, {"role": "assistant", "content": answer}]


def _is_answer(message):
    return message["role"] == "assistant" and message.get("content") is not None


def _text(content):
    """The text of a message."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def _mark():
    """A text that nobody could have typed."""
    return f"\ufdd1{uuid.uuid4().hex}\ufdd1"
