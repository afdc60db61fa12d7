"""Requests that wait are answered together: one `generate` for a batch, padded on the left, in which each row is its own.

Why not transformers' continuous batching (read in 5.23): its requests are token ids, without pixel values or embeddings, so
`transformers serve` leaves it out for models that read images (transformers#43386), and all requests share the sampling
settings of the first. `generate` takes images in batches, and what differs between rows has a public place in it: a logits
processor draws each row's token, a stopping criterion ends each row.
"""

import asyncio
import contextlib
import logging
import threading
from dataclasses import dataclass

import psutil
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import EosTokenCriteria

from ..inference.memory import cache_bytes
from ..modeling_minigpt4.chat import AnswerStreamer, EndsWith
from .guard import MAX_PICTURES

_log = logging.getLogger(__name__)

MAX_ROWS = 64
_SHARE = 0.5  # of the free memory, for the keys and values of a batch: the rest is for activations
# What `generate` does on samples only (GenerationConfig); a greedy row has none of it.
_SAMPLING = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Settings:
    """What a row may have of its own.

    Attributes:
        max_new_tokens: the longest answer.
        do_sample: draw tokens; otherwise the likeliest is taken.
        temperature, top_p: of the draw, in place of the model's.
        seed: of the draw. None: by chance.
    """

    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None


class Answer(AnswerStreamer):
    """An answer while it is written, read with `async for`: (piece of its text, tokens written until then).

    It shows the text that a chat session shows. `cancel` ends it with the token at hand.

    Raises:
        RuntimeError: where it is read, if `generate` failed.
    """

    def __init__(self, processor, inputs, settings):
        super().__init__(processor, self._send)
        self.inputs, self.settings = inputs, settings
        self.ids, self.ended, self._cancelled = [], False, threading.Event()
        self._pieces, self._loop = asyncio.Queue(), asyncio.get_running_loop()

    @property
    def prompt_length(self):
        """Tokens of the prompt."""
        return self.inputs["input_ids"].shape[1]

    @property
    def images(self):
        """How many the prompt shows."""
        return len(self.inputs["pixel_values"]) if "pixel_values" in self.inputs else 0

    @property
    def cut_off(self):
        """It has as many tokens as it was allowed."""
        return len(self.ids) >= self.settings.max_new_tokens

    def cancel(self):
        """Ends the answer, from any thread, with the token at hand."""
        self._cancelled.set()

    @property
    def cancelled(self):
        """It is not wanted any more."""
        return self._cancelled.is_set()

    def finish(self, error=None):
        """Shows the rest, or the error in its place."""
        if not self.ended:
            self.ended = True
            if error is None:
                self.end()
            self._send(error)

    def _send(self, *item):
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends, nobody reads
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, item)

    async def __aiter__(self):
        while len(item := await self._pieces.get()) == 2:
            yield item
        if item[0] is not None:
            raise RuntimeError(item[0])


