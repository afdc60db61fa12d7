"""A conversation about images with fast follow-up questions: `chat = model.chat_session(processor)`.

    chat.ask("What is this?", images="photo.jpg")     the answer
    chat.ask("Why?", stream=True)                     an iterator over its text; `close()` or `chat.cancel()` stops it
    chat.messages                                     the conversation in the Hub's format; turns may be removed
    chat.fork()                                       a second conversation that continues from here
    model.chat_session(processor, chat.export())      the same conversation, from JSON

An image goes through the vision tower once. The keys and values of everything said are kept, and a prompt is computed from
its first token that they do not cover: for a follow-up, only its own tokens. The result is the same as that of
`generate` on `apply_chat_template(chat.messages)`, with each answer kept as the ids that the model wrote.

This module imports nothing from the package, because the export inserts it into a Space's app.py (`space_app` in
minigpt4/hub/export.py). It uses the model and the processor for everything else.
"""

import base64
import contextlib
import copy
import io
import operator
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.generation import BaseStreamer, StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutputWithPooling

# The longest answer in the original's demo, where the model's own generation config names none.
MAX_NEW_TOKENS = 300
# How full the context may be after turns are dropped, so that the next turn does not drop another one right away.
_REFILLED = 0.75
_ROLE = "Assistant:"  # a model that ends its turns in text may repeat it
_SOURCES = ("image", "path", "url")  # the keys of an image in the Hub's message format
# Settings of `generate` that rule out our cache: several sequences continue the prompt, or it uses a cache of its own.
_SEVERAL = ("num_beams", "num_return_sequences")
_OTHER_CACHE = ("cache_implementation", "assistant_model", "prompt_lookup_num_tokens", "past_key_values")


@dataclass
class _Prompt:
    """A prompt: messages including the question, their ids, a tensor [Q, D] for each image, the messages dropped."""

    messages: list
    ids: list
    pictures: list = field(default_factory=list)
    dropped: list = field(default_factory=list)


