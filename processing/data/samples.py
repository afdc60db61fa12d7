"""From a raw sample to images and texts, or a `BrokenSample` that says what is wrong; and the count of those.

sources.py reads -> Sample(fields) -> content(sample, section) -> Content(pictures, captions or messages)
"""

import os
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field

from PIL import Image, UnidentifiedImageError

from ..image_processing_minigpt4 import load_image

# If a section names no column: the first of these that a sample has.
IMAGE_COLUMNS = (
    *("image", "images", "jpg", "jpeg", "png", "webp", "img", "picture"),
    *("file_name", "filename", "image_path", "filepath", "path"),
)
TEXT_COLUMNS = ("captions", "text", "caption", "txt", "description", "sentences", "sentence", "alt_text")
CONVERSATION_COLUMNS = ("messages", "conversations")
_LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
# Other facts about an image, and the type each must have to be used; see photo_texts.py.
FACTS = {"objects": list, "label": str, "detail": str, "made": str, "source": str}
MAX_BYTES = 64_000_000  # of one file or tar member; a larger one is not read
MAX_CAPTION_WORDS = 50


class BrokenSample(ValueError):
    """A sample that cannot be used; its message is the kind of damage, in fixed words."""


@dataclass
class Sample:
    """What a source read at one position.

    Args:
        shard, key: names; together they say which sample this is.
        index: its number in the shard.
        fields: its content, images as encoded bytes or paths.
        after: (position, index) at which the source reads the next one.
        broken: the kind of damage, if it could not be read.
        place: the place of `after` in a stream, see streams.py.
        read_before: how many times a stream has read its source before.
    """

    shard: str
    key: str
    index: int
    fields: dict
    after: tuple
    broken: str | None = None
    place: tuple = ()
    read_before: int = 0


@dataclass
class Content:
    """Encoded images and their texts: captions and `FACTS`, or the messages of a conversation."""

    pictures: list
    captions: list = field(default_factory=list)
    messages: list | None = None
    instruction: str | None = None
    facts: dict = field(default_factory=dict)

    @property
    def row(self):
        """The input of photo_texts.py."""
        return {"captions": self.captions, **self.facts}


def content(sample, section, root=None):
    """A sample's images and texts, from the columns that a data section names (`SourceSection` in recipe.py).

    Args:
        root: the folder that relative paths refer to; None: images are inside the samples themselves.

    Raises:
        BrokenSample: something is missing, empty, or of the wrong type.
    """
    if sample.broken:
        raise BrokenSample(sample.broken)
    fields = sample.fields
    found = _first(fields, section.image_column, IMAGE_COLUMNS)
    pictures = [_encoded(value, root) for value in (found if isinstance(found, list) else [found])]
    if is_conversation(fields, section):
        messages = fields["messages"] if fields.get("messages") is not None else _from_llava(fields.get("conversations"))
        return Content(pictures, messages=_conversation(messages, len(pictures)))
    if len(pictures) != 1:
        raise BrokenSample("several pictures for one text")
    captions = _first(fields, section.text_column, TEXT_COLUMNS)
    captions = captions if isinstance(captions, list) else [captions]
    if captions == [None]:
        raise BrokenSample("no text")
    instruction = fields.get(section.instruction_column) if section.instruction_column else None
    if not all(isinstance(text, str) for text in [*captions, instruction or ""]):
        raise BrokenSample("text of the wrong type")
    captions = [caption for caption in captions if clean_caption(caption)]
    if not captions or (section.instruction_column and not (instruction or "").strip()):
        raise BrokenSample("empty text")
    return Content(pictures, captions, instruction=instruction, facts=facts(fields))


def held_out(key, share):
    """Whether a sample is kept out of training for evaluation: a fixed property of its key, true for about that share."""
    return zlib.crc32(key.encode()) % 1000 < share * 1000


def is_conversation(fields, section):
    """Whether fields (or column names) include conversations: a column `messages`, or LLaVA's `conversations`, unless the
    section names another column."""
    return not section.text_column and any(name in fields for name in CONVERSATION_COLUMNS)


def check_columns(columns, section, where):
    """Raises ValueError, one line, if a column of the section does not exist or none of the usual ones does."""
    found = f"found {', '.join(sorted(columns)) or 'none'}"
    for option in ("image_column", "text_column", "instruction_column"):
        if getattr(section, option) and getattr(section, option) not in columns:
            raise ValueError(f"{where}: no column {getattr(section, option)!r} (data.{option}); {found}")
    usual = {"image_column": IMAGE_COLUMNS, "text_column": () if is_conversation(columns, section) else TEXT_COLUMNS}
    for option, names in usual.items():
        if names and not getattr(section, option) and not set(names) & set(columns):
            raise ValueError(f"{where}: no column {', '.join(names)}; {found}; set data.{option}")


