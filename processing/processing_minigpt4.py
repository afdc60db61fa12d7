"""From text and images to model inputs: MiniGPT4Processor.

    messages -> chat template -> one prompt with an image token for each image
             -> that token repeated for each visual token -> input_ids [B, L] (+ pixel_values [N, 3, H, W])

As in the original, each stretch of text between images is tokenized separately (SentencePiece puts its word-start mark on
each), and BOS comes first, once. Both are set in the tokenizer itself (`prepare_tokenizer`), so they apply everywhere: in
the processor, in `tokenizer(...)` and in other engines.

One addition: user text is data. Whatever a message spells, be it `</s>`, the image token or a turn marker, is encoded as
plain letters, so nobody can forge an image or a turn.
"""

import copy
import re
import uuid
from typing import Any

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessorMixin

# Put between the letters of a marker that user text spells; the tokenizer splits there and drops it. It is a Unicode
# noncharacter, which no text meant for exchange contains.
BREAK = "\ufdd0"
# Arguments of `apply_chat_template` in training and in generation: answers without thinking before them.
# Templates with such a switch (Qwen3's, SmolLM3's, GLM's) use this name; it is left out for others.
UNTHINKING = {"enable_thinking": False}
ASKING = {"add_generation_prompt": True, **UNTHINKING}


class SpokenMessage(dict):
    """An assistant message that remembers the ids that the model wrote, without the end of its turn.

    Tokenized again, the text might give other ids, and the cache for them would be useless. The ids are valid as long as
    the message's content is unchanged, and only for their own tokenizer. It is recognised by `ids_for` instead of its class:
    code from the Hub is loaded once for the model and once for the processor.
    """

    def __init__(self, text, ids, tokenizer):
        super().__init__(role="assistant", content=[{"type": "text", "text": text}])
        self.text, self.ids, self.tokenizer = text, list(ids), tokenizer

    def ids_for(self, tokenizer):
        """The ids, or None if they no longer match the message."""
        unchanged = self.get("content") == [{"type": "text", "text": self.text}]
        return self.ids if unchanged and tokenizer is self.tokenizer else None


