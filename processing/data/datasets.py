"""From a recipe's data section to training examples: images, and the texts to learn about each.

    training_data(section, stage) -> PictureTexts; an item is an example for MiniGPT4DataCollator:
        stage 1: {"image", "text"}      stage 2: {"image", "instruction", "text"} or {"image", "messages"}

Images come from composed scenes (scenes.py) or from `data.path` (sources.py). Data that are too large to scan first are
streamed instead: streams.py.
"""

import math
import random
from dataclasses import replace

import torch
from torch.utils.data import ConcatDataset, Dataset
from tqdm.auto import tqdm

from . import photo_texts
from .samples import BrokenSample, DroppedSamples, clean_caption, content, decode, is_conversation
from .scenes import DETAIL_INSTRUCTIONS, scenes
from .sources import open_source

CROP_AREA, CROP_RATIO = 0.5, 3 / 4  # the least
SHORT_INSTRUCTIONS = (
    "Describe this image in one short sentence.",
    "Write a short caption for this picture.",
    "What is in this image? Answer briefly.",
    "Caption this image.",
    "Please describe the image shortly and precisely, in less than 20 words.",  # the paper's, for CHAIR
    "What do you see in the picture?",
)


class PictureTexts(Dataset):
    """Texts that each belong to one image, which several may share.

    Args:
        pictures: sequence of rows with an "image".
        texts: [{"picture": index, "text": ..., "instruction": ... in stage 2}, ...]; each is an item of this data set. With
            "instructions" instead of "instruction", one of them is drawn each time the item is used.
        features: [pictures, views, Q, C], the frozen vision parts' output for each image (see `cache_features` in
            training.py); then items have `vision_features` [Q, C] of a random view, and no image.
        feature_dropout: share of those features set to zero, the rest scaled up.
        random_crop: items have a `random_view` of the image.
        held_out: rows {"image", "texts": [...]} that are not trained on.
        dropped: `DroppedSamples`, the unusable part of the data.
        validation: a `PictureTexts` of other images, whose loss is logged during training, or None.

    What is drawn for an item depends only on `seed`, `epoch` and its index, so a resumed run draws the same.
    """

    def __init__(
        self,
        pictures,
        texts,
        features=None,
        feature_dropout=0.0,
        random_crop=False,
        held_out=(),
        dropped=None,
        validation=None,
    ):
        self.pictures = pictures
        self.texts = texts
        self.features = features
        self.feature_dropout = feature_dropout
        self.random_crop = random_crop
        self.held_out = held_out
        self.dropped = dropped or DroppedSamples()
        self.validation = validation
        self.seed = self.epoch = 0

    def set_epoch(self, epoch):
        """Sets the epoch, which determines the views that are drawn."""
        self.epoch = epoch

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        rng = random.Random(f"{self.seed}/{self.epoch}/{index}")
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        item = {key: value for key, value in drawn(self.texts[index], rng).items() if key != "picture"}
        picture = self.texts[index]["picture"]
        if self.features is None:
            image = self.pictures[picture]["image"]
            return {**item, "image": random_view(image, generator) if self.random_crop else image}
        view = self.features[picture, torch.randint(self.features.shape[1], (), generator=generator).item()]
        if self.feature_dropout:
            kept = torch.rand(view.shape, generator=generator) >= self.feature_dropout
            view = view * kept / (1 - self.feature_dropout)
        return {**item, "vision_features": view}


def training_data(section, stage):
    """The examples of a recipe's data section (`DataSection` in recipe.py) for stage 1 or 2.

    Raises:
        ValueError: a path or column that does not exist, or more broken samples than section.max_dropped_share.
    """
    if section.path and section.sources:
        raise ValueError("data.path and data.sources are both set; expected one of them")
    dropped = DroppedSamples(section.max_dropped_share, at_least=1)
    if section.path or section.sources:
        parts = [replace(section, sources=[], **vars(source)) for source in section.sources] or [section]
        of_parts = [read_pictures(part, dropped) for part in parts]
        for part, read in zip(parts, of_parts, strict=True):
            check_stage(part, read.source, stage)
        pictures = ConcatDataset(of_parts)
        texts = _mixed(_texts(of_parts, section, stage), [part.weight for part in parts])
    else:
        if section.views > 1 or section.random_crop:
            raise ValueError("data.views and data.random_crop: a cropped scene no longer matches its text")
        pictures = scenes(section.scenes, section.scene_seed)
        texts = _scene_texts(pictures, stage)
    if not texts:
        raise ValueError(
            "data: detailed_answers, short_answers, plain_captions and questions are all 0, so stage 2 has no texts"
        )
    check_validation(section)
    kept_out = section.held_out + validation_pictures(section, len(pictures))
    if kept_out >= len(pictures):
        raise ValueError(
            f"data.held_out and data.validation_share keep {kept_out} of {len(pictures)} pictures out of training: none "
            "is left to train on"
        )
    order = random.Random(0).sample(range(len(pictures)), kept_out)
    held_out, validated = order[: section.held_out], order[section.held_out :]
    shown = [{"image": pictures[i]["image"], "texts": [text for text in texts if text["picture"] == i]} for i in held_out]
    validation = validation_data(section, stage)
    if validated:
        validation = PictureTexts(pictures, [text for text in texts if text["picture"] in validated])
    texts = [text for text in texts if text["picture"] not in order]
    return PictureTexts(
        pictures, texts, random_crop=section.random_crop, held_out=shown, dropped=dropped, validation=validation
    )


