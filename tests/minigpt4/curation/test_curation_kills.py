"""SIGKILL at random moments of every step, twenty times each: nothing recorded is lost, changed, or done again.

A step runs in a separate process, forked from one that has imported everything: a run takes a fraction of a second.
"""

import multiprocessing
import os
import random
import shutil
import sys
import time

import killed
import pytest
from curation import ChatServer, make_pictures, make_store
from datasets import load_dataset

from minigpt4.curation.judge import ORDERS, told
from minigpt4.curation.store import TABLES, Store

pytestmark = pytest.mark.slow

KILLS = 20
ROWS, PICTURES = 24, 200
ANSWERS = {
    "fix": lambda text: text.replace("The picture", "This picture"),
    "judge": lambda text: "A" if "ball" not in text.partition("Answer B")[0] else "B",
}
PREPARED = {
    "generate": ("sample",),
    "fix": ("sample", "generate"),
    "filter": ("sample", "generate", "fix"),
    "verify": ("sample", "generate", "fix", "filter"),
    "pairs": ("sample",),
    "judge": ("sample", "pairs"),
    "publish": ("sample", "generate", "fix", "filter", "verify"),
}


@pytest.fixture(scope="module")
def processes():
    """Forks from a server that has imported what the steps import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield context


def start(processes, step, folder, url):
    heard, told = processes.Pipe(duplex=False)
    process = processes.Process(target=killed.run_step, args=(step, str(folder), told, url))
    process.start()
    told.close()
    assert heard.recv() == "ready"
    return process, heard


def rows(folder, step):
    """{(table, picture): row} of what a step has recorded; the judge has a table for each order."""
    tables = [table for name, table in TABLES.items() if name.partition(" ")[0] == step]
    with Store(folder / "store.sqlite", create=step == "sample") as store:
        return {(table, row["picture"]): tuple(row) for table in tables for row in store.rows(f"SELECT * FROM {table}")}


def prepare(step, folder):
    if step == "sample":
        make_pictures(folder / "pictures", PICTURES)
        return
    with make_store(folder, ROWS, PREPARED[step]) as store:
        if "verify" in PREPARED[step]:
            decided = [
                {"picture": row["picture"], "decision": "accept", "text": row["text"]} for row in store.pending("verify")
            ]
            store.record("verify", store.run("verify", {}), decided)


def essence(found):
    """Rows without the run's number and the time."""
    return {picture: values[:-2] for picture, values in found.items()}


@pytest.mark.parametrize("step", [step for step in killed.STEPS if step != "publish"])
def test_a_killed_step_loses_nothing_and_repeats_nothing(step, processes, tmp_path):
    rng, original, folder = random.Random(step), tmp_path / "original", tmp_path / "trial"
    original.mkdir()
    prepare(step, original)
    with ChatServer() as server:
        server.behave = lambda text, nth: time.sleep(0.03) or ANSWERS.get(step, str)(text)

        def afresh():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(original, folder)
            if step == "sample":  # the store has the paths of its images
                shutil.rmtree(folder / "pictures")
                (folder / "pictures").symlink_to(original / "pictures")
            server.asked.clear()

        def whole():
            process, _ = start(processes, step, folder, server.url)
            begun = time.monotonic()
            process.join()
            return essence(rows(folder, step)), time.monotonic() - begun

        afresh()
        expected, seconds = whole()
        assert len(expected) == {"sample": PICTURES, "judge": 2 * ROWS}.get(step, ROWS)

        kills, middle, known = 0, 0, expected
        while kills < KILLS:
            if len(known) == len(expected):
                afresh()
                known, announced, done = {}, set(), set()
            process, heard = start(processes, step, folder, server.url)
            time.sleep(rng.uniform(0, 0.9) * seconds)
            process.kill()
            process.join()
            kills += process.exitcode == -9
            while server.at_once:
                time.sleep(0.01)
            asked, found = server.count(), rows(folder, step)
            assert {picture: found.get(picture) for picture in known} == known  # nothing lost, nothing changed
            assert essence(found).items() <= expected.items()
            announced |= heard_from(heard)
            assert announced <= {picture for _, picture in found}  # what a person saw as decided is decided
            assert all(asked[text] == n for text, n in done)  # nothing that was recorded is paid for again
            done = {(text, n) for text, n in asked.items() if text in paid(folder)}
            middle += len(known) < len(found) < len(expected)
            # A busy machine's pace changes: kill sooner after a run that had ended, later after one that had not begun.
            seconds *= 0.9 if process.exitcode == 0 else 1.1 if len(found) == len(known) else 1
            known = found
        assert whole()[0] == expected
        assert all(server.count()[text] == n for text, n in done)
        assert middle >= 3, f"only {middle} of {KILLS} kills hit the middle of the work"


def heard_from(pipe):
    """Everything that a killed process had reported."""
    told = set()
    try:
        while pipe.poll():
            told.add(pipe.recv())
    except EOFError:
        pass
    return told


def paid(folder):
    """The texts whose answers are recorded, as they were sent."""
    with Store(folder / "store.sqlite") as store:
        texts = {row["text"] for row in store.rows("SELECT answers.text FROM fixes JOIN answers USING (picture)")}
        for step, order in ORDERS.items():
            texts |= {told(row, order) for row in store.rows(f"SELECT * FROM pairs JOIN {TABLES[step]} USING (picture)")}
    return texts


def test_a_killed_publication_is_whole_or_not_there(processes, tmp_path):
    rng = random.Random(0)
    prepare("publish", tmp_path)
    process, _ = start(processes, "publish", tmp_path, "")
    begun = time.monotonic()
    process.join()
    seconds, kills = time.monotonic() - begun, 0
    expected = sorted(path.name for path in (tmp_path / "set").rglob("*"))
    while kills < KILLS:
        process, _ = start(processes, "publish", tmp_path, "")
        time.sleep(rng.uniform(0, 1) * seconds)
        process.kill()
        process.join()
        kills += process.exitcode == -9
        if (tmp_path / "set").exists():
            assert sorted(path.name for path in (tmp_path / "set").rglob("*")) == expected
    start(processes, "publish", tmp_path, "")[0].join()
    splits = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert sum(len(split) for split in splits.values()) == ROWS
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
