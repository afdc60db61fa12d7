"""Answers waiting requests together: one `generate` for a batch, padded on the left, with independent rows.

Why not transformers' continuous batching (read in 5.23): its requests are token ids, without pixel values or embeddings, so
`transformers serve` leaves it out for models that read images (transformers#43386), and all requests share the sampling
settings of the first. `generate` takes images in batches, and has public hooks for what differs between rows: a logits
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
from ..modeling_minigpt4.chat import AnswerStreamer
from ..modeling_minigpt4.stopping import EndsWith
from .guard import MAX_PICTURES

_log = logging.getLogger(__name__)

MAX_ROWS = 64
_SHARE = 0.5  # of the free memory is for the keys and values of a batch, the rest for activations
# Settings that `generate` applies only when sampling (GenerationConfig); a greedy row has none of them.
_SAMPLING = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Settings:
    """The settings of a row.

    Attributes:
        max_new_tokens: the longest answer.
        do_sample: sample tokens; otherwise take the likeliest.
        temperature, top_p: for sampling, instead of the model's.
        seed: for sampling. None: random.
    """

    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None


class Answer(AnswerStreamer):
    """An answer being written, read with `async for`: (piece of its text, number of tokens written so far).

    It shows the same text as a chat session. `cancel` ends it after the current token.

    Raises:
        RuntimeError: when it is read, if `generate` failed.
    """

    def __init__(self, processor, inputs, settings):
        super().__init__(processor, self._send)
        self.inputs, self.settings = inputs, settings
        self.ids, self.ended, self._cancelled = [], False, threading.Event()
        self._pieces, self._loop = asyncio.Queue(), asyncio.get_running_loop()

    @property
    def prompt_length(self):
        """Number of tokens of the prompt."""
        return self.inputs["input_ids"].shape[1]

    @property
    def images(self):
        """Number of images in the prompt."""
        return len(self.inputs["pixel_values"]) if "pixel_values" in self.inputs else 0

    @property
    def cut_off(self):
        """Whether it has reached its token limit."""
        return len(self.ids) >= self.settings.max_new_tokens

    def cancel(self):
        """Ends the answer after the current token, from any thread."""
        self._cancelled.set()

    @property
    def cancelled(self):
        """Whether it has been cancelled."""
        return self._cancelled.is_set()

    def finish(self, error=None):
        """Shows the rest, or an error instead."""
        if not self.ended:
            self.ended = True
            if error is None:
                self.end()
            self._send(error)

    def _send(self, *item):
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is stopping, nobody reads
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, item)

    async def __aiter__(self):
        while len(item := await self._pieces.get()) == 2:
            yield item
        if item[0] is not None:
            raise RuntimeError(item[0])


class Batches:
    """Answers requests with a model, in a thread of its own; a batch takes what is waiting, as far as memory allows.

    A single request does not wait for others.

    Args:
        model: a `MiniGPT4ForConditionalGeneration`.
        processor: its `MiniGPT4Processor`.
        rows: the most requests per batch.
    """

    def __init__(self, model, processor, rows=MAX_ROWS):
        self.model, self.processor, self.rows = model, processor, rows
        self._waiting, self._written, self._change, self._closed = [], [], threading.Condition(), False
        # A daemon: a second Ctrl-C ends the program, even in the middle of a computation.
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def ask(self, inputs, settings):
        """Queues a request and returns its `Answer`.

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
        """Ends the answers being written, and the thread."""
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
            except Exception as error:  # the whole batch gets the error, and the next one is tried
                _log.exception("a batch of %d failed", len(batch))
                for answer in batch:
                    answer.finish(str(error) or type(error).__name__)

    def _next(self):
        """The next batch: the request that has waited longest, and in order of arrival those that fit with it.

        Prompts of very different length do not: at most half of the batch may be padding, which costs as much as text.
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
        """Answers a batch until all of it is done or cancelled."""
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
    """The inputs of several prompts as one batch."""
    batch = processor.tokenizer.pad(
        {"input_ids": [one["input_ids"][0].tolist() for one in inputs]}, padding_side="left", return_tensors="pt"
    )
    images = [one["pixel_values"] for one in inputs if "pixel_values" in one]
    if images:
        batch["pixel_values"] = torch.cat(images)
    return batch


class _Draw(LogitsProcessor):
    """Draws the token of each sampling row, and leaves only that one for `generate` to choose.

    With its own random numbers, a row draws what `generate` would draw for it separately after `torch.manual_seed`.
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
                # With a config that has nothing else, these are the library's warpers, in its order.
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
    """Shows each row's token, and ends the row: at its end of turn, at its own limit, or when it is cancelled."""

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
