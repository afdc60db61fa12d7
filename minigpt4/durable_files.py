"""Files and folders that exist whole or not at all: written aside, brought to the disk, renamed."""

import contextlib
import json
import os
import shutil
from pathlib import Path


@contextlib.contextmanager
def file_in_place(path):
    """A path to write a file to, which at the end takes the place of `path`; on an error it goes.

    A reader finds the old content or the new one, never half of it. The folders above are made.
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
    """A fresh folder to fill. At the end it is safe on the disk and takes the place of `directory`; on an error it goes.

    What a process that was killed in here left behind is put right first.
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
    """Writes a value as JSON in the same way."""
    write_bytes(path, json.dumps(value, indent=2).encode())


def append_lines(path, values):
    """Adds values to a file of JSON lines, one each; they are on the disk when this returns. The folders above are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder):
    """Brings a folder and all below it to the disk."""
    for path in [*Path(folder).rglob("*"), Path(folder)]:
        sync(path)


def sync(path):
    """Brings a file, or the names in a folder, to the disk; not every system lets a folder be opened."""
    if os.name != "posix" and Path(path).is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
