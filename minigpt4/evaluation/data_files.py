"""The benchmarks' own files, as their authors publish them, folders of images, and tar shards of photographs.

    COCO captions, COCO instances     one JSON each: {"images": [...], "annotations": [...]}
    POPE                              a JSON object a line: {"question_id", "image", "text", "label"}
    GQA                               one JSON: {question id: {"imageId", "question", "answer", ...}}
    AOK-VQA                           one JSON: [{"question_id", "image_id", "question", "choices", ...}]

Their content is not trusted: an image must be inside its folder, and a field of another type is an error.
"""

import json
import re
from pathlib import Path

from ..processing.data.samples import facts
from ..processing.data.sources import TarShards
from ..processing.image_processing_minigpt4 import load_image

KINDS = {
    "captions": "COCO captions (images and annotations with a caption)",
    "instances": "COCO instances (images, categories and annotations with a category_id)",
    "pope": "POPE questions (lines with image, text and label)",
    "gqa": "GQA questions (questions by id, with imageId, question and answer)",
    "aokvqa": "AOK-VQA questions (a list with question_id, image_id, question and choices)",
}
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Folder:
    """Images by their names in a folder, opened on access."""

    def __init__(self, path):
        self.path = Path(path)

    def check(self, names):
        """Raises ValueError unless every image exists, with the number of missing ones and the first of them."""
        names = list(dict.fromkeys(names))
        missing = [name for name in names if not self._place(name).is_file()]
        if missing:
            raise ValueError(
                f"{self.path}: {len(missing)} of {len(names)} pictures are missing, the first {missing[0]!r}; "
                "name their folder with --images"
            )

    def open(self, name):
        """The image as RGB; ValueError as for `load_image`."""
        return load_image(self._place(name))

    def names(self):
        """Names of all images in the folder and its subfolders, sorted."""
        found = (path for path in self.path.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
        return sorted(str(path.relative_to(self.path)) for path in found)

    def _place(self, name):
        # Only the name is checked: in the Hub's cache, files are links that point out of their folder.
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r}: a picture's name points outside {self.path}; expected one inside it")
        return self.path / name


class Shards:
    """Images of tar shards (KEY.jpg with KEY.json or KEY.txt, see processing/data/sources.py) by their keys.

    Args:
        paths: tar files. holdout_share: only the keys that `data.holdout_share` keeps out of training; 0: all of them.

    `rows` is {key: known facts about the image}, in the form of processing/data/photo_texts.py.

    Raises:
        ValueError: a sample is broken, or a key comes twice.
    """

    def __init__(self, paths, holdout_share=0.0):
        self.source = TarShards([str(path) for path in paths])
        self.source.holdout_share, self.source.only_held_out = holdout_share, True
        self.rows, self.places = {}, {}
        for shard, path in enumerate(paths):
            after = (0, 0)
            for sample in self.source.read(shard):
                place, after = (shard, *after), sample.after
                fields = self.source.parse(sample).fields
                if sample.broken or "image" not in fields:
                    raise ValueError(f"{path}: {sample.key} cannot be used ({sample.broken or 'no picture'})")
                if sample.key in self.rows:
                    raise ValueError(f"{path}: key {sample.key!r} appears twice; expected each once")
                self.rows[sample.key], self.places[sample.key] = {"captions": _captions(fields), **facts(fields)}, place

    def check(self, names):
        """Nothing to do: every image was seen when the shards were read."""

    def open(self, name):
        """The image as RGB; ValueError if it cannot be decoded."""
        sample = self.source.parse(next(self.source.read(*self.places[name])))
        try:
            return load_image(sample.fields["image"])
        except ValueError as error:
            raise ValueError(f"{sample.shard}: {name}: {error}") from error

    def names(self):
        """All keys, sorted."""
        return sorted(self.rows)


def tar_files(paths):
    """The tar shards among files and in folders, if there are any, or []."""
    return [
        file for path in paths for file in (sorted(path.glob("*.tar")) if path.is_dir() else [path]) if file.suffix == ".tar"
    ]


def local(name):
    """The path of a file or folder, or of a data set on the Hub, "OWNER/NAME", which is downloaded."""
    if Path(name).exists():
        return Path(name)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(f"{name}: no such file or folder; expected one, or the id of a data set on the Hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except Exception as error:  # from the client, its transport or the file system
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name}: no such file or folder, and the Hub does not provide it ({reason})") from error


