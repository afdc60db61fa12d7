"""Small data sets on disk, in the forms that people have them."""

import json

import pytest
from tars import jpeg, write_tar


@pytest.fixture
def shards(tmp_path):
    """shards(5, 4): a folder of 5 tar files with 4 pictures each; the caption of each is its colour."""

    def write(n=5, samples=4, name="shards"):
        for shard in range(n):
            colours = {f"{shard:05}{key:04}": shard * samples + key for key in range(samples)}
            members = {
                key: {"jpg": jpeg(colour), "txt": f"Colour {colour}.".encode(), "json": json.dumps({"n": colour}).encode()}
                for key, colour in colours.items()
            }
            write_tar(tmp_path / name / f"{shard:05}.tar", members)
        return tmp_path / name

    return write
