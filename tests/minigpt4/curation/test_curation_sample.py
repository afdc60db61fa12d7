"""The draw: seeded, the same in any order, from folders and from shards; pictures that are broken, duplicate or gone."""

import io
import tarfile

import pytest
from curation import make_pictures

from minigpt4.curation.sample import read_picture, sample
from minigpt4.curation.store import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.sqlite", create=True) as store:
        yield store


def names(store):
    return {row["name"] for row in store.rows("SELECT name FROM pictures")}


def test_a_larger_draw_holds_the_smaller_and_another_seed_is_another_draw(tmp_path, store):
    folder = make_pictures(tmp_path / "pictures", 30)
    assert sample(store, folder, 10, seed=1).done == 10
    ten = names(store)
    assert sample(store, folder, 10, seed=1).already == 10 and names(store) == ten
    assert sample(store, folder, 15, seed=1).done == 5 and ten < names(store)
    with Store(tmp_path / "other.sqlite", create=True) as other:
        sample(other, folder, 10, seed=2)
        assert names(other) != ten


def test_broken_and_double_pictures_are_reported_and_left_out(tmp_path, store, capsys):
    folder = make_pictures(tmp_path / "pictures" / "deep", 3).parent
    (folder / "broken.jpg").write_bytes((folder / "deep" / "0000.png").read_bytes()[:100])
    (folder / "empty.png").write_bytes(b"")
    (folder / "copy.png").write_bytes((folder / "deep" / "0001.png").read_bytes())
    (folder / "notes.txt").write_text("no picture")
    report = sample(store, folder, 50)
    assert (report.done, report.failures, report.counts) == (3, 2, {"the same picture as another": 1})
    lines = capsys.readouterr().err
    assert "broken.jpg: damaged or truncated" in lines and "empty.png: the file is empty" in lines
    assert "fewer than the 50 asked for" in lines


def test_shards_are_drawn_from_and_their_pictures_kept(tmp_path, store):
    folder = make_pictures(tmp_path / "pictures", 8)
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05}.tar", "w") as tar:
            for path in sorted(folder.iterdir())[shard * 4 : shard * 4 + 4]:
                for suffix, data in {"png": path.read_bytes(), "txt": b"a caption"}.items():
                    member = tarfile.TarInfo(f"{path.stem}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    assert sample(store, str(tmp_path / "*.tar"), 5, seed=3).done == 5
    assert sample(store, str(tmp_path / "*.tar"), 5, seed=3).already == 5
    for shard in tmp_path.glob("*.tar"):
        shard.unlink()
    originals = {path.read_bytes() for path in folder.iterdir()}
    assert all(read_picture(store, row) in originals for row in store.rows("SELECT * FROM pictures"))


def test_a_picture_that_vanished_or_changed_is_named(tmp_path, store):
    folder = make_pictures(tmp_path / "pictures", 2)
    sample(store, folder, 2)
    first, second = store.rows("SELECT * FROM pictures ORDER BY name")
    (folder / "0000.png").unlink()
    (folder / "0001.png").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"0000\.png: the picture is gone"):
        read_picture(store, first)
    with pytest.raises(ValueError, match=r"0001\.png: not the picture that was sampled"):
        read_picture(store, second)


@pytest.mark.parametrize(("source", "message"), [("nowhere", "no such file or folder"), ("empty", "found nothing there")])
def test_a_source_without_pictures_is_named(tmp_path, store, source, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        sample(store, tmp_path / source, 5)
