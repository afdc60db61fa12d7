"""Sources: every form of data is recognized by its files, read from any position on, and reported when it is damaged."""

import io
import itertools
import json
import random
import shutil
import tarfile

import fsspec
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from tars import jpeg, write_tar

from minigpt4.configuration.recipe import SourceSection
from minigpt4.processing.data.samples import BrokenSample, content, decode
from minigpt4.processing.data.sources import open_source, tar_members

COLOURS = {f"colour {colour}": colour for colour in range(0, 240, 40)}


def _pictures(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS.values():
        (folder / f"{colour}.jpg").write_bytes(jpeg(colour))
    return folder


def _tar(path):
    members = [{"jpg": jpeg(colour), "txt": text.encode()} for text, colour in COLOURS.items()]
    write_tar(path / "0.tar", {str(i): members[i] for i in range(3)})
    write_tar(path / "1.tar", {str(i): members[i] for i in range(3, 6)})


def _cc_sbu(path):
    _pictures(path / "image")
    annotations = [{"image_id": str(colour), "caption": text} for text, colour in COLOURS.items()]
    (path / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))


def _jsonl(path):
    _pictures(path)
    rows = [{"file_name": f"{colour}.jpg", "text": text} for text, colour in COLOURS.items()]
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "other.csv").write_text("x\n1\n")  # metadata goes first


def _csv(path):
    _pictures(path / "pictures")
    lines = [f"pictures/{colour}.jpg,{text}\n" for text, colour in COLOURS.items()]
    (path / "mine.csv").write_text("path,caption\n" + "".join(lines))


def _table():
    features = Features({"image": ImageFeature(), "caption": Value("string")})
    images = [{"bytes": jpeg(colour), "path": None} for colour in COLOURS.values()]
    return Dataset.from_dict({"image": images, "caption": list(COLOURS)}, features=features)


def _parquet(path):
    (path / "data").mkdir(parents=True)
    _table().select(range(2)).to_parquet(str(path / "data" / "0.parquet"))
    _table().select(range(2, 6)).to_parquet(str(path / "data" / "1.parquet"))


def _saved(path):
    _table().save_to_disk(str(path))


def _saved_splits(path):
    DatasetDict({"test": _table().select([0]), "train": _table()}).save_to_disk(str(path))


def _seen(source):
    """{text: grey value} of everything in a source."""
    seen = {}
    for shard in range(len(source.shards)):
        for sample in source.read(shard):
            found = content(source.parse(sample), SourceSection(), source.root)
            seen[found.captions[0]] = decode(found.pictures[0]).getpixel((5, 5))[0]
    return seen


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("write", [_tar, _cc_sbu, _jsonl, _csv, _parquet, _saved, _saved_splits])
def test_data_are_found_by_what_is_there(write, streaming, tmp_path):
    write(tmp_path / "data")
    source = open_source(SourceSection(path=str(tmp_path / "data")), streaming)
    assert _seen(source) == pytest.approx(COLOURS, abs=2)


def test_files_patterns_lists_and_addresses(tmp_path):
    _tar(tmp_path)
    _csv(tmp_path / "own")
    remote = fsspec.filesystem("memory")
    for name in ("0.tar", "1.tar"):
        remote.pipe(f"/bucket/{name}", (tmp_path / name).read_bytes())
    both = [str(tmp_path / "0.tar"), str(tmp_path / "1.tar")]
    for path in (str(tmp_path / "*.tar"), both, "memory://bucket/*.tar", "memory://bucket", str(tmp_path / "own/mine.csv")):
        assert _seen(open_source(SourceSection(path=path), streaming=True)) == pytest.approx(COLOURS, abs=2)
    assert len(_seen(open_source(SourceSection(path=both[0]), streaming=True))) == 3


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_tar_shards_hold_other_pictures_too(suffix, tmp_path):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (40, 40, 40)).save(buffer, suffix)
    write_tar(tmp_path / "0.tar", {"a": {suffix: buffer.getvalue(), "json": b'{"captions": ["one", "two"], "n": 3}'}})
    source = open_source(SourceSection(path=str(tmp_path)), streaming=True)
    [sample] = source.read(0)
    assert content(source.parse(sample), SourceSection()).captions == ["one", "two"]


