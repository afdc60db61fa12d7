"""From images to `pixel_values`: MiniGPT4ImageProcessor, and `load_image` for any kind of user input.

Follows the original's evaluation transform: resize to the vision tower's size without cropping, scale, normalise. The
resampling and the colours are those that the tower was trained on: bicubic and CLIP's for the original, and for any other
tower those of its repository (see for_model.py). Nothing is ever cropped: a text may mention what is at the edge.
PIL only: torchvision's resize differs by a uint8 level, and it has no CPU build on PyPI.
"""

import base64
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

# An image with more pixels is refused before it is decoded: 64 Mpx are 192 MB of RGB.
MAX_PIXELS = 64_000_000


class MiniGPT4ImageProcessor(PilBackend):
    """PIL images, arrays or tensors -> `pixel_values` float32 [images, 3, size, size].

    The defaults are the original's (EVA-CLIP: 224 pixels, CLIP statistics); for any tower see `image_processor_for`.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_center_crop = False
    do_pad = False
    model_input_names = ["pixel_values"]

    def fetch_images(self, image_url_or_urls):
        """Reads whatever `load_image` reads, also in nested lists; URLs are refused (see `load_image`)."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, str | bytes | os.PathLike | Image.Image):
            return load_image(image_url_or_urls)
        return image_url_or_urls

    @staticmethod
    def load_image(source):
        """One image (a path, bytes, a data URL or PIL) as RGB; the same as this module's function `load_image`."""
        return load_image(source)

    def convert_to_rgb(self, image, **kwargs):
        """PIL image of any mode -> uint8 [H, W, 3]; arrays pass through transformers' own conversion."""
        if isinstance(image, Image.Image):
            return np.array(to_rgb(image))
        return super().convert_to_rgb(image, **kwargs)


def load_image(source, smallest=None):
    """Opens an image and returns it as RGB, as a viewer would show it.

    Args:
        source: path, bytes, PIL image, or a URL "data:image/...;base64,...". EXIF rotation is applied, transparency
            becomes white, 16 bits are scaled to 8; of an animation, the first frame is used.
        smallest: pixels; a JPEG may be scaled down to a half, quarter or eighth while it is decoded, as long as both
            sides keep this many.

    Raises:
        ValueError: one line that names the file and what is wrong with it: missing, empty, not an image, truncated,
            larger than `MAX_PIXELS`, or another URL (nothing is downloaded here).
    """
    if isinstance(source, str) and source.startswith("data:"):
        source = _read_data_url(source)
    if not isinstance(source, str | bytes | os.PathLike | Image.Image):
        raise ValueError(f"a picture is a {type(source).__name__}; expected a path, bytes or a PIL picture")
    if isinstance(source, Image.Image):
        name, data = getattr(source, "filename", "") or "the picture", b""
    else:
        name = "the picture" if isinstance(source, bytes) else str(source)
        data = source if isinstance(source, bytes) else _read_file(name)
        if not data:
            raise ValueError(f"{name}: the file is empty (0 bytes); expected a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower limit follows
            image = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        if smallest and data:
            image.draft(None, (smallest, smallest))
        return to_rgb(image)
    except Image.DecompressionBombError as error:
        limit = f"the limit is {MAX_PIXELS // 1_000_000} megapixels"
        raise ValueError(f"{name}: too large ({_first_line(error)}); {limit}, scale it down first") from error
    except UnidentifiedImageError as error:
        if data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif", b"msf"):
            raise ValueError(f"{name}: a HEIC picture, which cannot be read here; save it as JPEG or PNG") from error
        raise ValueError(f"{name}: not a picture that can be read; expected JPEG, PNG or the like") from error
    except Exception as error:  # each decoder fails in its own way: OSError, SyntaxError, RuntimeError, ...
        raise ValueError(f"{name}: damaged or truncated ({_first_line(error)})") from error


def to_rgb(image):
    """PIL image of any mode -> RGB as a viewer shows it: first frame, upright, on white, 8 bits."""
    if getattr(image, "is_animated", False):
        image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image)
    return image if image.mode == "RGB" else image.convert("RGB")  # exif_transpose made a copy already


def _to_8_bits(image):
    """16-bit, integer or float gray -> 8-bit gray."""
    values = np.asarray(image, dtype=np.float64)
    brightest = values.max()
    if image.mode.startswith("I;16") or (image.mode == "I" and 255 < brightest <= 65535):
        values = values / 257  # the whole range of 16 bits: 65535 becomes 255
    elif brightest > 255:
        values = values * (255 / brightest)
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _read_file(path):
    if path.startswith(("http://", "https://")):
        raise ValueError(f"{path[:80]}: pictures are read from files; download it first and pass its path")
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected the path of a picture") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def _read_data_url(address):
    """ "data:image/png;base64,..." -> bytes."""
    kind, comma, encoded = address.partition(",")
    if not comma or not kind.endswith(";base64"):
        raise ValueError(f"{address[:40]}...: expected a picture as data:image/...;base64,...")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise ValueError(f"{address[:40]}...: not valid base64 ({_first_line(error)})") from error


def _first_line(error):
    return str(error).splitlines()[0] if str(error) else type(error).__name__