class ChatSession:
    """A conversation with a model, as `model.chat_session(processor)` gives it.

    Args:
        model: a `MiniGPT4ForConditionalGeneration`.
        processor: its `MiniGPT4Processor`.
        messages: an earlier conversation, as `messages` or `export` of another session returns it: an optional system
            message, then user and assistant messages in turn, ending with an assistant's.
        generation: default arguments of `generate` for every answer, which `ask` may override: do_sample, top_p, ...

    Attributes:
        messages: the conversation as the model reads it, images as PIL. The last turns may be removed, to ask them again
            or differently.
        dropped: the messages that no longer fit into the context, oldest first.

    Raises:
        ValueError: malformed messages, with the number of the first one; an image that cannot be read.
    """

    def __init__(self, model, processor, messages=(), **generation):
        self.model, self.processor, self.generation = model, processor, generation
        self.messages, self.dropped = _read(messages, processor.image_processor.load_image), []
        self._seen = {}  # id of a picture: the picture, and its visual tokens [Q, D]
        self._cache, self._cached = None, _Prompt([], [])  # keys and values, and the prompt they belong to
        self._writing, self._cancelled = threading.Lock(), threading.Event()

    def ask(self, text, images=None, stream=False, **generation):
        """The answer to a question, as text.

        Args:
            text: the question.
            images: an image, or a list of images, for the question: paths, bytes, data URLs or PIL.
            stream: return an iterator over pieces of the answer as they are written, instead of the whole text.
                Closing or dropping it ends the answer with the last piece that was read. If none was read, the
                question counts as not asked.
            generation: arguments of `generate`: max_new_tokens, do_sample, num_beams, ...

        Raises:
            ValueError: an empty question; an image that cannot be read; a question that does not fit into the context
                with its images and the answer; another answer still being written. The conversation is then unchanged.
        """
        question = _question(text, images, self.processor.image_processor.load_image)
        if not self._writing.acquire(blocking=False):
            raise ValueError("an answer is still being written; read it to its end, or stop it with cancel()")
        with contextlib.ExitStack() as writing:
            writing.callback(self._writing.release)
            self._cancelled = threading.Event()
            generation = self._with_defaults({**self.generation, **generation})
            prompt = self._prompt(question, generation["max_new_tokens"])
            if not stream:
                return self._say(prompt, self._generate(prompt, generation), generation)
            pieces = self._stream(prompt, generation, writing.pop_all())
            next(pieces)  # begins: from now on, whatever ends it also lets the next question in
            return pieces

    def cancel(self):
        """Ends the answer being written after its current token, from any thread; the text so far is kept."""
        self._cancelled.set()

    def fork(self):
        """A second conversation that continues from here; it shares what was computed so far, but nothing said from now on.

        Raises:
            ValueError: an answer is being written.
        """
        if self._writing.locked():
            raise ValueError("an answer is still being written; read it to its end, or stop it with cancel()")
        twin = ChatSession(self.model, self.processor, **self.generation)
        twin.messages, twin.dropped = [copy.copy(message) for message in self.messages], list(self.dropped)
        twin._seen, twin._cached = dict(self._seen), self._cached
        if self._cache is not None:
            # A layer's tensors never change in place: a cache update makes new ones.
            twin._cache = copy.copy(self._cache)
            twin._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        return twin

    def export(self):
        """The messages in JSON form, images as data URLs; another session takes them as `messages`."""
        return [{**message, "content": [_portable(part) for part in message["content"]]} for message in self.messages]

    def _with_defaults(self, generation):
        """Arguments of `generate`, with defaults for what neither they nor the model's generation config set."""
        defaults = {
            "max_new_tokens": MAX_NEW_TOKENS,
            "eos_token_id": end_ids(self.model, self.processor),
            "pad_token_id": self.processor.tokenizer.pad_token_id,
        }
        own = {name: self._setting(generation, name) for name in defaults}
        return {**defaults, **{name: value for name, value in own.items() if value is not None}, **generation}

    def _setting(self, generation, name):
        """A setting of `generate`: from its arguments, otherwise from the generation config."""
        config = generation.get("generation_config") or self.model.generation_config
        return generation.get(name, getattr(config, name, None))

    def _prompt(self, question, new_tokens):
        """The conversation plus a question, shortened to fit the context; raises ValueError if it cannot be."""
        context = getattr(self.model.config.text_config, "max_position_embeddings", None) or float("inf")
        messages, dropped, shown = [*self.messages, question], [], max(len(_pictures([question])), 1)
        ids = self._ids(messages)
        wanted = context - new_tokens
        while len(ids) > wanted:
            if shorter := _without_oldest_turn(messages):
                dropped += [message for message in messages if message["role"] != "system"][: len(messages) - len(shorter)]
                messages, wanted = shorter, min(wanted, _REFILLED * context)
            elif len(ids) > context - new_tokens and len(_pictures(messages)) > shown:
                messages = _without_oldest_picture(messages)
            else:
                break
            ids = self._ids(messages)
        if len(ids) > context - new_tokens:
            raise ValueError(
                f"the conversation takes {len(ids)} tokens and the answer up to {new_tokens}, more than the {context} that "
                "the model reads; shorten the text or lower max_new_tokens"
            )
        if dropped:
            lost = len(_pictures([*self.messages, question])) - len(_pictures(messages))
            pictures = f"the {lost} oldest picture(s)" if lost else "no picture"
            warnings.warn(
                f"the conversation is longer than the {context} tokens that the model reads: its oldest messages are "
                f"dropped, {len(self.dropped) + len(dropped)} so far, and {pictures} with them",
                stacklevel=3,
            )
        return _Prompt(messages, ids, self._visual_tokens(messages), dropped)

    def _ids(self, messages):
        """The ids of messages with an answer to follow, without thinking before it if the template has that switch."""
        return self.processor.conversation_ids(messages, add_generation_prompt=True, enable_thinking=False)

    @torch.no_grad()
    def _visual_tokens(self, messages):
        """A tensor [Q, D] for each image in the messages; only images not seen before are encoded."""
        pictures = _pictures(messages)
        new = {id(picture): picture for picture in pictures if id(picture) not in self._seen}
        if new:
            pixels = self.processor.image_processor(images=list(new.values()), return_tensors="pt")["pixel_values"]
            visual = self.model.get_image_features(pixels.to(self.model.device), return_dict=True).pooler_output
            self._seen.update(zip(new, zip(new.values(), visual, strict=True), strict=True))
        self._seen = {id(picture): self._seen[id(picture)] for picture in pictures}
        return [self._seen[id(picture)][1] for picture in pictures]

    def _generate(self, prompt, generation, streamer=None):
        """The ids that the model writes after a prompt."""
        several = any((self._setting(generation, name) or 1) > 1 for name in _SEVERAL)
        other_cache = any(self._setting(generation, name) is not None for name in _OTHER_CACHE)
        arguments, start, cache = dict(generation), 0, None
        arguments["turn_ends"] = [*self.processor.turn_ends, *(self._setting(generation, "turn_ends") or ())]
        if not (several or other_cache or self._setting(generation, "use_cache") is False):
            start = self._crop(prompt)
            cache = self._cache or DynamicCache(config=self.model.config.get_text_config(decoder=True))
            self._cache = None  # until `generate` is done: an interruption leaves the cache half written
            arguments["past_key_values"] = cache
        unseen = prompt.pictures[self._count_pictures(prompt.ids[:start]) :]
        if unseen:
            arguments["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=torch.stack(unseen))}
        stops = [_Cancelled(self._cancelled), *(arguments.pop("stopping_criteria", None) or ())]
        ids = torch.tensor([prompt.ids], device=self.model.device)
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            stopping_criteria=StoppingCriteriaList(stops),
            streamer=None if several else streamer,
            **arguments,
        )[0]
        written = output[len(prompt.ids) :]
        if cache is not None:
            self._cache, self._cached = cache, _Prompt([], output.tolist()[: cache.get_seq_length()], prompt.pictures)
        if several and streamer is not None:  # nothing can be shown before the best is known
            streamer.put(ids)
            streamer.put(written)
            streamer.end()
        return written.tolist()

    def _crop(self, prompt):
        """Crops the cache to what it shares with a prompt's beginning; returns that many tokens, never the whole prompt."""
        # All images have the same ids, so the images themselves are compared: the leading ones must be the same objects.
        pictures = _common_length(self._cached.pictures, prompt.pictures, operator.is_)
        places = [place for place, token in enumerate(prompt.ids) if token == self.processor.image_token_id]
        other = places[pictures * self.processor.num_image_tokens :][:1]
        same = _common_length(self._cached.ids, prompt.ids[:-1])
        same = min(same, *other, len(self._cached.ids))
        surplus = len(self._cached.ids) - same
        if self._cache is not None and surplus and not all(type(layer) is DynamicLayer for layer in self._cache.layers):
            self._cache = None  # a sliding window has discarded what came before it
        if self._cache is None:
            return 0
        if surplus:
            self._cache.crop(-surplus)
        return same

    def _count_pictures(self, ids):
        return ids.count(self.processor.image_token_id) // self.processor.num_image_tokens

    def _stream(self, prompt, generation, writing):
        """Yields once when it has started, then the pieces of the answer; see `ask`."""
        pieces, result, read, cancelled = SimpleQueue(), [], 0, self._cancelled
        streamer = AnswerStreamer(self.processor, lambda *piece: pieces.put(piece))

        def write():
            try:
                result.append(self._generate(prompt, generation, streamer))
            except BaseException as error:  # raised where the answer is read
                result.append(error)
            pieces.put(None)

        writer = threading.Thread(target=write)  # not a daemon: killed inside PyTorch, it would crash the program
        with writing:
            try:
                writer.start()
                yield
                while (piece := pieces.get()) is not None:
                    text, read = piece
                    yield text
                read = None
            finally:
                cancelled.set()
                if writer.ident is not None:  # else Ctrl-C came while it started
                    writer.join()
                if result and isinstance(result[0], BaseException):
                    raise result[0]
                if result and read != 0:
                    self._say(prompt, result[0][:read], generation)

    def _say(self, prompt, ids, generation):
        """Adds question and answer to the conversation; returns the answer's text."""
        text = answer_text(self.processor, ids)
        answer = self.processor.spoken_message(text, _without_turn_end(self.processor, ids, generation["eos_token_id"]))
        self.dropped += prompt.dropped
        self.messages[:] = [*prompt.messages, answer]
        return text