def clean_caption(text):
    """A caption cleaned up like the original's `BlipCaptionProcessor`: lower case, no .!"()*#:;~, at most 50 words."""
    text = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    text = re.sub(r" {2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:MAX_CAPTION_WORDS])


def decode(data, smallest=None):
    """Encoded bytes -> RGB image (see `load_image`); raises BrokenSample."""
    if not data:
        raise BrokenSample("empty picture")
    try:
        return load_image(data, smallest)
    except ValueError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise BrokenSample("picture of too many pixels") from error
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise BrokenSample("not a picture") from error
        raise BrokenSample("damaged or truncated picture") from error


class DroppedSamples:
    """Counts used samples and dropped ones, the latter by kind and by shard.

    Args:
        max_share: `check` raises if more than this share was dropped.
        at_least: the smallest number of samples to take that share of, so that one broken sample among the first few of
            a stream does not stop the run; 1 for data that were scanned as a whole.
    """

    SHOWN = 100  # samples that are listed by name

    def __init__(self, max_share=0.01, at_least=1000):
        self.max_share = max_share
        self.at_least = at_least
        self.used = 0
        self.by_kind = Counter()
        self.by_shard = Counter()
        self.samples = []

    @property
    def dropped(self):
        """How many were dropped."""
        return self.by_kind.total()

    def add(self, used, dropped):
        """Adds `used` samples and the `dropped` ones: [{"kind", "shard", "key"}, ...], as in a stream's items."""
        self.used += used
        self.by_kind.update(entry["kind"] for entry in dropped)
        self.by_shard.update(entry["shard"] for entry in dropped)
        self.samples += dropped[: self.SHOWN - len(self.samples)]

    def check(self):
        """Raises ValueError with counts and names, in one line, if too many were dropped."""
        if self.dropped > self.max_share * max(self.used + self.dropped, self.at_least):
            raise ValueError(f"{self}; more than data.max_dropped_share={self.max_share:g} allows")

    def state_dict(self):
        """For summary.json and `load_state_dict`: {"used", "dropped", "by_kind", "by_shard", "samples"}."""
        return {
            "used": self.used,
            "dropped": self.dropped,
            "by_kind": dict(self.by_kind.most_common()),
            "by_shard": dict(self.by_shard.most_common()),
            "samples": list(self.samples),
        }

    def load_state_dict(self, *states):
        """Continues counting from what `state_dict` returned, or from the sum of several."""
        self.used = sum(state["used"] for state in states)
        self.by_kind, self.by_shard = Counter(), Counter()
        for state in states:
            self.by_kind.update(state["by_kind"])
            self.by_shard.update(state["by_shard"])
        self.samples = [entry for state in states for entry in state["samples"]][: self.SHOWN]

    def __str__(self):
        counts = ", ".join(f"{n} x {kind}" for kind, n in self.by_kind.most_common())
        names = ", ".join(sample_name(entry) for entry in self.samples[:5])
        said = f"{self.dropped} of {self.used + self.dropped} samples cannot be used"
        return f"{said}: {counts} ({names}{', ...' if self.dropped > 5 else ''})" if counts else said


def sample_name(entry):
    """SHARD:KEY of a dropped entry or of a `Sample`'s fields."""
    return f"{entry['shard']}:{entry['key']}"


def _first(fields, column, usual):
    names = (column,) if column else usual
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def facts(fields):
    """Those of `FACTS` that a sample has with the right type; a class number, for example, is not a usable label."""
    found = {name: fields[name] for name, kind in FACTS.items() if isinstance(fields.get(name), kind) and fields[name]}
    if not all(isinstance(name, str) for name in found.get("objects", [])):
        del found["objects"]
    return found


def _encoded(value, root):
    """Bytes of an image: given directly, as `datasets` stores images, or as a path inside the data's folder."""
    remote = False
    if isinstance(value, dict):
        remote = str(value.get("path")).startswith("hf://")  # an image file of a Hub data set
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if value is None:
        raise BrokenSample("no picture")
    if not isinstance(value, str) or not (root or remote):
        raise BrokenSample("picture of the wrong type")
    if remote:
        from datasets.utils.file_utils import xopen

        with xopen(value, "rb") as file:
            return file.read(MAX_BYTES)
    path = os.path.normpath(os.path.join(root, value))
    if os.path.commonpath([root, path]) != root:  # data from elsewhere must not read other files of this machine
        raise BrokenSample("picture outside of the data's folder")
    if not os.path.isfile(path):
        raise BrokenSample("missing picture")
    if os.path.getsize(path) > MAX_BYTES:
        raise BrokenSample(f"file over {MAX_BYTES // 1_000_000} MB")
    with open(path, "rb") as file:
        return file.read()


def _from_llava(conversations):
    """LLaVA's [{"from": "human" | "gpt", "value": text}, ...] as messages; "<image>" in a text marks an image's place."""
    try:
        return [{"role": _LLAVA_ROLES[turn["from"]], "content": _llava_parts(turn["value"])} for turn in conversations or ()]
    except (TypeError, KeyError, AttributeError) as error:
        raise BrokenSample("conversations of the wrong type") from error


def _llava_parts(text):
    """Text with "<image>" in it -> parts; the line breaks that LLaVA puts around the mark are dropped with it."""
    parts = []
    for part in re.split(r"\n?(<image>)\n?", text):
        if part:
            parts.append({"type": "image"} if part == "<image>" else {"type": "text", "text": part})
    return parts


def _conversation(messages, pictures):
    """Messages in the chat templates' form, with as many image places as there are images."""
    try:
        turns = [{"role": message["role"], "content": _parts(message["content"])} for message in messages]
    except (TypeError, KeyError) as error:
        raise BrokenSample("messages of the wrong type") from error
    if not any(turn["role"] == "assistant" for turn in turns):
        raise BrokenSample("no text")
    places = sum(part["type"] == "image" for turn in turns for part in turn["content"])
    if places == 0:  # plain texts: the images go before the first of them
        next(turn for turn in turns if turn["role"] != "system")["content"][:0] = [{"type": "image"}] * pictures
    elif places != pictures:
        raise BrokenSample("more or fewer places than pictures")
    return turns


def _parts(content):
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    # Arrow gives every part the fields of all parts.
    return [{"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"]} for part in content]
