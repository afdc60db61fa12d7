"""Sources of images with texts: their format is detected, and reading can start at any position.

    open_source(section, streaming) -> TarShards or Tables; both have
        shards                                        names
        read(shard, position, index, every, offset)   Samples from that position on, or every n-th of them

Detected by content: webdataset tar shards (img2dataset's .jpg .txt .json), the original's cc_sbu_align (filter_cap.json and
image/), a folder of pictures with one CSV or JSONL table, parquet, a data set that `datasets` saved, a Hub data set.
"""

import json
import os
import tarfile
from itertools import islice
from pathlib import Path

from .samples import IMAGE_COLUMNS, MAX_BYTES, BrokenSample, Sample, check_columns, held_out

BLOCK = 512  # tar's unit
MAX_NAME = 65_536  # bytes of a tar header extension
MAX_SIZE = 2**40  # bytes of a tar member that is skipped
LOOKED_AT = 16  # samples that the columns are inferred from
ROWS = 64  # rows of a table that are read at once
PIECE = 1_000  # rows per shard of a table on disk
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".arrow": "arrow"}
EXPECTED = (
    "expected .tar shards, filter_cap.json with image/, pictures with one .csv or .jsonl, .parquet files, "
    "a data set saved by `datasets`, or the id of one on the Hub"
)


class TarShards:
    """Tar files in which KEY.jpg (or another image), KEY.txt and KEY.json follow each other.

    Args:
        names: of the shards. files: their paths or addresses; by default the names.

    Samples whose key is `held_out` by `holdout_share` are left out, or with `only_held_out` are the only ones read.
    A sample has "image", "text" and the entries of its .json. Positions are byte offsets: a resumed stream jumps there.
    """

    root = None

    def __init__(self, names, files=None):
        self.shards = names
        self.files = files or names
        self.holdout_share, self.only_held_out = 0.0, False

    def read(self, shard, position=0, index=0, every=1, offset=0):
        """Samples of a shard (a number) from byte `position` on, the first being number `index`.

        Only those with number % every == offset are read and returned; if the file is damaged or cut, a final sample
        says so. Raises OSError if the file cannot be opened or the connection fails.
        """
        from datasets.utils.file_utils import xopen

        if position is None:  # past the damage in a damaged file
            return
        key, fields, broken = None, {}, None

        def wanted():
            mine = index % every == offset
            return mine and (not self.holdout_share or held_out(key, self.holdout_share) == self.only_held_out)

        def sample(after):
            return Sample(self.shards[shard], key, index, fields, (after, index + 1), broken)

        with xopen(self.files[shard], "rb") as file:
            after = position
            try:
                for name, start, end, size in tar_members(file, position):
                    after = end
                    folder, _, base = name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    if not stem:
                        continue  # hidden files
                    if key not in (None, f"{folder}/{stem}".lstrip("/")):
                        if wanted():
                            yield sample(start)
                        index, fields, broken = index + 1, {}, None
                    key, suffix = f"{folder}/{stem}".lstrip("/"), suffix.lower()
                    if not wanted() or suffix not in (*IMAGE_SUFFIXES, "txt", "json"):
                        continue
                    if size > MAX_BYTES:
                        broken = f"file over {MAX_BYTES // 1_000_000} MB"
                        continue
                    fields[suffix] = file.read(size)
                    if len(fields[suffix]) < size:
                        raise BrokenSample("tar file cut short")
            except BrokenSample as error:
                key, broken, after = key or "start", str(error), None
            if key is not None and wanted():
                yield sample(after)

    def parse(self, sample):
        """Replaces the members' bytes by their content: "image", "text", and the entries of the .json."""
        if sample.broken:
            return sample
        members = sample.fields
        try:
            details = json.loads(members["json"]) if "json" in members else {}
            text = {"text": members["txt"].decode()} if "txt" in members else {}
        except ValueError:
            sample.broken = "damaged .json or .txt"
            return sample
        details = details if isinstance(details, dict) else {}
        images = [members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members]
        sample.fields = {**details, **text, **({"image": images[0]} if images else {})}
        return sample


class Tables:
    """Data sets of the `datasets` library, each one shard; a sample is a row, a position its number.

    Args:
        tables: `Dataset`s or `IterableDataset`s. names: one each.
        root: the folder that relative image paths refer to, if images are paths.
    """

    def __init__(self, tables, names, root=None):
        self.tables = [table.with_format("arrow") for table in tables]  # so that no image is decoded
        self.shards = names
        self.root = root and os.path.abspath(root)

    def read(self, shard, position=0, index=0, every=1, offset=0):
        """See `TarShards.read`."""
        import pyarrow

        if position in (None, getattr(self.tables[shard], "num_rows", None)):  # `skip` needs at least one row left
            return

        def sample(fields, after, broken=None):
            return Sample(self.shards[shard], str(index), index, fields, (after, index + 1), broken)

        try:
            for table in self.tables[shard].skip(position).iter(ROWS):
                for row in range(len(table)):
                    if index % every == offset:
                        yield sample(table.slice(row, 1).to_pylist()[0], index + 1)
                    index += 1
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
                raise  # a problem of the connection or the disk, not of the data
            if index % every == offset:
                yield sample({}, None, "damaged table")

    def parse(self, sample):
        """Adds the name of the image's file to the sample's, if it has one."""
        names = [sample.fields[column] for column in IMAGE_COLUMNS if isinstance(sample.fields.get(column), str)]
        sample.key = " ".join([str(sample.index), *names[:1]])
        return sample


