"""Examples to a training batch with labels on the answers alone: MiniGPT4DataCollator.

Three forms of an example, from the paper's two stages and the Hub (`image` or `vision_features`, see below):

    {"image", "text"}                   stage 1: BOS, picture, caption + "\\n"                  no prompt
    {"image", "instruction", "text"}    stage 2: the chat template's training form of one turn, answer + its end
    {"images": [...], "messages": [...]}  the chat template, a loss on every assistant turn
"""

import random

import torch
from transformers.utils.chat_template_utils import render_jinja_template

IGNORE = -100


class MiniGPT4DataCollator:
    """Makes `input_ids`, `attention_mask`, `labels` [B, L] and `pixel_values` [N, 3, H, W] of a list of examples.

    Prompt and answer are tokenized each on its own, as in the original; rows are padded on the right.

    Args:
        processor: a `MiniGPT4Processor`.
        max_answer_tokens: answers are cut to that many tokens after their end symbol is appended, so that a long one
            loses it (the original: 32 in stage 1, 160 in stage 2). None cuts nothing.
        answer_end: what ends an answer; by default "\\n" after a caption and the template's own turn end after an answer.
        instructions: for examples of the first form, draw one of these for each sample (the paper's four, say), which
            makes them examples of the second.
        packing: put all sequences of the batch into one row [1, L], with `position_ids` that restart at each; they do
            not see each other.
        max_tokens: prompt and answer together may not be longer (the LLM's context); a longer example is an error.

    Examples may hold `vision_features` [Q, C] (see `MiniGPT4Model.get_vision_features`) in place of `image`; then the
    batch does, too: `vision_features` [N, Q, C].
    """

    def __init__(
        self,
        processor,
        max_answer_tokens=None,
        answer_end=None,
        instructions=None,
        packing=False,
        max_tokens=None,
    ):
        self.processor = processor
        self.max_answer_tokens = max_answer_tokens
        self.answer_end = answer_end
        self.instructions = instructions
        self.packing = packing
        self.max_tokens = max_tokens

    def __call__(self, examples):
        """list of examples -> batch; raises ValueError for an example without text or picture, or too long."""
        rows = [self.encode(example) for example in examples]
        for example, (input_ids, _) in zip(examples, rows, strict=True):
            self._check_pictures(example, input_ids)
        batch = self._pack(rows) if self.packing else self._pad(rows)
        batch.update(self._pictures(examples))
        return batch

    def encode(self, example):
        """One example -> (input_ids, labels), two lists of the same length."""
        input_ids, labels = [], []
        for text, is_answer in self._segments(example):
            ids = self._tokenize(text)
            if is_answer:
                ids = ids[: self.max_answer_tokens]
            input_ids += ids
            labels += ids if is_answer else [IGNORE] * len(ids)
        if self.max_tokens is not None and len(input_ids) > self.max_tokens:
            raise ValueError(
                f"an example takes {len(input_ids)} tokens, more than the {self.max_tokens} that the LLM reads; "
                "set max_answer_tokens or shorten its text"
            )
        return input_ids, labels

    def _segments(self, example):
        """An example as [(text, is_answer), ...], image tokens expanded."""
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
            prompt = bos + self.processor.image_token
            return [(self._expand(prompt), False), (self.processor.plain_text(example["text"]) + end, True)]
        question = [{"type": "image"}, {"type": "text", "text": instruction}]
        answer = [{"role": "user", "content": question}, {"role": "assistant", "content": example["text"]}]
        return self._conversation(answer, training=True)

    def _conversation(self, messages, **template_arguments):
        """Renders messages and cuts the text at the template's `generation` blocks, which are the answers."""
        processor = self.processor
        template_arguments = {**processor.tokenizer.special_tokens_map, **template_arguments}
        [text], [spans] = render_jinja_template(
            conversations=[processor._as_data(messages)],
            chat_template=processor.chat_template,
            return_assistant_tokens_mask=True,
            **template_arguments,
        )
        segments, last = [], 0
        for start, end in spans:
            answer = text[start:end]
            if self.answer_end is not None:
                turn_end = self._turn_end()
                answer = answer.removesuffix(turn_end) + self.answer_end
            segments += [(self._expand(text[last:start]), False), (answer, True)]
            last = end
        return segments  # what follows the last answer teaches nothing

    def _turn_end(self):
        """What the template writes after an answer."""
        [text], [[(start, end)]] = render_jinja_template(
            conversations=[[{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]],
            chat_template=self.processor.chat_template,
            return_assistant_tokens_mask=True,
            **self.processor.tokenizer.special_tokens_map,
        )
        return text[start:end]

    def _expand(self, text):
        processor = self.processor
        return text.replace(processor.image_token, processor.replace_image_token({}, 0))

    def _tokenize(self, text):
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids

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
            "attention_mask": torch.ones_like(input_ids),
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
                f"an example has {pictures} picture(s), but its text a place for {places}; found {_fields(example)}"
            )


def _fields(example):
    return ", ".join(f"{name} ({type(value).__name__})" for name, value in example.items()) or "no field"
