"""From examples to a training batch with labels only on the answers: MiniGPT4DataCollator.

Three forms of examples, from the paper's two stages and the Hub (`image` or `vision_features`, see below):

    {"image", "text"}                   stage 1: BOS, image, caption + "\\n"                    no prompt
    {"image", "instruction", "text"}    stage 2: one turn in the chat template's training form, answer + its end
    {"images": [...], "messages": [...]}  the chat template, a loss on every assistant turn
"""

import bisect
import itertools
import random
from typing import Any

import torch

from .processing_minigpt4 import UNTHINKING

IGNORE = -100


class MiniGPT4DataCollator:
    """Makes `input_ids`, `attention_mask`, `labels` [B, L] and `pixel_values` [N, 3, H, W] from a list of examples.

    Prompt and answer are tokenized separately, as in the original; rows are padded on the right.

    Args:
        processor: a `MiniGPT4Processor`.
        max_answer_tokens: answers are cut to this many tokens, including their end symbol, which long ones lose (the
            original: 32 in stage 1, 160 in stage 2). None: no limit.
        answer_end: what ends an answer; by default "\\n" after a caption and the template's own turn end after an answer.
        instructions: for examples of the first form, draw one of these for each sample (the paper's four, for example),
            which turns them into examples of the second.
        packing: put all sequences of the batch into one row [1, L], with `position_ids` that restart at each and no mask,
            from which transformers infers that they do not attend to each other.
        max_tokens: limit for prompt and answer together (the LLM's context); a longer example is an error.
        plan: add "plan" to the batch, numbers that the host knows now and would later have to wait for the device to get:
            {"lengths": of each row, up to the last token before an answer's; "answers": answer tokens in each; "tokens": in
            all}. It is for `MiniGPT4Trainer` (see grouped_loss.py); a plain model does not accept it. Not with packing.

    Examples may have `vision_features` [Q, C] (see `MiniGPT4Model.get_vision_features`) instead of `image`; then so does
    the batch: `vision_features` [N, Q, C].
    """

    def __init__(
        self,
        processor,
        max_answer_tokens=None,
        answer_end=None,
        instructions=None,
        packing=False,
        max_tokens=None,
        plan=False,
    ):
        self.processor = processor
        self.max_answer_tokens = max_answer_tokens
        self.answer_end = answer_end
        self.instructions = instructions
        self.packing = packing
        self.max_tokens = max_tokens
        self.plan = plan

    def __call__(self, examples):
        """list of examples -> batch; raises ValueError for an example that has no text or image, or is too long."""
        rows = [self.encode(example) for example in examples]
        for example, (input_ids, _) in zip(examples, rows, strict=True):
            self._check_pictures(example, input_ids)
        batch: dict[str, Any] = self._pack(rows) if self.packing else self._pad(rows)
        batch.update(self._pictures(examples))
        if self.plan:
            batch["plan"] = _plan(rows)
        return batch

    def encode(self, example):
        """One example -> (input_ids, labels), two lists of the same length."""
        input_ids, labels = [], []
        for ids, is_answer in self._encoded(example):
            kept = ids[: self.max_answer_tokens] if is_answer else ids
            input_ids += kept
            labels += kept if is_answer else [IGNORE] * len(kept)
        if self.max_tokens is not None and len(input_ids) > self.max_tokens:
            raise ValueError(
                f"an example takes {len(input_ids)} tokens, more than the {self.max_tokens} that the LLM reads; "
                "set max_answer_tokens or shorten its text"
            )
        return input_ids, labels

    def _encoded(self, example):
        """An example as [(ids, is_answer), ...]."""
        if "messages" in example:
            return self._conversation(example["messages"])
        if not isinstance(example.get("text"), str):
            raise ValueError(f"an example needs `text`, a string, or `messages`; found {_fields(example)}")
        instruction = example.get("instruction")
        if instruction is None and self.instructions:
            instruction = random.choice(self.instructions)
        if instruction is None:
            bos = self.processor.tokenizer.bos_token or ""
            end = "\n" if self.answer_end is None else self.answer_end
            answer = self.processor.plain_text(example["text"]) + end
            return self._apart([(bos + self.processor.image_token, False), (answer, True)])
        question = [{"type": "image"}, {"type": "text", "text": instruction}]
        answer = [{"role": "user", "content": question}, {"role": "assistant", "content": example["text"]}]
        return self._conversation(answer, training=True)

    def _conversation(self, messages, **template):
        """Messages as [(ids, is_answer), ...], up to the last answer: nothing is learned from what follows.

        If the template itself marks answers, as those of chat_templates.py do, each segment is encoded separately. In an
        LLM's own template, they have the ids that the LLM's tokenizer gives for the whole conversation.
        """
        segments, apart = self.processor.segments(messages, **UNTHINKING, **template)
        while segments and not segments[-1][1]:
            segments.pop()
        if self.answer_end is not None:
            end = self.processor.turn_end
            segments = [
                (text.removesuffix(end) + self.answer_end, True) if kind else (text, kind) for text, kind in segments
            ]
        return self._apart(segments) if apart else self._together(segments)

    def _apart(self, segments):
        """[(text, is_answer), ...] -> [(ids, is_answer), ...], each encoded separately."""
        return [(self.processor.encode(text), is_answer) for text, is_answer in segments]

    def _together(self, segments):
        """The same, encoded as one text: a token belongs to the segment that it ends in."""
        texts = [self.processor.expand(text) if not is_answer else text for text, is_answer in segments]
        ends = list(itertools.accumulate(map(len, texts)))
        encoded = self.processor.tokenizer("".join(texts), add_special_tokens=False, return_offsets_mapping=True)
        found = [([], is_answer) for _, is_answer in segments]
        for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
            found[bisect.bisect_right(ends, max(start, end - 1))][0].append(token)
        return found

    def _pad(self, rows):
        longest = max(len(input_ids) for input_ids, _ in rows)
        pad = self.processor.tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor([labels + [IGNORE] * (longest - len(labels)) for _, labels in rows]),
        }

    def _pack(self, rows):
        input_ids = torch.tensor([[token for ids, _ in rows for token in ids]])
        # The first label of a sequence would be predicted from the last token of the one before it.
        labels = torch.tensor([[label for _, row in rows for label in [IGNORE, *row[1:]]]])
        position_ids = torch.tensor([[position for ids, _ in rows for position in range(len(ids))]])
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": position_ids,
        }

    def _pictures(self, examples):
        if any("vision_features" in example for example in examples):
            return {"vision_features": torch.stack([example["vision_features"] for example in examples])}
        pictures = [picture for example in examples for picture in self._pictures_of(example)]
        if not pictures:
            return {}
        pixel_values = self.processor.image_processor(
            self.processor.image_processor.fetch_images(pictures), return_tensors="pt"
        )
        return {"pixel_values": pixel_values["pixel_values"]}

    @staticmethod
    def _pictures_of(example):
        if example.get("image") is not None:
            return [example["image"]]
        return example.get("images") or []

    def _check_pictures(self, example, input_ids):
        places = input_ids.count(self.processor.image_token_id) // self.processor.num_image_tokens
        pictures = 1 if "vision_features" in example else len(self._pictures_of(example))
        if places != pictures:
            raise ValueError(
                f"an example has {pictures} picture(s), but its text has a place for {places}; found {_fields(example)}"
            )


def _plan(rows):
    """What `plan` adds to a batch, from [(input_ids, labels), ...]; nothing predicts a row's first label."""
    answers = [[i for i, label in enumerate(labels) if i and label != IGNORE] for _, labels in rows]
    return {
        "lengths": [max(places, default=1) for places in answers],
        "answers": [len(places) for places in answers],
        "tokens": sum(len(input_ids) for input_ids, _ in rows),
    }


def _fields(example):
    return ", ".join(f"{name} ({type(value).__name__})" for name, value in example.items()) or "no field"