def find(paths, *wanted):
    """{kind: [(path, content), ...]} for the files of the wanted kinds among files and folders (not their subfolders).

    Raises:
        ValueError: there is none of the first kind, or a named file is of no wanted kind.
    """
    found, others = {kind: [] for kind in wanted}, []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
        for file in inside:
            content = _read(file)
            kind = _kind(content)
            if kind in wanted:
                found[kind].append((file, content))
            elif not path.is_dir():
                raise ValueError(f"{file}: expected {' or '.join(KINDS[kind] for kind in wanted)}; found {_told(kind)}")
            else:
                others.append(f"{file.name} ({_told(kind)})")
    if not any(found.values()):
        raise ValueError(
            f"{', '.join(map(str, paths))}: no {KINDS[wanted[0]]}; found {', '.join(others) or 'no .json or .jsonl file'}"
        )
    return found


def coco_pictures(content, path):
    """{image id: file name} of a COCO file; both must be unique, or two images would count as one."""
    pictures, names = {}, set()
    for image in content["images"]:
        identity, name = field(image, "id", int, path), field(image, "file_name", str, path)
        if identity in pictures:
            raise ValueError(f"{path}: image id {identity} appears twice")
        if name in names:
            raise ValueError(f"{path}: file_name {name!r} appears twice")
        names.add(name)
        pictures[identity] = name
    return pictures


def coco_captions(content, path):
    """{file name: [captions]} of a COCO captions file; an image without any is an error, as it could not be scored."""
    pictures = coco_pictures(content, path)
    captions = {name: [] for name in pictures.values()}
    for annotation in content["annotations"]:
        captions[_of(pictures, annotation, path)].append(field(annotation, "caption", str, path))
    without = [name for name, texts in captions.items() if not texts]
    if without:
        raise ValueError(f"{path}: {len(without)} of {len(captions)} pictures have no caption, the first {without[0]!r}")
    return captions


def coco_instances(content, path):
    """{file name: set of category names} of a COCO instances file; an image without objects has an empty set."""
    pictures = coco_pictures(content, path)
    categories = {field(c, "id", int, path): field(c, "name", str, path) for c in content["categories"]}
    kinds = {name: set() for name in pictures.values()}
    for annotation in content["annotations"]:
        category = field(annotation, "category_id", int, path)
        if category not in categories:
            raise ValueError(f"{path}: an annotation has category_id {category}, which no category has")
        kinds[_of(pictures, annotation, path)].add(categories[category])
    return kinds


def field(entry, name, kind, where):
    """entry[name], which must exist and have a type; ValueError names the file."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__
        raise ValueError(f"{where}: an entry has {name} {value!r:.60}, expected {kinds}")
    return value


def _captions(fields):
    """A shard sample's facts about its image: the .json's captions, else the .txt; anything but text is ignored."""
    found = fields.get("captions", fields.get("text", []))
    return [text for text in (found if isinstance(found, list) else [found]) if isinstance(text, str)]


def _of(pictures, annotation, path):
    identity = field(annotation, "image_id", int, path)
    if identity not in pictures:
        raise ValueError(f"{path}: an annotation has image_id {identity}, which no image has")
    return pictures[identity]


def _read(path):
    """A JSON file, or one with a JSON value per line."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except json.JSONDecodeError:
        pass
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path}: neither JSON nor one JSON value per line ({error})") from error


def without_duplicates(pairs):
    """A JSON object from its pairs, for `json.load`; ValueError if a key comes twice, as one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} appears twice")
    return found


def _kind(content):
    """Which of `KINDS` a file is, from its structure, or None."""
    if (
        isinstance(content, dict)
        and isinstance(content.get("annotations"), list)
        and isinstance(content.get("images"), list)
    ):
        if isinstance(content.get("categories"), list):
            return "instances"
        return "captions"
    first = next(iter(content.values() if isinstance(content, dict) else content), None) if content else None
    if not isinstance(first, dict):
        return None
    if isinstance(content, dict):
        return "gqa" if {"imageId", "question", "answer"} <= set(first) else None
    if {"image", "text", "label"} <= set(first):
        return "pope"
    return "aokvqa" if {"question_id", "image_id", "question", "choices"} <= set(first) else None


def _told(kind):
    return KINDS.get(kind, "something else")
