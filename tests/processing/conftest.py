"""Small data sets on disk, in the forms that people have them."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image


def jpeg(colour, size=(30, 20)):
    """A JPEG of one colour (0 to 255), by which a test knows it again."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), colour, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path, samples, form=tarfile.PAX_FORMAT):
    """samples: {key: {suffix: bytes}}; as webdataset writes them, with fractions of seconds and so with pax headers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for key, members in samples.items():
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size, info.mtime = len(data), 1.5
                tar.addfile(info, io.BytesIO(data))
    return path


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
