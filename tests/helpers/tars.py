"""Pictures and tar files that the tests write."""

import io
import tarfile

import numpy as np
from PIL import Image


def jpeg(colour, size=(30, 20)):
    """A JPEG of one color (0 to 255), by which a test recognizes it."""
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