def open_source(section, streaming=False, holdout_share=0.0, only_held_out=False):
    """The source that a section's `path` names (`SourceSection` in recipe.py).

    Args:
        streaming: read sequentially; otherwise tables are memory-mapped from the cache of `datasets`, with random access
            to samples.
        holdout_share: share of the samples, by key, that is left out; with only_held_out, everything else is left out.

    Raises:
        ValueError: nothing found, an unknown format, or no such column; one line.
    """
    paths = [os.path.expanduser(str(path)) for path in (section.path if isinstance(section.path, list) else [section.path])]
    where = f"data.path {', '.join(map(str, paths))}"
    if not 0 <= holdout_share < 1:
        raise ValueError(f"data.holdout_share is {holdout_share}; expected a share from 0 to below 1, such as 0.1")
    try:
        source = _open(section, paths, where, streaming)
        if holdout_share:
            _hold_out(source, holdout_share, only_held_out, where)
        samples = (source.parse(sample) for shard in range(len(source.shards)) for sample in source.read(shard))
        looked_at = list(islice(samples, LOOKED_AT))
    except ValueError as error:
        raise ValueError(_in_one_line(error, where)) from error
    except Exception as error:  # many kinds: from file systems, the Hub, arrow and `datasets`
        raise ValueError(_in_one_line(error, f"{where} cannot be read")) from error
    source.columns = {column for sample in looked_at for column in sample.fields}
    if not source.columns:
        kinds = ", ".join(sorted({str(sample.broken) for sample in looked_at})) or "empty"
        raise ValueError(f"{where}: no sample can be read ({kinds}); {EXPECTED}")
    check_columns(source.columns, section, where)
    return source


def _hold_out(source, share, only_held_out, where):
    if not isinstance(source, TarShards):
        raise ValueError(f"{where}: data.holdout_share uses the keys of tar shards, and there are none; set it to 0")
    source.holdout_share, source.only_held_out = share, only_held_out


def _open(section, paths, where, streaming):
    if len(paths) == 1 and not _is_pattern(paths[0]):
        path = paths[0]
        if os.path.isdir(path):
            return _folder(Path(path), section, where, streaming)
        if "://" not in path and not os.path.isfile(path):
            if path.count("/") > 1 or path.startswith((".", "/")) or Path(path).suffix in (*TABLES, ".tar"):
                raise ValueError(f"{where}: no such file or folder; {EXPECTED}")
            return _hub(path, section, streaming)
        if path.startswith("hf://datasets/") and len(path.split("/")) == 5:
            return _hub(path.removeprefix("hf://datasets/"), section, streaming)
    return _files(_found(paths, where), section, where, streaming)


def _folder(folder, section, where, streaming):
    if (folder / "filter_cap.json").is_file():
        return _cc_sbu_align(folder, where)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder, section, where)
    files = sorted(folder.glob("*.tar"))
    if not files:
        files = sorted(path for suffix in (".csv", ".tsv", ".jsonl") for path in folder.glob(f"*{suffix}"))
        files = [path for path in files if path.stem == "metadata"] or files
        if len(files) > 1:
            names = ", ".join(path.name for path in files[:5])
            raise ValueError(f"{where}: {len(files)} tables ({names}); expected one, or set data.path to one of them")
    files = files or sorted(folder.rglob("*.tar")) or _of_split(sorted(folder.rglob("*.parquet")), section.split)
    if not files and len(lists := sorted(folder.glob("*.json"))) == 1:  # LLaVA's layout, with the images next to it
        files = lists
    if files:
        return _files([str(file) for file in files], section, where, streaming)
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
    raise ValueError(f"{where}: found {names or 'nothing'} there; {EXPECTED}")


def _of_split(files, split):
    """Files whose names begin with the split's, as on the Hub (train-00000.parquet); all files if none does."""
    return [file for file in files if file.name.startswith(split)] or files


def _files(files, section, where, streaming):
    """Files of one kind, according to their suffix."""
    suffixes = {Path(file).suffix.lower() for file in files}
    if suffixes == {".tar"}:
        if streaming or "://" not in files[0]:
            return TarShards(files)
        from datasets import DownloadManager

        return TarShards(files, DownloadManager().download(files))
    if len(suffixes) != 1 or not suffixes <= set(TABLES):
        raise ValueError(f"{where}: files of kind {', '.join(sorted(suffixes))}; expected one of .tar, {', '.join(TABLES)}")
    from datasets import load_dataset

    [suffix] = suffixes
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    data = load_dataset(TABLES[suffix], data_files={"train": files}, split="train", streaming=streaming, **options)
    root = None if "://" in files[0] else os.path.dirname(os.path.abspath(files[0]))
    return _tables(data, files if streaming or len(files) == 1 else [os.path.dirname(files[0])], root)