class MiniGPT4Processor(ProcessorMixin):
    """Image processor and tokenizer in one, with the chat template of the LLM.

    Args:
        image_processor: a `MiniGPT4ImageProcessor`.
        tokenizer: the LLM's (fast) tokenizer.
        image_token: the token for an image in a prompt; it is in the vocabulary and never written by the LLM. By
            default the tokenizer's `<unk>` (LLaMA's byte fallback never yields it).
        num_image_tokens: visual tokens per image: 32 with the Q-Former, see `MiniGPT4Config.num_image_tokens`.
        turn_markers: texts that separate turns in the chat template but are not special tokens; user text cannot
            spell them.
        chat_template: Jinja template; the paper's Vicuna conversation by default. With `training=True` it renders
            the stage-2 form of a turn, if that differs.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer: Any = None,
        image_token=None,
        num_image_tokens=32,
        turn_markers=("###",),
        chat_template=None,
        **kwargs,
    ):
        self.image_token = image_token or tokenizer.unk_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        if self.image_token_id is None or self.image_token not in tokenizer.get_vocab():
            raise ValueError(f"the image token {self.image_token!r} is not in the tokenizer's vocabulary")
        self.num_image_tokens = num_image_tokens
        self.turn_markers = list(turn_markers)
        prepare_tokenizer(tokenizer, self.image_token)
        chat_template = chat_template or _papers_template(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def for_model(cls, config, tokenizer, chat_template=None, image_processor=None):
        """The processor of a model built from parts.

        Args:
            config: the model's `MiniGPT4Config`.
            tokenizer: the LLM's.
            chat_template: "vicuna", "vicuna-v1", "llama-2", "chatml" (see chat_templates.py), or Jinja with IMAGE for an
                image; by default the LLM's own, from its tokenizer, or the paper's if it has none.
            image_processor: by default that of the vision tower, see `image_processor_for`.

        Raises:
            ValueError: a template that does not show the messages, or an image token that the tokenizer does not have.
            ImportError: this code runs from a repository, and the package is not installed.
        """
        try:
            from minigpt4.processing.for_model import processor_for
        except ImportError as error:
            raise ImportError("for_model needs the package; run `pip install minigpt4-hf`") from error
        return processor_for(cls, config, tokenizer, chat_template, image_processor)

    def __call__(self, images=None, text=None, **kwargs):
        """A rendered prompt (or several) and its images -> `input_ids`, `attention_mask`, `pixel_values`.

        Args:
            images: one image, a list, or a list for each text: paths, bytes, PIL, arrays.
            text: prompts with `image_token` once for each image. Special tokens in them take effect: for text that a
                person typed, use `apply_chat_template`.

        Raises:
            ValueError: more or fewer images than image tokens, naming both counts; an unreadable image.
        """
        texts = [text] if isinstance(text, str) else text
        bos = getattr(self.tokenizer, "bos_token", None)
        if texts and bos and texts[0].startswith(bos):
            kwargs["add_special_tokens"] = False
        return super().__call__(images=images, text=text, **kwargs)

    def push_to_hub(self, repo_id, **arguments):
        """Uploads processor, tokenizer and their code in one commit; see the model's `push_to_hub`."""
        try:
            from minigpt4.hub.export import push_processor
        except ImportError:
            return super().push_to_hub(repo_id, **arguments)
        return push_processor(self, repo_id, **arguments)

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """One line for a mismatch of images and image tokens, instead of the library's two."""
        placeholders = sum(sample.count(self.image_token) for sample in text or [])
        pictures = 0 if images is None else len(make_flat_list_of_images(images))  # pyright: ignore[reportArgumentType]
        if text is not None and placeholders != pictures:
            raise ValueError(
                f"found {placeholders} image token(s) {self.image_token} in the text but {pictures} picture(s); "
                "expected one image token for each picture"
            )
        super().validate_inputs(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def replace_image_token(self, image_inputs, image_idx, **kwargs):
        """What an image token expands to in the prompt: one for each visual token."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs):
        """Visual tokens for images of these sizes, which do not matter here (vLLM plans its memory with it)."""
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.num_image_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    def apply_chat_template(self, conversation, *args, **kwargs):
        """Messages -> prompt, or with `tokenize=True` model inputs; see `ProcessorMixin.apply_chat_template`.

        Every text in the messages is data: markers and special tokens that it spells become plain letters. The answers
        of a chat session (`SpokenMessage`) are encoded as the ids that the model wrote, so rerunning a conversation
        gives the same results as the session.
        """
        if kwargs.get("tokenize") and any(hasattr(message, "ids_for") for message in conversation):
            return self._tokenize_spoken(conversation, **kwargs)
        if kwargs.get("tokenize"):  # a template writes all special tokens itself, as with the LLM's own tokenizer
            kwargs["processor_kwargs"] = {"add_special_tokens": False, **(kwargs.get("processor_kwargs") or {})}
        return super().apply_chat_template(self._as_data(conversation), *args, **self._switches(kwargs))

    def _switches(self, options):
        """Options of `apply_chat_template` without `enable_thinking` if the template has no such switch.

        transformers would warn about it and pass it to the tokenizer.
        """
        template = str(options.get("chat_template") or self.chat_template)
        return {name: value for name, value in options.items() if name != "enable_thinking" or name in template}

    def spoken_message(self, text, ids):
        """An answer of the model as a `SpokenMessage`."""
        return SpokenMessage(text, ids, self.tokenizer)

    def conversation_ids(self, messages, **template):
        """Messages -> ids of the whole conversation, keeping the ids that the model wrote for a `SpokenMessage`.

        What the template puts around an answer is encoded as if it followed text: Vicuna's "###" is [2277, 29937] there.

        Args:
            template: arguments of `apply_chat_template`: add_generation_prompt, chat_template, ...
        """
        template = self._switches(template)
        answers = [m.ids_for(self.tokenizer) if hasattr(m, "ids_for") else None for m in messages]
        mark = f"\ufdd1{uuid.uuid4().hex}\ufdd1"  # nobody can have typed it
        shown = [m if ids is None else {**m, "content": mark} for m, ids in zip(messages, answers, strict=True)]
        answers = [ids for ids in answers if ids is not None]
        first, *behind = super().apply_chat_template(self._as_data(shown), **template).split(mark)
        if len(behind) != len(answers):  # the template leaves answers out, or changes them
            first, behind = super().apply_chat_template(self._as_data(messages), **template), []
        ids = self.encode(first)
        lone = self.encode("a")
        for answer, text in zip(answers, behind, strict=False):
            joined = self.encode("a" + text)
            ids += answer + (joined[len(lone) :] if joined[: len(lone)] == lone else self.encode(text))
        return ids

    def encode(self, prompt):
        """Ids of a rendered prompt, or of a part of it."""
        return self.tokenizer(self.expand(prompt), add_special_tokens=False).input_ids

    def expand(self, prompt):
        """A rendered prompt with an image token for each visual token."""
        return prompt.replace(self.image_token, self.replace_image_token({}, 0))

    def _tokenize_spoken(self, messages, return_dict=False, return_tensors=None, **template):
        """`apply_chat_template(tokenize=True)` for one conversation that contains answers of a chat session."""
        template = {name: value for name, value in template.items() if name != "tokenize"}
        ids = self.conversation_ids(messages, **template)
        if not return_dict:
            return [ids]
        parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
        pictures = [part.get("image", part.get("path", part.get("url"))) for part in parts if part["type"] == "image"]
        inputs = {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
        if pictures:
            pictures = self.image_processor.fetch_images(pictures)
            inputs["pixel_values"] = self.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        return BatchFeature(inputs, tensor_type=return_tensors)

    def _as_data(self, conversation) -> Any:
        """A copy of the conversation (or a batch of them) whose texts cannot be taken for markers."""
        if isinstance(conversation, str):
            return self.plain_text(conversation)
        if isinstance(conversation, dict):
            return {
                key: self._as_data(value) if key in ("content", "text") else value for key, value in conversation.items()
            }
        if isinstance(conversation, list | tuple):
            return [self._as_data(part) for part in conversation]
        return copy.copy(conversation)

    def plain_text(self, text):
        """Text in which every special token and turn marker is broken into letters for the tokenizer.

        Raises:
            ValueError: half a character (a lone surrogate, which JSON allows), which the tokenizer cannot encode.
        """
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("a text contains half a character (a lone surrogate); expected Unicode")
        # Other symbols of the vocabulary cannot forge anything; the original also allows them in user text.
        added = self.tokenizer.added_tokens_decoder.values()
        added = [str(token) for token in added if token.special or str(token) in str(self.chat_template)]
        markers = [self.image_token, *self.turn_markers, *added]
        pattern = "|".join(re.escape(marker) for marker in sorted(set(markers), key=len, reverse=True))
        text = re.sub(pattern, lambda found: BREAK.join(found[0]) + BREAK, text.replace(BREAK, ""))
        # No marker may form where the text ends and the template, or the next text, continues.
        beginnings = tuple(marker[:length] for marker in markers for length in range(1, len(marker)))
        return text + BREAK if text.endswith(beginnings) else text

    def segments(self, messages, **template):
        """A conversation as [(text, is_answer), ...], and whether `generation` blocks mark the answers: see turns.py.

        Args:
            template: variables of the chat template; `training=True` renders the stage-2 form of a turn.
        """
        return _turns().segments(self.chat_template, self._as_data(messages), self.tokenizer, **template)

    @property
    def turn_end(self):
        """What the chat template puts after an answer, as text."""
        return _turns().turn_end(self.chat_template, self.tokenizer)

    @property
    def turn_end_ids(self):
        """[the id] that ends the model's turn, if that is a single special token; else [], see `turn_ends`."""
        ids = self.encode(self.turn_end.strip())
        return ids[-1:] if all(token in self.tokenizer.added_tokens_decoder for token in ids) else []

    @property
    def turn_ends(self):
        """What the model may write to end its turn if a marker, not a special token, ends it: lists of ids.

        A marker is tokenized differently on its own and after text: Vicuna's "###" is [835] or
        [2277, 29937].
        """

        def ids(text):
            return self.tokenizer(text, add_special_tokens=False).input_ids

        behind = [ids(f"a{marker}")[len(ids("a")) :] for marker in self.turn_markers]
        return [*map(ids, self.turn_markers), *behind]

    @property
    def model_input_names(self):
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]