@pytest.mark.parametrize("write", [_tar, _jsonl, _parquet, _saved])
def test_reading_goes_on_from_any_place_and_shares_are_disjoint(write, tmp_path):
    write(tmp_path / "data")
    source = open_source(SourceSection(path=str(tmp_path / "data")), streaming=True)
    for shard in range(len(source.shards)):
        whole = list(source.read(shard))
        assert [sample.index for sample in whole] == list(range(len(whole)))
        for before, sample in enumerate(whole, 1):
            assert list(source.read(shard, *sample.after)) == whole[before:]
        shares = [list(source.read(shard, every=2, offset=offset)) for offset in (0, 1)]
        assert shares == [whole[::2], whole[1::2]]
        assert list(source.read(shard, *whole[0].after, every=2, offset=0)) == whole[2::2]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_members_are_those_that_tarfile_finds(form, tmp_path):
    names = ["a/b", "x" * 150, "é" * 60]
    path = write_tar(tmp_path / "0.tar", {name: {"txt": name.encode() * 7} for name in names}, form)
    with tarfile.open(path) as tar, open(path, "rb") as file:
        expected = [(member.name, member.offset, member.offset_data, member.size) for member in tar]
        assert [(name, start, file.tell(), size) for name, start, _, size in tar_members(file)] == expected


def test_wherever_a_tar_is_cut_it_says_so_and_keeps_what_is_whole(tmp_path):
    samples = {str(i): {"jpg": jpeg(i * 9), "txt": b"text %d" % i} for i in range(3)}
    data = write_tar(tmp_path / "0.tar", samples, tarfile.USTAR_FORMAT).read_bytes()
    source = open_source(SourceSection(path=str(tmp_path / "0.tar")), streaming=True)
    whole = list(source.read(0))
    end = whole[-1].after[0]
    for cut in [*random.Random(0).sample(range(1, end), 60), 512, whole[0].after[0], end]:
        (tmp_path / "0.tar").write_bytes(data[:cut])
        *kept, last = source.read(0)
        assert last.broken == "tar file cut short" and last.after[0] is None
        # A sample is known to be whole when the header of the next one is there.
        assert kept == whole[: len(kept)] and cut < whole[len(kept)].after[0] + 512
        assert not list(source.read(0, *last.after))
        # Two readers report it once between them.
        halves = [list(source.read(0, every=2, offset=offset)) for offset in (0, 1)]
        assert [bool(sample.broken) for half in halves for sample in half].count(True) == 1


