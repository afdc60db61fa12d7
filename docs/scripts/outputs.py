"""python docs/scripts/outputs.py [WORD]: runs the commands whose output README and docs show, and updates it there.

A block under `<!-- output of: COMMAND -->` is such an output. With WORD only commands that contain it run. What takes half
an hour is read from the file that its run wrote. Commands run in a folder with photo.jpg (scikit-image's coffee, CC0) and
the files of working_folder.py.
"""

import contextlib
import io
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

from fragments import PAGES, ROOT, refresh_outputs
from working_folder import link_originals

from minigpt4.cli import main as minigpt4
from minigpt4.cli.quickstart import told
from minigpt4.processing.data.photographs import photograph


def main(word):
    """Runs, each command once, and writes."""
    outputs = {}

    def output_of(command):
        if word not in command:
            return None
        if command not in outputs:
            outputs[command] = _recorded(command) or _output(command)
        return outputs[command]

    with tempfile.TemporaryDirectory() as folder:
        photograph("coffee").save(Path(folder) / "photo.jpg")
        link_originals(folder)
        os.chdir(folder)
        for page in PAGES:
            refresh_outputs(page, output_of)


def _recorded(command):
    if command != "make quickstart":
        return None
    return told(json.loads((ROOT / "benchmarks/results/quickstart.json").read_text("utf-8"))["runs"][0])


def _output(command):
    """What a command of ours prints to stdout."""
    arguments = shlex.split(command)
    if arguments[0] != "minigpt4":
        raise ValueError(f"{command}: only commands of minigpt4 are run")
    print(command, file=sys.stderr)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if minigpt4(arguments[1:]):
            raise ValueError(f"{command}: failed")
    return printed.getvalue()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
