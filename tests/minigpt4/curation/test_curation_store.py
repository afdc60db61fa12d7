"""The curation store: resuming, migration, and what can go wrong with a file."""

import os
import sqlite3
import stat

import pytest
from curation import make_store

from minigpt4.curation import store as module
from minigpt4.curation.store import MIGRATIONS, Store


def test_pending_is_what_the_step_before_did_and_this_one_did_not(tmp_path):
    with make_store(tmp_path, 300) as store:  # more than is read at a time
        run = store.run("fix", {})
        waiting = [row["picture"] for row in store.pending("fix")]
        assert waiting == sorted(waiting) and len(set(waiting)) == 300 == store.pending_count("fix")
        done = [
            {
                "picture": p,
                "answer": "x",
                "text": "x",
                "problem": None,
                "diff": "[]",
                "prompt_tokens": 1,
                "completion_tokens": 1,
            }
            for p in waiting[::2]
        ]
        assert store.record("fix", run, done) == 150
        assert store.record("fix", run, [{**done[0], "text": "another"}]) == 0  # no step overwrites
        assert [row["picture"] for row in store.pending("fix")] == waiting[1::2]
        assert store.value("SELECT text FROM fixes WHERE picture = ?", waiting[0]) == "x"


def test_rows_recorded_while_pending_is_read_do_not_disturb_it(tmp_path):
    with make_store(tmp_path, 10, ("sample",)) as store:
        run, seen = store.run("generate", {}), []
        for row in store.pending("generate"):
            seen.append(row["picture"])
            store.record("generate", run, [{"picture": row["picture"], "first": "a", "text": "a"}])
        assert len(seen) == 10 and store.pending_count("generate") == 0


def test_the_same_settings_are_the_same_run(tmp_path):
    with make_store(tmp_path, 1) as store:
        assert store.run("fix", {"a": 1, "b": 2}) == store.run("fix", {"b": 2, "a": 1}) != store.run("fix", {"a": 1})


def test_a_row_deleted_by_hand_is_done_again_and_nothing_else(tmp_path):
    with make_store(tmp_path, 5, ("sample", "generate", "fix")) as store:
        hand = sqlite3.connect(store.path)
        [(picture,)] = hand.execute("SELECT picture FROM fixes LIMIT 1").fetchall()
        hand.execute("DELETE FROM fixes WHERE picture = ?", (picture,))
        hand.commit()
        assert [row["picture"] for row in store.pending("fix")] == [picture]
        hand.execute("DELETE FROM pictures WHERE picture = ?", (picture,))  # its answer stays behind, and harms nothing
        hand.commit()
        assert not list(store.pending("fix")) and store.pending_count("fix") == 0


def test_an_older_store_is_brought_up_to_date_with_its_rows(tmp_path):
    path = tmp_path / "old.sqlite"
    old = sqlite3.connect(path)
    for statement in MIGRATIONS[0]:
        old.execute(statement)
    old.execute(f"PRAGMA application_id = {module.APPLICATION_ID}")
    old.execute("PRAGMA user_version = 1")
    old.execute("INSERT INTO pictures VALUES ('aa', 'a.png', '/a.png', 1, 'now')")
    old.execute("INSERT INTO answers VALUES ('aa', 'first', NULL, 'first', 1, 'now')")
    old.commit()
    old.close()
    with Store(path) as store:
        assert [tuple(row)[:3] for row in store.pending("fix")] == [("aa", "/a.png", "first")]
        assert store.value("PRAGMA user_version".replace("PRAGMA ", "SELECT * FROM pragma_")) == len(MIGRATIONS)
    with Store(path) as store:
        assert store.count("generate") == 1


def test_other_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such curation store"):
        Store(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("hello, this is no database at all" * 50)
    with pytest.raises(ValueError, match="not a curation store"):
        Store(tmp_path / "text.sqlite")
    foreign = sqlite3.connect(tmp_path / "foreign.sqlite")
    foreign.execute("CREATE TABLE t (a)")
    foreign.close()
    with pytest.raises(ValueError, match="but not a curation store"):
        Store(tmp_path / "foreign.sqlite")
    with make_store(tmp_path, 1) as store, store.transaction() as execute:
        execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="version 99, this program knows up to 3"):
        Store(tmp_path / "store.sqlite")


def test_a_step_runs_once_at_a_time(tmp_path):
    with make_store(tmp_path, 1) as store, Store(store.path) as other, store.only_one("fix"):
        with pytest.raises(ValueError, match="another process is running fix"), other.only_one("fix"):
            pass
        with other.only_one("filter"):
            pass


def test_a_full_disk_keeps_what_was_recorded(tmp_path):
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"):
        pytest.skip("needs root, to mount a small disk")
    try:
        with make_store(tmp_path, 3, ("sample",)) as store:
            run = store.run("generate", {})
            pictures = [row["picture"] for row in store.pending("generate")]
            store.record("generate", run, [{"picture": pictures[0], "first": "kept", "text": "kept"}])
            with pytest.raises(OSError, match="full"):
                store.record("generate", run, [{"picture": p, "first": "x" * 600_000, "text": "x"} for p in pictures[1:]])
        with Store(store.path) as store:
            assert [row["text"] for row in store.rows("SELECT text FROM answers")] == ["kept"]
            store.record("generate", run, [{"picture": pictures[1], "first": "small", "text": "small"}])
    finally:
        os.system(f"umount -l {tmp_path}")


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    if os.geteuid() == 0 and os.system(f"mount -t tmpfs -o size=2m tmpfs {tmp_path}"):
        pytest.skip("root writes everywhere, and cannot mount here")
    try:
        with make_store(tmp_path, 2, ("sample",)):
            pass
        if os.geteuid() == 0:
            os.system(f"mount -o remount,ro {tmp_path}")
        for path in (tmp_path / "store.sqlite", tmp_path):
            path.chmod(path.stat().st_mode & ~stat.S_IWUSR) if os.geteuid() else None
        with (
            pytest.raises(OSError, match=r"store\.sqlite: .*(readonly|unable to open)"),
            Store(tmp_path / "store.sqlite") as store,
        ):
            store.record("generate", store.run("generate", {}), [])
    finally:
        os.system(f"umount -l {tmp_path} 2>/dev/null") if os.geteuid() == 0 else tmp_path.chmod(0o755)