def _turns():
    """turns.py, which only training and building a model need; a repository just runs one and does not contain it."""
    try:
        from minigpt4.processing import turns
    except ImportError as error:
        raise ImportError("finding answers in a template needs the package; run `pip install minigpt4-hf`") from error
    return turns


def _papers_template(image_token):
    """The conversation format that Vicuna v0 was tuned on; a repository has its own in chat_template.jinja."""
    try:
        from minigpt4.processing.chat_templates import VICUNA_V0, with_image_token
    except ImportError as error:
        raise ImportError("there is no chat_template; pass one, or run `pip install minigpt4-hf`") from error
    return with_image_token(VICUNA_V0, image_token)


def prepare_tokenizer(tokenizer, image_token):
    """Sets up in the tokenizer, in place, what every path must share; running it again changes nothing.

    - the image token is special, so that text splits there;
    - SentencePiece's word-start mark is put on each stretch of text (not only on the first), as in the original;
    - text splits at `BREAK`, which is dropped;
    - there is a padding token other than the image token.
    """
    backend = tokenizer.backend_tokenizer
    split = pre_tokenizers.Split(BREAK, "removed")
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        # The same marks, but put by the normalizer: it sees each stretch between special tokens, not the parts of a split.
        symbols = [str(token) for token in tokenizer.added_tokens_decoder.values() if not token.special]
        backend.normalizer = normalizers.Sequence([_word_start_mark(symbols), normalizers.Replace(" ", "▁")])
        tokenizer.add_tokens([AddedToken(symbol, normalized=True) for symbol in symbols])
        backend.pre_tokenizer = split
    elif BREAK not in repr(backend.pre_tokenizer):
        parts = [split] if backend.pre_tokenizer is None else [split, backend.pre_tokenizer]
        backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.add_tokens([AddedToken(image_token, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None or tokenizer.pad_token == image_token:
        tokenizer.pad_token = tokenizer.eos_token


def _word_start_mark(symbols):
    """Puts SentencePiece's mark before a stretch of text, but not before a lone user-defined symbol, because the
    tokenizer normalizes such a symbol before it looks for it in normalized text. (In its regular expressions, ^ and $ match
    at the ends of a line, not of the text.)"""
    if not symbols:
        return normalizers.Prepend("▁")
    lone = "|".join(map(re.escape, symbols))
    return normalizers.Replace(Regex(rf"\A(?!(?:{lone})\z)(?=[\s\S])"), "▁")