def check_validation(section):
    """Raises ValueError if a data section sets both validation data and a validation share."""
    if section.validation and section.validation_share:
        raise ValueError("data.validation and data.validation_share are both set; expected one of them")


def validation_pictures(section, found):
    """How many of the images found are kept out of training by the section's share."""
    if not section.validation_share:
        return 0
    return min(section.validation_limit, max(1, round(section.validation_share * found)))


def validation_data(section, stage):
    """The `PictureTexts` of a data section's `validation`, or None if it has none.

    Raises:
        ValueError: as `training_data`.
    """
    if not section.validation:
        return None
    plain = {"validation": "", "validation_share": 0.0, "holdout_share": 0.0, "sources": [], "streaming": False}
    section = replace(section, path=section.validation, **plain)
    dropped = DroppedSamples(section.max_dropped_share, at_least=1)
    try:
        pictures = read_pictures(section, dropped)
        check_stage(section, pictures.source, stage)
    except ValueError as error:
        raise ValueError(f"data.validation: {error}") from error
    chosen = random.Random(0).sample(range(len(pictures)), min(section.validation_limit, len(pictures)))
    texts = [text for text in _texts([pictures], section, stage)[0] if text["picture"] in chosen]
    return PictureTexts(pictures, texts, dropped=dropped)


class Pictures:
    """Rows {"image"} of a source, opened when read.

    Args:
        source: what `open_source` returned. section: a `SourceSection`.
        places: [(shard, position, index), ...] of the samples.
        contents: for each image its [`Content`, ...], without the image itself.
        dropped: `DroppedSamples`.
    """

    def __init__(self, source, section, places, contents, dropped):
        self.source = source
        self.section = section
        self.places = places
        self.contents = contents
        self.dropped = dropped

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        sample = next(self.source.read(*self.places[index]))
        found = content(self.source.parse(sample), self.section, self.source.root)
        return {"image": decode(found.pictures[0], self.section.image_size)}


def read_pictures(section, dropped=None, only_held_out=False):
    """The images of a data section's path, each decoded once to check it; rows with the same file share one image.

    Args:
        dropped: `DroppedSamples` to add to. only_held_out: see `open_source`.

    Raises:
        ValueError: as `training_data`.
    """
    source = open_source(section, holdout_share=section.holdout_share, only_held_out=only_held_out)
    dropped = dropped or DroppedSamples(section.max_dropped_share, at_least=1)
    places, contents, of_file = [], [], {}
    for shard in range(len(source.shards)):
        place = (shard, 0, 0)
        for sample in tqdm(source.read(shard), desc=f"reading {source.shards[shard]}", unit="sample", leave=False):
            here, place = place, (shard, *sample.after)
            try:
                found = content(source.parse(sample), section, source.root)
                if len(found.pictures) > 1:
                    raise BrokenSample("several pictures: set data.streaming=true")
                [encoded], found.pictures = found.pictures, []
                file = hash(encoded)
                if file not in of_file:
                    decode(encoded, section.image_size)
            except BrokenSample as error:
                dropped.add(0, [{"kind": str(error), "shard": sample.shard, "key": sample.key}])
                continue
            dropped.add(1, [])
            if file not in of_file:
                of_file[file] = len(places)
                places.append(here)
                contents.append([])
            of_picture = contents[of_file[file]]
            if of_picture and found.captions and not found.instruction:
                of_picture[0].captions += found.captions
            else:
                of_picture.append(found)
    dropped.check()
    if not places:
        raise ValueError(f"data.path {section.path}: {dropped}")
    return Pictures(source, section, places, contents, dropped)


def joined_answer(captions, rng, n):
    """A detailed answer from n of an image's captions, each as a sentence: a random one, then those with most new words.

    A single caption stays as it is: the original does not change those of stage 2.
    """
    if len(captions) == 1:
        return captions[0]
    left = rng.sample(captions, len(captions))
    chosen = [left.pop()]
    while left and len(chosen) < n:
        said = set(" ".join(chosen).lower().split())
        chosen.append(max(left, key=lambda caption: len(set(caption.lower().split()) - said)))
        left.remove(chosen[-1])
    return " ".join(_sentence(caption) for caption in chosen)


def random_view(picture, generator=None):
    """RandomResizedCrop of the original's training transform: 50 to 100% of the area, sides 3:4 to 4:3.

    Draws from torch's generator (or the given one), in torchvision's order.
    """
    width, height = picture.size
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(CROP_AREA, 1.0, generator=generator).item()
        ratios = torch.log(torch.tensor([CROP_RATIO, 1 / CROP_RATIO])).tolist()
        ratio = torch.exp(torch.empty(1).uniform_(*ratios, generator=generator)).item()
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,), generator=generator).item()
            left = torch.randint(0, width - w + 1, (1,), generator=generator).item()
            return picture.crop((left, top, left + w, top + h))
    return picture


