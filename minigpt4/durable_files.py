"""Files that exist whole or not at all: written aside, synced, renamed."""

import json
import os
from pathlib import Path


def write_bytes(path, data):
    """Writes a file, and the folders above it; a reader finds the old content or the new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    with open(scratch, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def write_json(path, value):
    """Writes a value as JSON in the same way."""
    write_bytes(path, json.dumps(value, indent=2).encode())


def append_line(path, value):
    """Adds a value to a file of JSON lines, on the disk when this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def sync_files(folder):
    """Brings every file below a folder to the disk."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
