"""Ask a MiniGPT-4 about pictures: one question with --ask, a conversation without."""

import sys


def add_arguments(parser):
    """Adds the arguments of `minigpt4 chat`."""
    parser.add_argument("--model", default="embedded", help='"embedded" (the default), a folder, or a Hub id')
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may be repeated")
    parser.add_argument("--ask", metavar="TEXT", help="one question; the answer alone goes to stdout")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="longest answer (default: 200)")


def run(arguments):
    """Loads the model, then answers one question or holds a conversation."""
    from ..processing.image_processing_minigpt4 import load_image

    pictures = [load_image(path) for path in arguments.image]
    if arguments.ask is not None and not arguments.ask.strip():
        raise ValueError("--ask is empty; expected a question")
    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {arguments.max_new_tokens}; expected 1 or more")
    from transformers.utils import logging

    from ..models import load

    logging.disable_progress_bar()
    model, processor = load(arguments.model)
    if arguments.ask is not None:
        answer(model, processor, [user_message(arguments.ask, pictures)], arguments.max_new_tokens)
        return
    converse(model, processor, pictures, arguments.max_new_tokens)


def user_message(text, pictures=()):
    """A user's turn: pictures, then text."""
    return {
        "role": "user",
        "content": [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": text}],
    }


def answer(model, processor, messages, max_new_tokens):
    """Streams the answer to stdout and returns it; raises ValueError if conversation and answer exceed the context."""
    from ..generation import AnswerStreamer, answer_text

    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    prompt = inputs["input_ids"].shape[1]
    context = model.config.text_config.max_position_embeddings
    if prompt + max_new_tokens > context:
        raise ValueError(
            f"the conversation takes {prompt} tokens and the answer up to {max_new_tokens}, more than the {context} that "
            "the model reads; shorten the text or lower --max-new-tokens"
        )
    streamer = AnswerStreamer(processor)
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer)
    return answer_text(processor, output[0, prompt:])


def converse(model, processor, pictures, max_new_tokens):
    """Questions from stdin until an empty line or its end; the pictures belong to the first."""
    print(f"{len(pictures)} picture(s). Ask; an empty line ends.", file=sys.stderr)
    messages = []
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        question = sys.stdin.readline().strip()
        if not question:
            return
        messages.append(user_message(question, () if messages else pictures))
        try:
            text = answer(model, processor, messages, max_new_tokens)
        except ValueError as error:
            print(error, file=sys.stderr)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