def test_hostile_tar_headers_end_a_shard(tmp_path):
    data = bytearray(write_tar(tmp_path / "0.tar", {"a": {"txt": b"x"}}, tarfile.GNU_FORMAT).read_bytes())
    for size in (b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0"):
        data[124:136] = size
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        with pytest.raises(BrokenSample, match=r"damaged|cut short"):
            list(tar_members(io.BytesIO(data)))
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.XHDTYPE, 9
    for records in (b"0 path=a\n", b"-5 path=a", b"x\n\n\n\n\n\n\n\n"):
        with pytest.raises(BrokenSample, match="damaged"):
            list(tar_members(io.BytesIO(long.tobuf() + records.ljust(512, b"\0"))))


@pytest.mark.parametrize("value", ["../secret.jpg", "/etc/hostname", "http://127.0.0.1/x.jpg", "a/../../secret.jpg"])
def test_tables_reach_no_picture_outside_of_their_folder(value, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.csv").write_text(f"file_name,text\n{value},hello\n")
    source = open_source(SourceSection(path=str(tmp_path / "data")), streaming=True)
    [sample] = source.read(0)
    with pytest.raises(BrokenSample, match=r"outside of the data's folder|missing picture"):
        content(source.parse(sample), SourceSection(), source.root)


def test_a_damaged_table_says_so_once(tmp_path):
    _jsonl(tmp_path / "data")
    path = tmp_path / "data" / "metadata.jsonl"
    source = open_source(SourceSection(path=str(path)), streaming=True)
    path.write_text(path.read_text()[:-9])
    *_, last = source.read(0)
    assert last.broken == "damaged table" and not list(source.read(0, *last.after))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A folder of good and bad data."""
    folder = tmp_path_factory.mktemp("several")
    for name, write in {"own": _csv, "parquet": _parquet, "saved": _saved_splits, "pictures": _pictures}.items():
        write(folder / name)
    for name in ("empty", "two", "cc", "other"):
        (folder / name).mkdir()
    (folder / "other" / "x.csv").write_text("a,b\n1,2\n")
    for name in "ab":
        shutil.copy(folder / "own" / "mine.csv", folder / "two" / f"{name}.csv")
    (folder / "cc" / "filter_cap.json").write_text('{"annotations": {"a": 1}}')
    for suffix in ("tar", "parquet"):
        (folder / f"bad.{suffix}").write_bytes(b"nothing of the kind" * 50)
    return folder


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "DATA/none"}, "DATA/none: no such file or folder; expected .tar shards"),
        ({"path": "DATA/pictures/*.tar"}, r"no files at DATA/pictures/\*.tar"),
        ({"path": "DATA/empty"}, "found nothing there; expected"),
        ({"path": "DATA/pictures"}, "found 0.jpg, .* there; expected"),
        ({"path": ["DATA/own/mine.csv", "DATA/parquet/data/0.parquet"]}, "files of kind .csv, .parquet; expected one of"),
        ({"path": "DATA/own", "text_column": "captoin"}, r"no column 'captoin' \(data.text_column\); found caption, path"),
        ({"path": "DATA/parquet", "image_column": "img"}, r"no column 'img' \(data.image_column\); found caption, image"),
        ({"path": "DATA/other"}, "no column image, .*; found a, b; set data.image_column"),
        ({"path": "DATA/two"}, r"2 tables \(a.csv, b.csv\); expected one"),
        ({"path": "DATA/cc"}, "filter_cap.json is not like the original's; expected"),
        ({"path": "DATA/saved", "split": "validation"}, r"no split 'validation' \(data.split\); found test, train"),
        ({"path": "DATA/bad.tar"}, "no sample can be read .damaged tar file."),
        ({"path": "DATA/bad.parquet"}, "data.path DATA/bad.parquet.*: Parquet magic bytes not found"),
    ],
)
def test_a_bad_path_or_column_is_one_line(options, message, streaming, several):
    paths = [options["path"]] if isinstance(options["path"], str) else options["path"]
    paths = [path.replace("DATA", str(several)) for path in paths]
    options = {**options, "path": paths[0] if len(paths) == 1 else paths}
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        open_source(SourceSection(**options), streaming)
    assert error.match(".*" + message.replace("DATA", str(several)))


def test_the_columns_are_those_of_the_first_samples_together(tmp_path):
    first = {"a": {"jpg": jpeg(1)}, "b": {"txt": b"alone"}, "c": {"jpg": jpeg(2), "txt": b"both"}}
    write_tar(tmp_path / "0.tar", first)
    assert open_source(SourceSection(path=str(tmp_path)), streaming=True).columns == {"image", "text"}
    assert list(itertools.islice(first, 1)) == ["a"]


def test_a_tar_member_beyond_the_limit_is_not_read_and_spoils_its_sample_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("minigpt4.processing.data.sources.MAX_BYTES", 2000)
    members = {key: {"jpg": jpeg(9), "txt": b"fine"} for key in "abc"}
    members["b"]["jpg"] = bytes(2001)
    write_tar(tmp_path / "0.tar", members)
    source = open_source(SourceSection(path=str(tmp_path)), streaming=True)
    assert [(sample.key, sample.broken) for sample in source.read(0)] == [("a", None), ("b", "file over 0 MB"), ("c", None)]


@pytest.mark.parametrize("streaming", [False, True])
def test_llavas_data_are_one_list_beside_the_pictures(streaming, tmp_path):
    _pictures(tmp_path)
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A colour."}]
    rows = [{"id": str(i), "image": f"{colour}.jpg", "conversations": turns} for i, colour in enumerate(COLOURS.values())]
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    for path in (tmp_path, tmp_path / "llava.json"):
        source = open_source(SourceSection(path=str(path)), streaming)
        found = [content(source.parse(sample), SourceSection(), source.root) for sample in source.read(0)]
        assert len(found) == len(COLOURS) and all(of_one.messages[1]["role"] == "assistant" for of_one in found)
        assert found[0].messages[0]["content"][0] == {"type": "image"}
