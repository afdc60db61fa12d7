"""Step 6: accepted texts become a data set with a card, in one of three layouts.

    datasets        data/train-*.parquet, data/validation-*.parquet, README.md: `load_dataset(FOLDER)` or the Hub's
    cc_sbu_align    image/N.jpg, filter_cap.json {"annotations": [{"image_id", "caption"}]}: the original's
    preferences     data/*.parquet of what `judge` found: images, prompt, chosen, rejected, as TRL's DPOTrainer takes them

Only its hash decides whether an image is for validation, so it never changes sides. The folder is written atomically.
"""

import io
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value
from PIL import Image as PILImage
from tqdm.auto import tqdm

from minigpt4.durable_files import folder_in_place, write_bytes

from ..processing.image_processing_minigpt4 import load_image
from .counts import Report, chunks
from .dataset_card import dataset_card, preference_card
from .sample import read_picture

VALIDATION = 0.05
MARK = "minigpt4-curation"  # a tag in the card that marks an earlier publication
_CAPTIONED = Features({"image": Image(), "text": Value("string"), "picture": Value("string")})
_TURNS = [{"role": Value("string"), "content": Value("string")}]
_PREFERRED = Features(
    {"images": [Image()], "prompt": _TURNS, "chosen": _TURNS, "rejected": _TURNS, "picture": Value("string")}
)
_SHARD_BYTES, _ROWS_AT_ONCE = 500_000_000, 64


def publish(store, output, layout="datasets", validation=VALIDATION, name="minigpt4-curated", license=None, credit=""):
    """Writes the accepted and edited texts, or the preferences, to a folder; returns a `Report`.

    Args:
        output: a new folder, or an earlier publication, which it replaces as a whole.
        layout: one of `LAYOUTS`.
        validation: share of the pictures that are for validation (not in "cc_sbu_align": the original has no such split).
        name: the data set's title.
        license: the images' licence, in the Hub's spelling ("cc-by-sa-4.0"). credit: their owners, for the card.

    Raises:
        ValueError: nothing was accepted, or preferred, yet; the folder contains something else.
        OSError: it cannot be written.
    """
    output, report, kind = Path(output).absolute(), Report("publish"), LAYOUTS[layout]
    check_output(output)
    store.run("publish", {"layout": layout, "validation": validation, "name": name})
    total = store.value(f"SELECT COUNT(*) FROM ({kind.rows})")
    if not total:
        raise ValueError(f"{store.path}: {kind.missing}")
    rows = tqdm(_paged(store, kind.rows), "publish", total, unit="picture")
    with folder_in_place(output) as scratch:
        splits = kind.write(store, rows, scratch, validation, report)
        if not sum(splits.values()):
            raise ValueError(f"{store.path}: none of the {total} pictures to publish can be read")
        write_bytes(scratch / "README.md", kind.card(store, splits, name, license, credit).encode())
    report.done = sum(splits.values())
    for split, count in splits.items():
        report.count(f"for {split}", count)
    return report


def check_output(output):
    """Raises ValueError unless a folder is new, empty, or an earlier publication."""
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file; expected a new folder to publish to")
    card = output / "README.md"
    if output.is_dir() and any(output.iterdir()) and not (card.is_file() and MARK in card.read_text("utf-8", "replace")):
        raise ValueError(f"{output}: has files that are not from an earlier publication; choose another folder, or empty it")