def crop_size(size):
    """The side, in pixels, that an image needs for its `random_view` to have `size`."""
    return math.ceil(size / (CROP_AREA * CROP_RATIO) ** 0.5)


def _scene_texts(pictures, stage):
    rows = pictures.with_format(None)
    if stage == 1:
        return [{"picture": i, "text": text} for i, text in enumerate(rows["text"])]
    # Colours are learned long before names and sides, so only every other scene asks for the background.
    texts = []
    for i, conversation in enumerate(rows["conversation"]):
        description, background, *others = conversation
        for asked in (description, *others, *([background] if i % 2 == 0 else [])):
            texts.append({"picture": i, "instruction": asked["instruction"], "text": asked["text"]})
    return texts


def drawn(text, rng):
    """A text with one of its "instructions", if it has any, drawn by a `random.Random`; else unchanged."""
    if "instructions" not in text:
        return text
    asked = {"instruction": rng.choice(text["instructions"])}
    return {key: value for key, value in text.items() if key != "instructions"} | asked


def texts_about(found, section, stage, rng, statistics=None):
    """The texts to learn about one image in a stage: [{"text", "instruction" and "instructions" in stage 2}, ...].

    Args:
        found: `Content` with captions. section: a `DataSection`. rng: a `random.Random`.
        statistics: `photo_texts.Statistics`, if the section asks for texts made from known facts about an image.
    """
    if found.messages:
        return [{"messages": found.messages}]
    if stage == 2 and found.instruction:
        return [{"instruction": found.instruction, "text": caption} for caption in found.captions]
    made = photo_texts.texts(found.row, rng, statistics, section.varied_captions) if statistics else {}
    captions = made["captions"] if section.varied_captions else found.captions
    clean = clean_caption if section.clean_captions else str.strip
    plain = captions if stage == 1 else rng.sample(captions, min(section.plain_captions, len(captions)))
    texts = [{"text": clean(caption)} for caption in plain]
    if stage == 1:
        return texts
    for instruction in rng.choices(DETAIL_INSTRUCTIONS, k=section.detailed_answers):
        if answer := _detailed_answer(found.row, made, section, rng):
            texts.append({"instruction": instruction, "instructions": DETAIL_INSTRUCTIONS, "text": answer})
    for instruction in rng.choices(SHORT_INSTRUCTIONS, k=section.short_answers):
        answer = joined_answer(captions, rng, 1)
        texts.append({"instruction": instruction, "instructions": SHORT_INSTRUCTIONS, "text": answer})
    if statistics:
        asked = rng.sample(made["questions"], min(section.questions, len(made["questions"])))
        texts += [{"instruction": instruction, "text": answer} for instruction, answer in asked]
        if made["conversation"] and rng.random() < section.conversations:
            texts.append({"messages": made["conversation"]})
    return texts


def _detailed_answer(row, made, section, rng):
    """An image's description: its own, or one made from captions that people wrote; "" if there is neither."""
    if made.get("details"):
        return rng.choice(made["details"])
    if row.get("detail"):
        return "".join(photo_texts.details(row))
    by_people = photo_texts.written(row)
    return joined_answer(by_people, rng, section.joined_captions) if by_people and section.joined_captions else ""


def check_stage(section, source, stage):
    """Raises ValueError if a stage cannot learn anything from a source."""
    conversations = is_conversation(source.columns, section)
    if conversations and stage == 1:
        raise ValueError(f"{section.path}: has conversations, which are learned in stage 2; stage 1 needs captions")


def _texts(of_parts, section, stage):
    """The texts about each of several `Pictures`, with consecutive image numbers."""
    rng, statistics, texts, first = random.Random(0), None, [], 0
    if section.varied_captions or section.questions or section.conversations:
        rows = (found.row for pictures in of_parts for contents in pictures.contents for found in contents)
        statistics = photo_texts.Statistics(rows)
    for pictures in of_parts:
        of_part = []
        for i, contents in enumerate(pictures.contents, first):
            about = (text for found in contents for text in texts_about(found, section, stage, rng, statistics))
            of_part += [{"picture": i, **text} for text in about]
        texts.append(of_part)
        first += len(pictures)
    return texts


def _mixed(texts, weights):
    """As many texts as there are, with each part's share given by its weight; for a single part, all of them."""
    if len(texts) == 1:
        return texts[0]
    if not all(texts) or min(weights) <= 0:
        raise ValueError("data.sources: each needs a weight above 0, and texts to learn in this stage")
    rng, total, mixed = random.Random(0), sum(map(len, texts)), []
    for of_part, weight in zip(texts, weights, strict=True):
        times, rest = divmod(round(total * weight / sum(weights)), len(of_part))
        mixed += of_part * times + rng.sample(of_part, rest)
    return mixed


def _sentence(caption):
    caption = caption.strip().rstrip(" .")
    return caption[:1].upper() + caption[1:] + ("" if caption.endswith(("!", "?")) else ".")
