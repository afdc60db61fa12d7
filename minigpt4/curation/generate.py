"""Step 2: the stage-1 model describes each image with the paper's prompt, and continues short answers.

An answer of at most 80 tokens gets "Continue" as a second turn, and the two answers are joined (paper, section 3.2). The
model runs here, in batches, on every device that `accelerate launch` gives; or behind an OpenAI-compatible server.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..inference.generation import batch_answers, caption_prompt
from ..modeling_minigpt4.chat import end_ids
from ..processing.image_processing_minigpt4 import load_image
from ..processing.processing_minigpt4 import ASKING
from .counts import Report, chunks
from .endpoint import Stop
from .sample import picture_address, read_picture

PROMPT = "Describe this image in detail. Give as many details as possible. Say everything you see."  # the paper's
CONTINUE = "Continue"
ENOUGH_TOKENS = 80  # answers up to this length are continued


class Answer(NamedTuple):
    """What a model said: its first answer, and what it added after "Continue", or None if that was not asked for."""

    first: str
    continued: str | None

    @property
    def text(self):
        """Both joined."""
        return f"{self.first} {self.continued}".strip() if self.continued else self.first


def generate(store, describer, batch_size=16, seed=0):
    """Has a local model describe every image without an answer, batch by batch; returns a `Report`.

    Under `accelerate launch` each process takes its share of the images; a batch is recorded as a whole.

    Args:
        describer: a `Describer`.
        seed: for sampling. A batch's random numbers depend on it and on the batch's first image.
    """
    return in_batches(
        store, "generate", describer, lambda rows, pixels: map(answered, rows, describer(pixels)), batch_size, seed
    )


def in_batches(store, step, looker, work, batch_size, seed):
    """Runs a step with a local model, for every pending image, batch by batch; returns a `Report`.

    Args:
        looker: has the methods `settings` and `pixels` of a `Describer`.
        work: (rows, pixel_values) of a batch -> the rows to record. seed: see `generate`.
    """
    state = PartialState()
    run, report = store.run(step, {**looker.settings(), "batch_size": batch_size, "seed": seed}), Report(step)
    mine = (row for row in store.pending(step) if int(row["picture"][:8], 16) % state.num_processes == state.process_index)
    total = store.pending_count(step) // state.num_processes
    with tqdm(desc=step, total=total, unit="picture", disable=not state.is_main_process) as bar:
        for rows, pixels in _ahead(partial(_pixels, store, looker, report), chunks(mine, batch_size)):
            if rows:
                torch.manual_seed(int(hashlib.sha256(f"{seed}/{rows[0]['picture']}".encode()).hexdigest()[:15], 16))
                report.done += store.record(step, run, work(rows, pixels))
            bar.update(len(rows))
    return report


def generate_by_server(store, endpoint, max_new_tokens=300, temperature=None, seed=0):
    """Has a model behind an `Endpoint` describe every image without an answer; returns a `Report`.

    Raises:
        Stop: the server answers none of the requests; what was answered until then is recorded.
    """
    parameters = {"max_completion_tokens": max_new_tokens, "seed": seed}
    parameters |= {} if temperature is None else {"temperature": temperature}
    settings = {**endpoint.settings(), **_PROMPTS, **parameters}
    run, report = store.run("generate", settings), Report("generate")

    def work(row):
        parts = [
            {"type": "image_url", "image_url": {"url": picture_address(store, row)}},
            {"type": "text", "text": PROMPT},
        ]
        messages = [{"role": "user", "content": parts}]
        first = endpoint.ask(messages, **parameters)
        tokens = len(first.text.split()) if first.completion_tokens is None else first.completion_tokens
        if tokens > ENOUGH_TOKENS:
            return Answer(first.text.strip(), None)
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": CONTINUE}]
        return Answer(first.text.strip(), endpoint.ask(messages, **parameters).text.strip())

    with tqdm(desc="generate", total=store.pending_count("generate"), unit="picture") as bar:
        try:
            for row, answer in endpoint.map(work, store.pending("generate")):
                if isinstance(answer, ValueError):
                    report.failed(answer)
                else:
                    report.done += store.record("generate", run, [answered(row, answer)])
                bar.update()
        except Stop as error:
            raise Stop(f"{error}; {report.done} done, the same command continues") from None
    return report


class Describer:
    """A local model that describes images.

    Args:
        model, processor: as `minigpt4.load` returns them, on their device.
        name: the model's name for the run's record; `revision`: its commit on the Hub, if known.
        form: "chat": the paper's, the LLM is asked. "caption": the first answer is one line in the form of stage 1,
            without a prompt: for an LLM too small to follow an instruction about an image before stage 2.
        decoding: arguments of `generate` other than the model's own (max_new_tokens, temperature, ...).
    """

    def __init__(self, model, processor, name, form="chat", **decoding):
        self.model, self.processor, self.name, self.form, self.decoding = model, processor, str(name), form, decoding

    def settings(self):
        """What a run records about it."""
        config = {**self.model.generation_config.to_diff_dict(), **self.decoding}
        decoding = {key: value for key, value in config.items() if key != "transformers_version"}
        revision = getattr(self.model.config, "_commit_hash", None)
        return {"model": self.name, "revision": revision, "form": self.form, **_PROMPTS, "decoding": decoding}

    def pixels(self, images):
        """PIL pictures -> pixel_values [N, 3, H, W]."""
        return self.processor.image_processor(images, return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def __call__(self, pixels):
        """pixel_values of a batch -> an `Answer` for each; the pictures are encoded once for both turns."""
        features = self.model.model.get_vision_features(pixels.to(self.model.device))
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        asked = [{"role": "user", "content": content}]
        firsts = self._captions(features) if self.form == "caption" else self._answers([asked] * len(features), features)
        short = [i for i, text in enumerate(firsts) if self._tokens(text) <= ENOUGH_TOKENS]
        more = {}
        if short:
            turns = [
                [*asked, {"role": "assistant", "content": firsts[i]}, {"role": "user", "content": CONTINUE}] for i in short
            ]
            more = dict(zip(short, self._answers(turns, features[short]), strict=True))
        return [Answer(first, more.get(i)) for i, first in enumerate(firsts)]

    def _answers(self, conversations, features):
        # The paper asks in the form of stage 2's training: "###Human: <Img>...</Img> ... ###Assistant: ".
        form = {"training": True} if "training" in self.processor.chat_template else {}
        prompts = [self.processor.apply_chat_template(messages, **ASKING, **form) for messages in conversations]
        return batch_answers(self.model, self.processor, prompts, features, **self.decoding)

    def _captions(self, features):
        ends = [*end_ids(self.model, self.processor), self.processor.encode("\n")[-1]]
        prompts = [caption_prompt(self.processor)] * len(features)
        return batch_answers(self.model, self.processor, prompts, features, **{**self.decoding, "eos_token_id": ends})

    def _tokens(self, text):
        return len(self.processor.tokenizer(text, add_special_tokens=False).input_ids)


_PROMPTS = {"prompt": PROMPT, "continue": CONTINUE, "enough_tokens": ENOUGH_TOKENS}


def answered(row, answer):
    """The row to record for an `Answer`: both raw texts and the joined one."""
    return {"picture": row["picture"], "first": answer.first, "continued": answer.continued, "text": answer.text}


def _pixels(store, looker, report, rows):
    """The rows of a batch whose images can be read, and their pixel_values."""
    readable, images = [], []
    for row in rows:
        try:
            images.append(load_image(read_picture(store, row)))
            readable.append(row)
        except ValueError as error:
            report.failed(error)
    return readable, looker.pixels(images) if images else None


def _ahead(prepare, items):
    """Yields prepare(item) for each, the next one being prepared while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        following = None
        for item in items:
            ready, following = following, pool.submit(prepare, item)
            if ready:
                yield ready.result()
        if following:
            yield following.result()