def push(output, repo_id, private=False):
    """Uploads a published folder as a data set of the Hub in one commit; returns its address.

    Raises:
        OSError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        api = HfApi()
        repo = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo.repo_id,
            repo_type="dataset",
            folder_path=output,
            commit_message="Curated by minigpt4-hf",
            delete_patterns=["data/*", "image/*"],
        )
    except HTTPError as error:
        raise OSError(f"{repo_id}: the Hub refused ({str(error).splitlines()[0]})") from error
    return commit.commit_url


def is_validation(picture, share):
    """Whether a picture (its sha256) belongs to validation: the first `share` of all possible hashes do."""
    return int(picture[:13], 16) < share * 16**13


def _paged(store, rows):
    """Rows of a query of `LAYOUTS`, by key; lazily."""
    last = ""
    while page := store.rows(f"{rows} AND p.picture > ? ORDER BY p.picture LIMIT 256", last):
        yield from page
        last = page[-1]["picture"]


def _readable(store, rows, report):
    """(row, bytes) of the pictures that are still there; the others are reported."""
    for row in rows:
        try:
            yield row, read_picture(store, row)
        except ValueError as error:
            report.failed(error)


def _write_parquet(features, example, store, rows, folder, validation, report):
    shards = {split: _Shards(folder / "data", split, features) for split in ("train", "validation")}
    for chunk in chunks(_readable(store, rows, report), _ROWS_AT_ONCE):
        for split, shard in shards.items():
            mine = [pair for pair in chunk if is_validation(pair[0]["picture"], validation) == (split == "validation")]
            shard.write([example(row, data) for row, data in mine], sum(len(data) for _, data in mine))
    for shard in shards.values():
        shard.close()
    return {split: shard.rows for split, shard in shards.items() if shard.rows}


def _captioned(row, data):
    return {"image": {"bytes": data, "path": None}, "text": row["text"], "picture": row["picture"]}


def _preferred(row, data):
    other = {"first": "second", "second": "first"}[row["chosen"]]
    return {
        "images": [{"bytes": data, "path": None}],
        "prompt": [{"role": "user", "content": row["question"]}],
        "chosen": [{"role": "assistant", "content": row[row["chosen"]]}],
        "rejected": [{"role": "assistant", "content": row[other]}],
        "picture": row["picture"],
    }


class _Shards:
    """Parquet files of one split, each of about `_SHARD_BYTES`."""

    def __init__(self, folder, split, features):
        self.folder, self.split, self.schema = folder, split, features.arrow_schema
        self.rows, self.files, self.bytes, self._writer = 0, 0, 0, None
        folder.mkdir(exist_ok=True)

    def write(self, rows, size):
        if not rows:
            return
        if self._writer is None:
            path = self.folder / f"{self.split}-{self.files:05}.parquet"
            self._writer = pq.ParquetWriter(path, self.schema)
            self.files, self.bytes = self.files + 1, 0
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self.schema))
        self.rows += len(rows)
        self.bytes += size
        if self.bytes > _SHARD_BYTES:
            self.close()

    def close(self):
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _write_cc_sbu_align(store, rows, folder, validation, report):
    (folder / "image").mkdir()
    count = 0
    with open(folder / "filter_cap.json", "w", encoding="utf-8") as file:
        file.write('{"annotations": [')
        for row, data in _readable(store, rows, report):
            (folder / "image" / f"{count}.jpg").write_bytes(_as_jpeg(data))
            annotation = {"image_id": str(count), "caption": row["text"]}
            file.write(("," if count else "") + "\n" + json.dumps(annotation, ensure_ascii=False))
            count += 1
        file.write("\n]}\n")
    return {"train": count}


def _as_jpeg(data):
    """The file as it is if it is a JPEG, else converted to one."""
    with PILImage.open(io.BytesIO(data)) as image:
        if image.format == "JPEG":
            return data
    buffer = io.BytesIO()
    load_image(data).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


class _Layout(NamedTuple):
    """A form of publication: a query of its rows, the error if there are none, what writes them, and their card."""

    rows: str
    missing: str
    write: object
    card: object


_ACCEPTED = (
    "SELECT p.picture, p.path, d.text FROM decisions AS d JOIN pictures AS p USING (picture) WHERE d.decision != 'reject'",
    "no picture was accepted yet; run verify first",
)
LAYOUTS = {
    "datasets": _Layout(*_ACCEPTED, partial(_write_parquet, _CAPTIONED, _captioned), partial(dataset_card, "datasets")),
    "cc_sbu_align": _Layout(*_ACCEPTED, _write_cc_sbu_align, partial(dataset_card, "cc_sbu_align")),
    "preferences": _Layout(
        "SELECT * FROM preferences AS p WHERE p.chosen IS NOT NULL",
        "no answer was preferred yet; run pairs and judge first",
        partial(_write_parquet, _PREFERRED, _preferred),
        preference_card,
    ),
}