class AnswerStreamer(BaseStreamer):
    """Shows an answer while `generate` writes it: show(piece of its text, number of tokens written so far).

    A piece is shown once nothing that follows can change it: no partial characters, no beginning of a turn marker. The
    pieces add up to `answer_text`.
    """

    def __init__(self, processor, show):
        self.processor, self.show = processor, show
        self.ids, self.shown = None, ""
        # SentencePiece decodes consecutive bytes as a whole: a wrong one after a letter's makes them all unreadable.
        self.wrong_byte = processor.tokenizer.get_vocab().get("<0xFF>")

    def put(self, value):
        """Takes the prompt [1, L] first, then new tokens, [n] or [1, n]."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        text = answer_text(self.processor, self.ids)
        if self.wrong_byte is not None:
            text = text[: _common_length(text, answer_text(self.processor, [*self.ids, self.wrong_byte]))]
        self._show(text[: len(text) - self._open_end(text)])

    def end(self):
        """Shows the rest."""
        self._show(answer_text(self.processor, self.ids or []))

    def _show(self, text):
        piece = text[len(self.shown) :]
        if piece and text.startswith(self.shown):
            self.shown = text
            self.show(piece, len(self.ids))

    def _open_end(self, text):
        """The number of characters at the end that may still change."""
        markers = self.processor.turn_markers
        if markers and _ROLE.startswith(text):
            return len(text)
        beginnings = [marker[:length] for marker in markers for length in range(1, len(marker))]
        half = len(text) - len(text.rstrip("\ufffd"))
        return max([half, *(len(beginning) for beginning in beginnings if text.endswith(beginning))])


class _Cancelled(StoppingCriteria):
    """Stops every row once an event is set."""

    def __init__(self, event):
        self.event = event

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def end_ids(model, processor):
    """The ids that each end an answer: those of the model's generation config, or the tokenizer's if that has none."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    if ids is None:
        ids = list(dict.fromkeys([processor.tokenizer.eos_token_id, *processor.turn_end_ids]))
    return list(ids) if isinstance(ids, list | tuple) else [ids]


