"""`minigpt4 data check`: what is in a folder, and what would stop a training."""

import pytest
from tars import jpeg, write_tar

from minigpt4.cli import main
from minigpt4.configuration.recipe import SourceSection
from minigpt4.training.data_check import check


@pytest.fixture
def folder(tmp_path):
    """Two shards with ten good samples each, and one cut image, one empty text and one file that is no image."""
    for shard in range(2):
        good = {f"{shard}{i}": {"jpg": jpeg(i, (300, 400)), "txt": b"a b c" + b" d" * i} for i in range(10)}
        bad = {
            "x": {"jpg": jpeg(1)[:-200], "txt": b"cut"},
            "y": {"jpg": jpeg(1), "txt": b" "},
            "z": {"jpg": b"?", "txt": b"no"},
        }
        write_tar(tmp_path / "data" / f"{shard}.tar", good | (bad if shard else {}))
    return tmp_path / "data"


def test_faults_are_counted_by_kind_and_stop_in_one_line(folder, capsys):
    assert main(["data", "check", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert "23 in 2 shards" in out and "  empty text                    1 (4.35%)" in out and "3 to 12, median 7.5" in out
    assert "damaged or truncated picture" in out and "not a picture" in out and "images/s on one core" in out
    assert err.startswith("minigpt4 data: 3 of 23 samples cannot be used") and err.count("\n") == 1


def test_some_samples_come_from_every_shard(folder):
    found = check(SourceSection(path=str(folder)), limit=6)
    assert found.dropped.used == 6 and not found.whole and len(found.sides) == 6
    assert sorted(found.words) == [3, 3, 4, 4, 5, 5]
    assert check(SourceSection(path=str(folder)), limit=100).whole


def test_workers_follow_from_the_decoder(folder):
    found = check(SourceSection(path=str(folder)))
    found.seconds = len(found.sides) / 40  # 40 images a second
    assert [found.workers(eats) for eats in (200, 30, 41)] == [5, 1, 2]


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--samples=0"], "--samples is 0; expected 1 or more"), (["--text-column=x"], "no column 'x' (data.text_column)")],
)
def test_bad_input_is_one_line(more, message, folder, capsys):
    assert main(["data", "check", str(folder), *more]) == 2
    assert message in capsys.readouterr().err
