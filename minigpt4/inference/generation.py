"""Answers about many images at once: greedy, batched, padded on the left."""

import torch
from tqdm.auto import tqdm

from ..modeling_minigpt4.chat import answer_text, end_ids
from ..processing.collator import IGNORE, MiniGPT4DataCollator
from ..processing.processing_minigpt4 import ASKING


def chat_prompt(processor, question):
    """The prompt of a first question about one image, from the chat template."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, **ASKING)


def caption_prompt(processor):
    """The stage-1 prompt: only BOS and the image."""
    return (processor.tokenizer.bos_token or "") + processor.image_token


@torch.inference_mode()
def batch_answers(model, processor, prompts, features, **settings):
    """The answer to each of a batch of prompts, as text: padded on the left, each row stops independently.

    Args:
        prompts: rendered prompts, each with one image token.
        features: [prompts, Q, C], the frozen vision parts' output for each (`MiniGPT4Model.get_vision_features`).
        settings: arguments of `generate`; an answer ends with the model's turn, unless `eos_token_id` is given.
    """
    tokenizer = processor.tokenizer
    texts = [processor.expand(prompt) for prompt in prompts]
    inputs = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.generate(
        **inputs.to(model.device),
        vision_features=features.to(model.device),
        **{"pad_token_id": tokenizer.pad_token_id, "eos_token_id": end_ids(model, processor), **settings},
    )
    return [answer_text(processor, new) for new in output[:, inputs["input_ids"].shape[1] :]]


def answers(model, processor, prompts, features, max_new_tokens=60, stop=None, batch_size=128, desc=None):
    """A greedy answer for each prompt, in batches; see `batch_answers`.

    Args:
        stop: text of one token that also ends an answer, in addition to the model's own end of turn ("\\n" after a caption).
        desc: label of a progress bar; none is shown without it.
    """
    ends = [*end_ids(model, processor), *(processor.encode(stop)[-1:] if stop else [])]
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": ends}
    texts = []
    for start in tqdm(range(0, len(prompts), batch_size), desc=desc, disable=desc is None, unit="batch"):
        batch = slice(start, start + batch_size)
        texts += batch_answers(model, processor, prompts[batch], features[batch], **settings)
    return texts


@torch.inference_mode()
def candidate_losses(model, processor, instructions, candidates, features, batch_size=64):
    """Losses of candidate answers: a list for each instruction; the lowest is the likeliest.

    Like the original's `multi_select`: the training form of the turn with the candidate as its answer; the cross-entropy of
    the answer's tokens, including its end, summed and divided by the number of tokens predicted in the row.

    Args:
        instructions: texts. candidates: for each a list of answers.
        features: [instructions, Q, C], as for `answers`.
        batch_size: rows at a time, one per candidate.
    """
    rows = [
        {"vision_features": seen, "instruction": instruction, "text": answer}
        for instruction, of_one, seen in zip(instructions, candidates, features, strict=True)
        for answer in of_one
    ]
    collator, losses = MiniGPT4DataCollator(processor), []
    for start in range(0, len(rows), batch_size):
        batch = {name: tensor.to(model.device) for name, tensor in collator(rows[start : start + batch_size]).items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].float()
        summed = torch.nn.functional.cross_entropy(logits.mT, labels, ignore_index=IGNORE, reduction="none").sum(1)
        losses += (summed / (batch["attention_mask"].sum(1) - 1)).tolist()
    left = iter(losses)
    return [[next(left) for _ in of_one] for of_one in candidates]