def answer_text(processor, ids):
    """The answer in what the model wrote: without special tokens, up to the turn marker, after a repeated role."""
    text = processor.decode(ids, skip_special_tokens=True)
    for marker in processor.turn_markers:
        text = text.split(marker)[0].split(_ROLE)[-1]
    return text.strip()


def _without_turn_end(processor, ids, eos):
    """The ids of an answer without the end of its turn, whether a special token or a marker in its text."""
    if ids and ids[-1] in (eos if isinstance(eos, list | tuple) else [eos]):
        ids = ids[:-1]
    text = processor.decode(ids, skip_special_tokens=True)
    end = min((text.index(marker) for marker in processor.turn_markers if marker in text), default=len(text))
    while len(processor.decode(ids, skip_special_tokens=True)) > end:
        ids = ids[:-1]
    return ids


def _question(text, images, load_image):
    """A user's message: images, then text."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the question is empty; expected some text")
    images = [] if images is None else images if isinstance(images, list | tuple) else [images]
    pictures = [{"type": "image", "image": load_image(image)} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def _read(messages, load_image):
    """A copy of messages in the form that a session keeps: content as a list, images as PIL."""
    if not isinstance(messages, list | tuple):
        raise ValueError(f"the messages are a {type(messages).__name__}; expected a list")
    read = [_read_message(number, message, load_image) for number, message in enumerate(messages, 1)]
    if read and read[-1]["role"] == "user":
        raise ValueError(f"message {len(read)} is a question without an answer; leave it out, and ask it")
    return read


def _read_message(number, message, load_image):
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("user", "assistant") and (role != "system" or number > 1):
        raise ValueError(f"message {number} has role {role!r}; expected 'user' or 'assistant', or 'system' in the first")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple):
        raise ValueError(f"message {number} has a {type(content).__name__} as content; expected text, or a list of parts")
    if hasattr(message, "ids_for"):  # another session's answer, with its ids
        return copy.copy(message)
    return {"role": role, "content": [_read_part(number, part, load_image) for part in parts]}


def _read_part(number, part, load_image):
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    sources = [part[name] for name in _SOURCES if part.get(name) is not None] if kind == "image" else []
    if len(sources) != 1:
        raise ValueError(
            f"message {number} has a part that is neither {{'type': 'text', 'text': ...}} nor {{'type': 'image', and one of "
            f"{', '.join(_SOURCES)}}}"
        )
    return {"type": "image", "image": load_image(sources[0])}


def _pictures(messages):
    """The images in messages, in order."""
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]


def _without_oldest_turn(messages):
    """The messages without the first question and its answer; None if there is only one question.

    Later turns may still refer to that turn's images, so these move to the next question.
    """
    questions = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if len(questions) < 2:
        return None
    first, second = questions[:2]
    start = first if messages[0]["role"] == "system" else 0
    shown = [{"type": "image", "image": picture} for picture in _pictures(messages[start:second])]
    following = {**messages[second], "content": [*shown, *messages[second]["content"]]}
    return [*messages[:start], following, *messages[second + 1 :]]


def _without_oldest_picture(messages):
    """The messages without their first image."""
    messages = list(messages)
    for index, message in enumerate(messages):
        for place, part in enumerate(message["content"]):
            if part["type"] == "image":
                content = [*message["content"][:place], *message["content"][place + 1 :]]
                messages[index] = {**message, "content": content}
                return messages
    return messages


def _portable(part):
    """A part of a message in JSON form."""
    if part["type"] != "image":
        return part
    buffer = io.BytesIO()
    part["image"].save(buffer, "PNG")
    return {"type": "image", "url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}


def _common_length(old, new, equal=operator.eq):
    """The length of the common beginning of two lists."""
    pairs = zip(old, new, strict=False)
    return next((index for index, pair in enumerate(pairs) if not equal(*pair)), min(len(old), len(new)))
