"""Step 1: a seeded random sample of images, recorded by the hash of their content.

The sample depends only on the seed and the images' names: each name has a random number, and the smallest ones are taken. So
the order in which a folder is listed does not matter, a stop changes nothing, and a larger sample with the same seed
includes the smaller one.
"""

import base64
import hashlib
import io
import os
import sqlite3
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from minigpt4.configuration.recipe import SourceSection
from minigpt4.durable_files import write_bytes

from ..processing.data.samples import BrokenSample, content
from ..processing.data.sources import open_source
from ..processing.image_processing_minigpt4 import load_image
from .counts import Report, chunks


def sample(store, source, count=5000, seed=0):
    """Draws `count` pictures from a source and records them; returns a `Report`.

    Args:
        source: a folder of pictures (with folders in it), or any source of captioned pictures that training takes (see
            processing/data/sources.py): tar shards, parquet, the id of a data set on the Hub, ...

    Images of a folder stay where they are; those of a stream are saved next to the store. Unreadable images are reported
    and left out, as are duplicates.

    Raises:
        ValueError: no images found.
    """
    run = store.run("sample", {"source": str(source), "count": count, "seed": seed})
    report = Report("sample")
    scratch = Path(f"{store.path}.draw")
    try:
        bound, total = _bound(pictures_of(source), count, seed, scratch)
    except sqlite3.Error as error:
        raise OSError(f"{scratch}: {error}; the draw is sorted there, so make room for it") from error
    if total < count:
        report.note(f"{source} holds {total} pictures, fewer than the {count} asked for: all are taken")
    drawn = (found for found in pictures_of(source) if _key(seed, found[0]) <= bound)
    for chunk in chunks(tqdm(drawn, "sample", min(total, count), unit="picture"), 64):
        rows = []
        for name, read in chunk:
            if store.value("SELECT 1 FROM pictures WHERE name = ?", name):
                report.already += 1
                continue
            try:
                rows.append(_row(store, name, read))
            except ValueError as error:
                report.failed(error)
        report.done += (new := store.record("sample", run, rows))
        report.count("the same picture as another", len(rows) - new)
    return report


def pictures_of(source):
    """Yields (name, read) for every picture of a folder or stream; read() gives (bytes, path or None).

    Raises:
        ValueError: nothing there, or not readable.
    """
    files = _files(Path(source))
    first = next(files, None)
    if first is None:
        yield from _stream(source)
        return
    yield first
    yield from files


def _files(root):
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    folders = [root] if root.is_dir() else []
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif path.suffix.lower() in suffixes and entry.is_file():
                    yield path.relative_to(root).as_posix(), lambda path=path: (path.read_bytes(), path.absolute())


def _stream(source):
    section = SourceSection(path=str(source))
    try:
        opened = open_source(section, streaming=True)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("data.path ")) from error
    for number, shard in enumerate(opened.shards):
        for sample in opened.read(number):
            name = f"{number}/{Path(shard).name}:{sample.key}"
            yield name, lambda sample=sample: (content(opened.parse(sample), section, opened.root).pictures[0], None)


def _bound(found, count, seed, scratch):
    """The count-th smallest key, and how many pictures there are; sorted on disk, as there may be many millions."""
    scratch.unlink(missing_ok=True)  # left by a killed run
    keys = sqlite3.connect(scratch, isolation_level=None)
    keys.execute("PRAGMA journal_mode = OFF")
    keys.execute("CREATE TABLE keys (key TEXT)")
    keys.execute("BEGIN")
    keys.executemany("INSERT INTO keys VALUES (?)", ((_key(seed, name),) for name, _ in found))
    keys.execute("COMMIT")
    total = keys.execute("SELECT COUNT(*) FROM keys").fetchone()[0]
    last = min(count, total) - 1
    [bound] = keys.execute("SELECT key FROM keys ORDER BY key LIMIT 1 OFFSET ?", (last,)).fetchone()
    keys.close()
    scratch.unlink()
    return bound, total


def _key(seed, name):
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _row(store, name, read):
    try:
        data, path = read()
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror})") from error
    except BrokenSample as error:
        raise ValueError(f"{name}: {error}") from error
    try:
        load_image(data)
    except ValueError as error:
        raise ValueError(str(error).replace("the picture", name, 1)) from error
    picture = hashlib.sha256(data).hexdigest()
    if path is None:
        path = Path(f"{store.path.name}.pictures") / picture[:2] / picture
        if not store.place(path).is_file():
            write_bytes(store.place(path), data)
    return {"picture": picture, "name": name, "path": str(path)}


def read_picture(store, row):
    """The bytes of a recorded picture.

    Raises:
        ValueError: the file is gone, or has changed since it was sampled.
    """
    path = store.place(row["path"])
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: the picture is gone ({error.strerror}); restore it or leave it out") from error
    if hashlib.sha256(data).hexdigest() != row["picture"]:
        raise ValueError(f"{path}: not the picture that was sampled")
    return data


def picture_address(store, row):
    """A recorded picture as "data:image/png;base64,...", for a request; commercial servers require the type.

    Raises:
        ValueError: as `read_picture`.
    """
    data = read_picture(store, row)
    with Image.open(io.BytesIO(data)) as image:
        kind = image.get_format_mimetype()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
