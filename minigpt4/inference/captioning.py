"""Descriptions of every image in a folder, one per line, in a file that a stopped run continues.

    {"file_name": "a/b.jpg", "text": "...", "model": "embedded", "prompt": "..."}
    {"file_name": "a/c.jpg", "error": "damaged or truncated (...)", "model": ..., "prompt": ...}

`file_name` and `text` are the names that `datasets` uses: as metadata.jsonl next to the images, it makes an `imagefolder`.
"""

import json
import os
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..processing.image_processing_minigpt4 import load_image
from .generation import answers, chat_prompt

SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"),
    *(".avif", ".heic", ".heif"),
}
_BEGINNING = b'{"file_name": "'  # of every line


def find_pictures(folder):
    """Names of all images in a folder and its subfolders, relative and sorted; raises ValueError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one with pictures")
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    if not names:
        raise ValueError(f"{folder}: contains no pictures ({' '.join(sorted(SUFFIXES))})")
    return names


def finished_lines(output, labels):
    """{file name: line} of what an earlier run wrote. An unfinished last line is removed.

    Args:
        output: the file; it need not exist.
        labels: {"model", "prompt"} of this run.

    Raises:
        ValueError: the file contains something else, or captions by another model or for another prompt.
    """
    output = Path(output)
    if not output.exists():
        return {}
    if not output.is_file():
        raise ValueError(f"{output}: not a file; choose another --output")
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = {}
    for number, text in enumerate(whole.splitlines(), 1):
        line = _parsed(text)
        if "file_name" not in line or not ("text" in line or "error" in line):
            raise ValueError(f"{output}: line {number} is not from a caption file; choose another --output")
        for label, value in labels.items():
            if line.get(label) != value:
                raise ValueError(
                    f"{output}: line {number} has the {label} {line.get(label)!r}, not {value!r}; "
                    "choose another --output, or continue as it was begun"
                )
        lines[line["file_name"]] = line
    if unfinished := content[len(whole) :]:
        if not unfinished.startswith(_BEGINNING[: len(unfinished)]):
            raise ValueError(f"{output}: line {len(lines) + 1} is not from a caption file; choose another --output")
        os.truncate(output, len(whole))
    return lines


def caption_folder(model, processor, folder, names, output, labels, batch_size, max_new_tokens, done=0):
    """Appends a line for each image to a file, one batch at a time; returns how many could not be read.

    Args:
        names: of the images that are not in the file yet, relative to `folder`.
        labels: {"model", "prompt"}: also written in every line; the prompt is the question.
        done: how many are in the file already, for the progress bar.
    """
    prompt, broken = chat_prompt(processor, labels["prompt"]), 0
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    progress = tqdm(total=done + len(names), initial=done, unit="picture")
    with open(output, "ab") as file, progress:
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            lines, pictures = {}, {}
            for name in batch:
                try:
                    pictures[name] = load_image(Path(folder) / name)
                except ValueError as error:
                    lines[name] = {"error": str(error).removeprefix(f"{Path(folder) / name}: ")}
            broken += len(lines)
            texts = _describe(model, processor, list(pictures.values()), prompt, max_new_tokens) if pictures else []
            lines.update({name: {"text": text} for name, text in zip(pictures, texts, strict=True)})
            for name in batch:
                file.write(json.dumps({"file_name": name, **lines[name], **labels}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            progress.update(len(batch))
    return broken


@torch.inference_mode()
def _describe(model, processor, pictures, prompt, max_new_tokens):
    pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"].to(model.device)
    features = model.model.get_vision_features(pixels)
    return answers(model, processor, [prompt] * len(pictures), features, max_new_tokens, batch_size=len(pictures))


def _parsed(text):
    """A line as a dict, {} for anything else."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}
