"""python docs/scripts/answers.py: what the shipped model says about photographs, as README and docs show it.

Writes docs/images/NAME.jpg, docs/answers.json and the fragments `answers` of README.md and docs/limitations.md. Greedy, so
that the same weights say the same. The photographs are those of processing/data/photographs.py that may be shown anywhere,
in its order; nobody chooses.
"""

import argparse
import io
from pathlib import Path

from fragments import ROOT, replace

from minigpt4.durable_files import write_bytes, write_json
from minigpt4.inference.named_models import fingerprint, load
from minigpt4.processing.data.photographs import CREDITS, FREE, photograph

QUESTIONS = ["What is in this image?", "Describe this image in one short sentence.", "Describe this image in detail."]
STRIP = 3  # photographs in README
SIDE = 320  # pixels of those that are shown


def main(name):
    """Asks, and writes."""
    model, processor = load(name, device="auto")
    rows = []
    for photo in (photo for photo in CREDITS if photo in FREE):
        image = photograph(photo)
        said = [model.chat_session(processor, max_new_tokens=100, do_sample=False).ask(ask, image) for ask in QUESTIONS]
        rows.append({"name": photo, "credit": FREE[photo], "answers": dict(zip(QUESTIONS, said, strict=True))})
        _write_image(ROOT / "docs/images" / f"{photo}.jpg", image)
    write_json(ROOT / "docs/answers.json", {"model": name, "weights": fingerprint(model), "images": rows})
    replace(ROOT / "README.md", "answers", _strip(rows[:STRIP], "docs/images"))
    replace(ROOT / "docs/limitations.md", "answers", _table(rows, "images"))


def _write_image(path, image):
    image, buffer = image.convert("RGB"), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(buffer, "JPEG", quality=85)
    write_bytes(path, buffer.getvalue())


def _strip(rows, folder):
    """A column a photograph: image, question, answer."""
    columns = [
        (f"![{row['name']}]({folder}/{row['name']}.jpg)", f"*{QUESTIONS[0]}*", _cell(row["answers"][QUESTIONS[0]]))
        for row in rows
    ]
    lines = [" | ".join(cells) for cells in zip(*columns, strict=True)]
    return "\n".join(f"| {line} |" for line in [lines[0], " | ".join("---" for _ in rows), *lines[1:]])


def _table(rows, folder):
    """A row a photograph, with the answer to every question."""
    lines = ["image | " + " | ".join(QUESTIONS), " | ".join(["---"] * (1 + len(QUESTIONS)))]
    for row in rows:
        shown = f"![{row['name']}]({folder}/{row['name']}.jpg)<br>{row['credit']}"
        lines.append(" | ".join([shown, *map(_cell, row["answers"].values())]))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(text):
    """A text as a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>") or "(nothing)"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="default: the model that ships")
    Path(ROOT / "docs/images").mkdir(exist_ok=True)
    main(parser.parse_args().model)
