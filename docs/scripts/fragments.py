"""Parts of README and docs that a script writes: what is between two comments, and the output under a command."""

import re
from pathlib import Path

from minigpt4.durable_files import write_bytes

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OUTPUT = re.compile(r"(?<=^<!-- output of: )([^\n]*)( -->\n```text\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)


def replace(path, name, text):
    """Puts text between `<!-- name -->` and `<!-- /name -->` of a file, which raises ValueError where they are not."""
    before = path.read_text("utf-8")
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if start not in before or end not in before:
        raise ValueError(f"{path}: expected the comments {start.strip()} and {end}")
    head, rest = before.split(start, 1)
    write_bytes(path, f"{head}{start}{text.strip()}\n{end}{rest.split(end, 1)[1]}".encode())


def refresh_outputs(path, output_of):
    """Rewrites each block of a page under `<!-- output of: COMMAND -->`.

    Args:
        output_of: function command -> its output, or None to leave the block.
    """

    def written(found):
        command, between, old = found.groups()
        new = output_of(command)
        return command + between + (old if new is None else new.strip("\n") + "\n")

    before = path.read_text("utf-8")
    after = OUTPUT.sub(written, before)
    if after != before:
        write_bytes(path, after.encode())
