"""Files and folders that are written completely or not at all: written to a scratch place, synced, then renamed."""

import contextlib
import json
import os
import shutil
from pathlib import Path


@contextlib.contextmanager
def file_in_place(path):
    """A path to write a file to, which then replaces `path`; on an error it is removed.

    A reader sees the old content or the new one, never a partial one. Parent folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    try:
        yield scratch
        sync(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_in_place(directory):
    """A new folder to fill, which is then synced to disk and replaces `directory`; on an error it is removed.

    First cleans up after a process that was killed in here.
    """
    directory = Path(directory)
    scratch, before = (directory.with_name(f".{directory.name}.{kind}") for kind in ("part", "before"))
    directory.parent.mkdir(parents=True, exist_ok=True)
    if before.exists() and not directory.exists():
        before.rename(directory)
    for left in (scratch, before):
        shutil.rmtree(left, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
        sync_folder(scratch)
        if directory.exists():
            directory.rename(before)
        scratch.rename(directory)
        sync(directory.parent)
    finally:
        if before.exists() and not directory.exists():
            before.rename(directory)
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def write_bytes(path, data):
    """Writes a file as `file_in_place` does."""
    with file_in_place(path) as scratch:
        scratch.write_bytes(data)


def write_json(path, value):
    """Writes a value as JSON, likewise."""
    write_bytes(path, json.dumps(value, indent=2).encode())


def append_lines(path, values):
    """Appends values to a JSON Lines file; they are synced to disk on return. Parent folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder):
    """Syncs a folder and everything in it to disk."""
    for path in [*Path(folder).rglob("*"), Path(folder)]:
        sync(path)


def sync(path):
    """Syncs a file, or a folder's entries, to disk; not every system allows opening a folder."""
    if os.name != "posix" and Path(path).is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