def _hub(name, section, streaming):
    from datasets import load_dataset, load_dataset_builder

    builder = load_dataset_builder(name, section.subset or None)
    if builder.name == "webdataset":
        files = builder.config.data_files
        if section.split not in files:
            raise ValueError(f"{name}: no split {section.split!r} (data.split); found {', '.join(files)}")
        return _files([str(file) for file in files[section.split]], section, name, streaming)
    data = load_dataset(name, section.subset or None, split=section.split, streaming=streaming)
    return _tables(data, [name])


def _saved(folder, section, where):
    from datasets import DatasetDict, load_from_disk

    data = load_from_disk(str(folder))
    if isinstance(data, DatasetDict):
        if section.split not in data:
            raise ValueError(f"{where}: no split {section.split!r} (data.split); found {', '.join(data)}")
        data = data[section.split]
    return _tables(data, [str(folder)], folder)


def _cc_sbu_align(folder, where):
    from datasets import Dataset

    try:
        annotations = json.loads((folder / "filter_cap.json").read_text(encoding="utf-8"))["annotations"]
        rows = [{"image": f"image/{entry['image_id']}.jpg", "caption": entry["caption"]} for entry in annotations]
    except (ValueError, KeyError, TypeError) as error:
        expected = '{"annotations": [{"image_id", "caption"}, ...]}'
        raise ValueError(f"{where}: filter_cap.json is not like the original's; expected {expected}") from error
    return _tables(Dataset.from_list(rows), [str(folder)], folder)


def _tables(data, names, root=None):
    """A data set as shards: its own if it is streamed, else slices of it."""
    from datasets import IterableDataset

    streamed = isinstance(data, IterableDataset)
    n = data.num_shards if streamed else max(1, -(-len(data) // PIECE))
    if n != len(names):
        names = [f"{names[0]}#{i}" for i in range(n)]
    return Tables([data.shard(n, i, contiguous=True) for i in range(n)], names, root)


def _found(paths, where):
    """Files behind paths, addresses and patterns, sorted; a remote folder's .tar or .parquet files."""
    from datasets.data_files import resolve_pattern

    files = []
    for path in paths:
        folder = os.path.isdir(path) or ("://" in path and not _is_pattern(path) and not Path(path).suffix)
        patterns = [f"{path.rstrip('/')}/*{suffix}" for suffix in (".tar", ".parquet")] if folder else [path]
        for pattern in patterns:
            try:
                files += resolve_pattern(pattern, os.getcwd())
                break
            except FileNotFoundError:
                continue
        else:
            raise ValueError(f"{where}: no files at {path}; {EXPECTED}")
    return sorted(files)


def _is_pattern(path):
    return any(sign in path for sign in "*?[")


def _in_one_line(error, where):
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.startswith("data.") else f"{where}: {line}"


def tar_members(file, position=0):
    """(name, start of its header, position after it, size) of each regular file of a tar from `position` on.

    The file is positioned at the member's data when it is yielded. Long names are read in GNU and pax format. Raises
    BrokenSample if the file is damaged or ends before its end mark, which `tarfile` would take for the end.
    """
    start, extended = position, {}
    while True:
        file.seek(position)
        block = file.read(BLOCK)
        if block == bytes(BLOCK):
            return
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
            size = int(extended.get("size", member.size))
            if not 0 <= size < MAX_SIZE:
                raise tarfile.HeaderError
            if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
                data = file.read(min(size, MAX_NAME))
                extended |= _pax(data) if member.type == tarfile.XHDTYPE else {"path": _text(data)}
        except (tarfile.HeaderError, ValueError) as error:
            raise BrokenSample("tar file cut short" if len(block) < BLOCK else "damaged tar file") from error
        after = position + BLOCK + -(-size // BLOCK) * BLOCK
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            yield extended.get("path", member.name), start, after, size
        position = after
        if member.type not in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            start, extended = after, {}


def _pax(data):
    """{"path": ..., "size": ...} from a pax header: records of the form "LENGTH KEY=VALUE\\n"."""
    records = {}
    while data:
        length = int(data.partition(b" ")[0])
        if length <= 0:
            raise ValueError("a record without length")
        key, _, value = data[:length].partition(b" ")[2].partition(b"=")
        records[key.decode()] = _text(value.removesuffix(b"\n"))
        data = data[length:]
    return {key: value for key, value in records.items() if key in ("path", "size")}


def _text(data):
    return data.rstrip(b"\0").decode("utf-8", "replace")
