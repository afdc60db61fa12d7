"""Answers to many pictures at once: greedy, batched, padded on the left; and an answer as it is written."""

import torch
from tqdm.auto import tqdm
from transformers import TextStreamer


class AnswerStreamer(TextStreamer):
    """Prints an answer to stdout as it is written, up to the turn marker, which is never shown, not even in part."""

    def __init__(self, processor):
        super().__init__(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.markers, self.held, self.ended = processor.turn_markers, "", False

    def on_finalized_text(self, text, stream_end=False):
        """Prints what can no longer be the beginning of a marker."""
        self.held += "" if self.ended else text
        for marker in self.markers:
            before, found, _ = self.held.partition(marker)
            self.held, self.ended = before, self.ended or bool(found)
        beginnings = [m[:i] for m in self.markers for i in range(1, len(m)) if self.held.endswith(m[:i])]
        keep = 0 if stream_end or self.ended else max(map(len, beginnings), default=0)
        shown = self.held[: len(self.held) - keep]
        self.held = self.held[len(shown) :]
        super().on_finalized_text(shown, stream_end)


def answer_text(processor, ids):
    """The answer in what the model wrote: without special tokens, up to the turn marker, behind a repeated role."""
    text = processor.decode(ids, skip_special_tokens=True)
    for marker in processor.turn_markers:
        text = text.split(marker)[0].split("Assistant:")[-1]
    return text.strip()


def chat_prompt(processor, question):
    """The prompt of a first question about one picture, as the chat template writes it."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def caption_prompt(processor):
    """The stage-1 prompt: BOS and the picture, nothing else."""
    return (processor.tokenizer.bos_token or "") + processor.image_token


@torch.inference_mode()
def batch_answers(model, processor, prompts, features, **settings):
    """The answer to each of a batch of prompts, as text: padded on the left, each row stops by itself.

    Args:
        prompts: rendered prompts, each with one picture's image token.
        features: [prompts, Q, C], the frozen vision part's output for each (`MiniGPT4Model.get_vision_features`).
        settings: of `generate`.
    """
    tokenizer = processor.tokenizer
    texts = [prompt.replace(processor.image_token, processor.replace_image_token({}, 0)) for prompt in prompts]
    inputs = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.generate(
        **inputs.to(model.device),
        vision_features=features.to(model.device),
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )
    return [answer_text(processor, new) for new in output[:, inputs["input_ids"].shape[1] :]]


def answers(model, processor, prompts, features, max_new_tokens=60, stop=None, batch_size=128, desc=None):
    """A greedy answer for each prompt, in batches; see `batch_answers`.

    Args:
        stop: text of one token that ends an answer besides the model's own end of turn ("\\n" after a caption).
        desc: label of a progress bar; none is shown without it.
    """
    tokenizer = processor.tokenizer
    ends = [tokenizer.eos_token_id, *(tokenizer.encode(stop, add_special_tokens=False)[-1:] if stop else [])]
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": ends}
    texts = []
    for start in tqdm(range(0, len(prompts), batch_size), desc=desc, disable=desc is None, unit="batch"):
        batch = slice(start, start + batch_size)
        texts += batch_answers(model, processor, prompts[batch], features[batch], **settings)
    return texts
