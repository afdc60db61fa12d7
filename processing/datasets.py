"""A recipe's data section to training examples: pictures, and the texts that are learned about each.

    training_data(section, stage) -> PictureTexts; an item is what MiniGPT4DataCollator takes:
        stage 1: {"image", "text"}      stage 2: {"image", "instruction", "text"}

Pictures come from composed scenes (scenes.py), or from webdataset shards as img2dataset writes them: KEY.jpg, KEY.txt
(a caption) and KEY.json (with `captions`, a list, where there are several).
"""

import random
import re
from pathlib import Path

import torch
from torch.utils.data import Dataset

from .image_processing_minigpt4 import load_image
from .scenes import DETAIL_INSTRUCTIONS, scenes

MAX_CAPTION_WORDS = 50
SHORT_INSTRUCTIONS = (
    "Describe this image in one short sentence.",
    "Write a short caption for this picture.",
    "What is in this image? Answer briefly.",
    "Caption this image.",
    "Please describe the image shortly and precisely, in less than 20 words.",  # the paper's, for CHAIR
    "What do you see in the picture?",
)


class PictureTexts(Dataset):
    """Texts that each belong to one picture; several may share it.

    Args:
        pictures: sequence of rows with an "image".
        texts: [{"picture": index, "text": ..., "instruction": ... in stage 2}, ...]; an item of this data set is one.
        features: [pictures, views, Q, C], the frozen vision part's output for each picture (see `cache_features` in
            training.py); then items hold `vision_features` [Q, C] of a view drawn at random, and no image.
        feature_dropout: share of those features set to zero, the rest scaled up.
    """

    def __init__(self, pictures, texts, features=None, feature_dropout=0.0):
        self.pictures = pictures
        self.texts = texts
        self.features = features
        self.feature_dropout = feature_dropout

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        item = {key: value for key, value in self.texts[index].items() if key != "picture"}
        picture = self.texts[index]["picture"]
        if self.features is None:
            return {**item, "image": self.pictures[picture]["image"]}
        view = self.features[picture, torch.randint(self.features.shape[1], ()).item()]
        return {**item, "vision_features": torch.nn.functional.dropout(view, self.feature_dropout)}


def training_data(section, stage):
    """The examples of a recipe's data section (`DataSection` in recipes.py) for stage 1 or 2; ValueError on a bad path."""
    if section.source == "scenes":
        if section.views > 1:
            raise ValueError(f"data.views is {section.views}: a mirrored scene is not what its text says; expected 1")
        pictures = scenes(section.scenes, section.scene_seed)
        return PictureTexts(pictures, _scene_texts(pictures, stage))
    if section.source == "webdataset":
        pictures = webdataset(section.path)
        return PictureTexts(pictures, _caption_texts(pictures, section, stage))
    raise ValueError(f'data.source is {section.source!r}, expected "scenes" or "webdataset"')


def webdataset(path):
    """Tar shards -> rows with "image" (opened when read) and "captions" (a list); path: a file, folder or glob."""
    from datasets import load_dataset

    root = Path(path)
    shards = sorted(map(str, root.glob("*.tar") if root.is_dir() else root.parent.glob(root.name)))
    if not shards or not path:
        raise ValueError(f"data.path is {path!r}: no .tar shards there; expected a file, a folder or a glob of shards")
    try:
        rows = load_dataset("webdataset", data_files=shards, split="train")
    except Exception as error:  # of many kinds: tar, json, arrow, and its own
        raise ValueError(f"{path}: cannot be read as webdataset shards ({str(error).splitlines()[0]})") from error
    missing = {"jpg", "txt"} - set(rows.column_names)
    if missing:
        raise ValueError(f"{path}: shards without .{' and .'.join(sorted(missing))}; found {', '.join(rows.column_names)}")
    return rows.with_transform(_webdataset_rows)


def clean_caption(text):
    """Stage-1 caption as the original's `BlipCaptionProcessor` leaves it: lower case, .!"()*#:;~ gone, at most 50 words."""
    text = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    text = re.sub(r" {2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:MAX_CAPTION_WORDS])


def joined_answer(captions, rng, n):
    """A detailed answer from n of a picture's captions, each made a sentence: any one, then what adds most new words."""
    left = rng.sample(captions, len(captions))
    chosen = [left.pop()]
    while left and len(chosen) < n:
        said = set(" ".join(chosen).lower().split())
        chosen.append(max(left, key=lambda caption: len(set(caption.lower().split()) - said)))
        left.remove(chosen[-1])
    return " ".join(_sentence(caption) for caption in chosen)


def random_view(picture):
    """RandomResizedCrop of the original's training transform: 50 to 100% of the area, sides 3:4 to 4:3.

    Draws from torch's generator, in torchvision's order.
    """
    width, height = picture.size
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(0.5, 1.0).item()
        ratio = torch.exp(torch.empty(1).uniform_(*torch.log(torch.tensor([3 / 4, 4 / 3])).tolist())).item()
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,)).item()
            left = torch.randint(0, width - w + 1, (1,)).item()
            return picture.crop((left, top, left + w, top + h))
    return picture


def _scene_texts(pictures, stage):
    rows = pictures.with_format(None)
    if stage == 1:
        return [{"picture": i, "text": text} for i, text in enumerate(rows["text"])]
    # Colours are learned long before names and sides: every other scene asks for the background.
    texts = []
    for i, conversation in enumerate(rows["conversation"]):
        description, background, *others = conversation
        for asked in (description, *others, *([background] if i % 2 == 0 else [])):
            texts.append({"picture": i, "instruction": asked["instruction"], "text": asked["text"]})
    return texts


def _caption_texts(pictures, section, stage):
    rng = random.Random(0)
    clean = clean_caption if section.clean_captions else str.strip
    captions = pictures.with_format(None).remove_columns("jpg").with_transform(_webdataset_rows)  # no picture is opened
    texts = []
    for i in range(len(captions)):
        of_picture = captions[i]["captions"]
        plain = of_picture if stage == 1 else rng.sample(of_picture, min(section.plain_captions, len(of_picture)))
        texts += [{"picture": i, "text": clean(caption)} for caption in plain]
        if stage == 2:
            for instruction in rng.choices(DETAIL_INSTRUCTIONS, k=section.detailed_answers):
                answer = joined_answer(of_picture, rng, section.joined_captions)
                texts.append({"picture": i, "instruction": instruction, "text": answer})
            for instruction in rng.choices(SHORT_INSTRUCTIONS, k=section.short_answers):
                texts.append({"picture": i, "instruction": instruction, "text": joined_answer(of_picture, rng, 1)})
    return texts


def _webdataset_rows(batch):
    rows = {}
    if "jpg" in batch:
        rows["image"] = [load_image(image) for image in batch["jpg"]]
    extra = batch.get("json") or [None] * len(batch["txt"])
    rows["captions"] = [(details or {}).get("captions") or [text] for details, text in zip(extra, batch["txt"], strict=True)]
    return rows


def _sentence(caption):
    caption = caption.strip().rstrip(" .")
    return caption[:1].upper() + caption[1:] + ("" if caption.endswith(("!", "?")) else ".")