class Batches:
    """Answers with a model, in a thread of its own: whatever waits when a batch begins, as far as it fits into memory.

    A request that comes alone is not kept waiting for others.

    Args:
        model: a `MiniGPT4ForConditionalGeneration`.
        processor: its `MiniGPT4Processor`.
        rows: the most that are answered at once.
    """

    def __init__(self, model, processor, rows=MAX_ROWS):
        self.model, self.processor, self.rows = model, processor, rows
        self._waiting, self._written, self._change, self._closed = [], [], threading.Condition(), False
        # A daemon: a second Ctrl-C ends the program, whatever is being computed.
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def ask(self, inputs, settings):
        """An `Answer` that will be written.

        Args:
            inputs: of one prompt, as the processor makes them: input_ids [1, L], pixel_values [images, 3, side, side] if it
                has images.
            settings: `Settings`.
        """
        answer = Answer(self.processor, inputs, settings)
        with self._change:
            self._waiting.append(answer)
            self._change.notify()
        return answer

    def close(self):
        """Ends what is being written, and the thread."""
        with self._change:
            self._closed = True
            for answer in (*self._waiting, *self._written):
                answer.cancel()
            self._change.notify()
        self._thread.join(10)

    def _work(self):
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                batch = self._written = self._next()
                if self._closed:
                    return
            try:
                if batch:
                    self._write(batch)
            except Exception as error:  # all of the batch hear of it, and the next one is tried
                _log.exception("a batch of %d failed", len(batch))
                for answer in batch:
                    answer.finish(str(error) or type(error).__name__)

    def _next(self):
        """The next batch: the request that waits longest, as it would be alone, and in order of arrival what goes with it.

        A prompt of very different length does not: at most half of the batch may be padding, which costs as much as text.
        """
        batch, left, prompts, answers, images, room = [], [], [], 0, 0, self._room()
        for answer in self._waiting:
            if answer.cancelled:
                answer.finish()
                continue
            lengths = [*prompts, answer.prompt_length]
            longest = max(answers, answer.settings.max_new_tokens)
            fits = (
                len(lengths) <= self.rows
                and len(lengths) * max(lengths) <= 2 * sum(lengths)
                and len(lengths) * (max(lengths) + longest) <= room
                and images + answer.images <= MAX_PICTURES
            )
            if fits or not batch:
                batch.append(answer)
                prompts, answers, images = lengths, longest, images + answer.images
            else:
                left.append(answer)
        self._waiting = left
        return batch

    def _room(self):
        """How many tokens' keys and values fit into memory."""
        if self.model.device.type == "cuda":
            unused = torch.cuda.memory_reserved(self.model.device) - torch.cuda.memory_allocated(self.model.device)
            free = torch.cuda.mem_get_info(self.model.device)[0] + unused
        else:
            free = psutil.virtual_memory().available
        return _SHARE * free / (cache_bytes(self.model.config, 1, "fp32") * self.model.dtype.itemsize / 4)

    def _write(self, batch):
        """Answers a batch to its end, or until none of it is wanted any more."""
        inputs = _together(self.processor, [answer.inputs for answer in batch]).to(self.model.device)
        longest = max(answer.settings.max_new_tokens for answer in batch)
        config = GenerationConfig.from_dict(self.model.generation_config.to_dict())
        config.update(**dict.fromkeys(_SAMPLING), do_sample=False, max_new_tokens=longest)
        self.model.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([_Draw(self.model, batch)]),
            stopping_criteria=StoppingCriteriaList([_Rows(batch, config)]),
        )
        for answer in batch:
            answer.finish()


def _together(processor, inputs):
    """The inputs of some prompts as those of a batch."""
    batch = processor.tokenizer.pad(
        {"input_ids": [one["input_ids"][0].tolist() for one in inputs]}, padding_side="left", return_tensors="pt"
    )
    images = [one["pixel_values"] for one in inputs if "pixel_values" in one]
    if images:
        batch["pixel_values"] = torch.cat(images)
    return batch


class _Draw(LogitsProcessor):
    """Draws the token of each row that samples, and leaves only this one for `generate` to choose.

    With its own random numbers a row draws what `generate` would draw for it alone after `torch.manual_seed`.
    """

    def __init__(self, model, batch):
        self.rows = []
        for row, answer in enumerate(batch):
            settings = answer.settings
            if settings.do_sample:
                own = {name: getattr(model.generation_config, name, None) for name in _SAMPLING}
                own |= {"temperature": settings.temperature, "top_p": settings.top_p}
                config = GenerationConfig(do_sample=True, **own)
                config.update(**config._get_default_generation_params(), defaults_only=True)  # as `generate`: top_k
                # Of a config with nothing else these are the library's warpers, in its order.
                warpers = model._get_logits_processor(config)
                random = torch.Generator(model.device)
                random.seed() if settings.seed is None else random.manual_seed(settings.seed)
                self.rows.append((row, warpers, random))

    def __call__(self, input_ids, scores):
        """[B, L], [B, V] -> [B, V]."""
        for row, warpers, random in self.rows:
            warped = warpers(input_ids[row : row + 1], scores[row : row + 1])
            token = torch.multinomial(warped.softmax(-1), 1, generator=random)
            scores[row] = torch.full_like(scores[row], float("-inf")).scatter_(0, token[0], 0)
        return scores


class _Rows(StoppingCriteria):
    """Shows each row's token, and ends the row: at its end of turn, at its own longest, or when it is not wanted."""

    def __init__(self, batch, config):
        self.batch = batch
        turn_ends = getattr(config, "turn_ends", None) or []
        self.ends = [EndsWith(turn_ends)]
        if config.eos_token_id is not None:
            self.ends.append(EosTokenCriteria(config.eos_token_id))

    def __call__(self, input_ids, scores, **kwargs):
        """[B, L] -> bool [B]."""
        ended = sum(end(input_ids, scores) for end in self.ends).tolist()
        for answer, token, end in zip(self.batch, input_ids[:, -1:].cpu(), ended, strict=True):
            if answer.ended:
                continue
            answer.put(token)
            if end or answer.cut_off or answer.cancelled:
                answer.finish()
        return torch.tensor([answer.ended for answer in self.batch], device=input_ids.device)
