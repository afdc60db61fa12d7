"""Step 6: what was accepted becomes a data set with a card, in one of two layouts.

    datasets        data/train-*.parquet, data/validation-*.parquet, README.md: `load_dataset(FOLDER)` or the Hub's
    cc_sbu_align    image/N.jpg, filter_cap.json {"annotations": [{"image_id", "caption"}]}: the original's

Whether a picture is for validation follows from its hash alone, so that it never changes sides. The folder appears at once.
"""

import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value
from PIL import Image as PILImage
from tqdm.auto import tqdm

from minigpt4.files import sync_files, write_bytes

from ..image_processing_minigpt4 import load_image
from .card import dataset_card
from .report import Report, chunks
from .sample import read_picture

LAYOUTS = ("datasets", "cc_sbu_align")
VALIDATION = 0.05
MARK = "minigpt4-curation"  # a tag in the card, by which an earlier publication is known
_FEATURES = Features({"image": Image(), "text": Value("string"), "picture": Value("string")})
_SHARD_BYTES, _ROWS_AT_ONCE = 500_000_000, 64


def publish(store, output, layout="datasets", validation=VALIDATION, name="minigpt4-curated", license=None, credit=""):
    """Writes the accepted and edited pairs to a folder; returns a `Report`.

    Args:
        output: a new folder, or an earlier publication, which it replaces as a whole.
        validation: share of the pictures that are for validation ("datasets" only: the original has no such split).
        name: the data set's title.
        license: the pictures' licence, as the Hub spells it ("cc-by-sa-4.0"). credit: whose they are, for the card.

    Raises:
        ValueError: nothing was accepted yet; the folder holds something else.
        OSError: it cannot be written.
    """
    output, report = Path(output).absolute(), Report("publish")
    check_output(output)
    store.run("publish", {"layout": layout, "validation": validation, "name": name})
    total = store.value("SELECT COUNT(*) FROM decisions WHERE decision != 'reject'")
    if not total:
        raise ValueError(f"{store.path}: no picture was accepted yet; run verify first")
    rows = tqdm(_accepted(store), "publish", total, unit="picture")
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_name(f".{output.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left
    try:
        scratch.mkdir()
        write = _write_parquet if layout == "datasets" else _write_cc_sbu_align
        splits = write(store, rows, scratch, validation, report)
        if not sum(splits.values()):
            raise ValueError(f"{store.path}: of {total} accepted pictures none can be read")
        write_bytes(scratch / "README.md", dataset_card(store, splits, layout, name, license, credit).encode())
        sync_files(scratch)
        _swap(scratch, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
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
        raise ValueError(f"{output}: holds other files than an earlier publication; choose another folder, or empty it")


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
        raise OSError(f"{repo_id}: the Hub refuses ({str(error).splitlines()[0]})") from error
    return commit.commit_url


def is_validation(picture, share):
    """Whether a picture (its sha256) belongs to validation: the first `share` of all possible hashes do."""
    return int(picture[:13], 16) < share * 16**13


def _swap(scratch, output):
    """Puts a finished folder in the place of an earlier one."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    scratch.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _accepted(store):
    last = ""
    while page := store.rows(
        "SELECT p.picture, p.path, d.text FROM decisions AS d JOIN pictures AS p USING (picture)"
        " WHERE d.decision != 'reject' AND p.picture > ? ORDER BY p.picture LIMIT 256",
        last,
    ):
        yield from page
        last = page[-1]["picture"]


def _readable(store, rows, report):
    """(row, bytes) of the pictures that are still there; the others are reported."""
    for row in rows:
        try:
            yield row, read_picture(store, row)
        except ValueError as error:
            report.failed(error)


def _write_parquet(store, rows, folder, validation, report):
    shards = {split: _Shards(folder / "data", split) for split in ("train", "validation")}
    for chunk in chunks(_readable(store, rows, report), _ROWS_AT_ONCE):
        for split, shard in shards.items():
            shard.write(
                [
                    {"image": {"bytes": data, "path": None}, "text": row["text"], "picture": row["picture"]}
                    for row, data in chunk
                    if is_validation(row["picture"], validation) == (split == "validation")
                ]
            )
    for shard in shards.values():
        shard.close()
    return {split: shard.rows for split, shard in shards.items() if shard.rows}


class _Shards:
    """Parquet files of one split, each of about `_SHARD_BYTES`."""

    def __init__(self, folder, split):
        self.folder, self.split, self.rows, self.files, self.bytes, self._writer = folder, split, 0, 0, 0, None
        folder.mkdir(exist_ok=True)

    def write(self, rows):
        if not rows:
            return
        if self._writer is None:
            path = self.folder / f"{self.split}-{self.files:05}.parquet"
            self._writer = pq.ParquetWriter(path, _FEATURES.arrow_schema)
            self.files, self.bytes = self.files + 1, 0
        self._writer.write_table(pa.Table.from_pylist(rows, schema=_FEATURES.arrow_schema))
        self.rows += len(rows)
        self.bytes += sum(len(row["image"]["bytes"]) for row in rows)
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
    """The file as it is if it is a JPEG, else what a viewer shows of it as one."""
    with PILImage.open(io.BytesIO(data)) as image:
        if image.format == "JPEG":
            return data
    buffer = io.BytesIO()
    load_image(data).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
