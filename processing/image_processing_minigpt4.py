"""Pictures to `pixel_values`: MiniGPT4ImageProcessor, and `load_image` for everything a person may hand over.

Follows the original's evaluation transform: resize to the vision tower's size without cropping, scale, normalise. The
resampling and the colours are those that the tower was trained on: for the original's bicubic and CLIP's, for any other what
its repository says (`for_tower`). Nothing is cropped, whatever that says: a text may speak of what is at the edge.
PIL only: torchvision's resize differs by a uint8 level, and has no CPU build on PyPI.
"""

import base64
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    PILImageResampling,
)
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
    get_image_processor_config,
)

# A picture beyond this many pixels is refused before it is decoded: 64 Mpx are 192 MB of RGB.
MAX_PIXELS = 64_000_000

# What a preprocessor_config.json says that is followed here, and what changes pixels in a way that is not.
_FOLLOWED = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
_NOT_FOLLOWED = ("rescale_offset", "include_top", "do_flip_channel_order")
# DINO's published files say these. transformers' own defaults for it are CLIP's, or want torchvision, or are not there.
_IMAGENET = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
_DINO = {
    "dinov2": {**_IMAGENET, "resample": PILImageResampling.BICUBIC},
    "dinov2_with_registers": {**_IMAGENET, "resample": PILImageResampling.BICUBIC},
    "dinov3_vit": {**_IMAGENET, "resample": PILImageResampling.BILINEAR},
    "dinov3_convnext": {**_IMAGENET, "resample": PILImageResampling.BILINEAR},
}


class MiniGPT4ImageProcessor(PilBackend):
    """PIL pictures, arrays or tensors -> `pixel_values` float32 [images, 3, size, size].

    The defaults are the original's (EVA-CLIP: 224 pixels, CLIP statistics); `for_tower` has those of any other tower.
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

    @classmethod
    def for_tower(cls, vision_config, repo=None, **hub):
        """The image processor of a vision tower: its size, and the resampling and colours that it was trained on.

        Args:
            vision_config: the tower's config, with an `image_size`.
            repo: a folder or Hub id whose preprocessor_config.json tells the rest; without it, or without that file, it
                is what transformers has for the tower's family.
            hub: revision, token, cache_dir, local_files_only.

        Raises:
            ValueError: the file asks for something that is not followed here, or nothing is known of the family.
            OSError: the repository cannot be reached.
        """
        said = get_image_processor_config(repo, **hub) if repo else {}
        if changed := [name for name in _NOT_FOLLOWED if said.get(name)]:
            raise ValueError(f"{repo}: its preprocessor_config.json sets {changed[0]}, which is not followed here")
        fields = {name: said[name] for name in _FOLLOWED if said.get(name) is not None}
        if not {"image_mean", "image_std"} <= fields.keys() and fields.get("do_normalize", True):
            fields = {**_of_family(vision_config.model_type), **fields}
        size = vision_config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return cls(size={"height": height, "width": width}, **fields)

    def fetch_images(self, image_url_or_urls):
        """Reads whatever `load_image` reads, in nested lists too; addresses are refused (see `load_image`)."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, str | bytes | os.PathLike | Image.Image):
            return load_image(image_url_or_urls)
        return image_url_or_urls

    def convert_to_rgb(self, image, **kwargs):
        """PIL picture of any mode -> uint8 [H, W, 3]; arrays pass through transformers' own conversion."""
        if isinstance(image, Image.Image):
            return np.array(to_rgb(image))
        return super().convert_to_rgb(image, **kwargs)


def _of_family(model_type):
    """What transformers' image processor for a tower's family has by default; raises ValueError if there is none."""
    if model_type in _DINO:
        return _DINO[model_type]
    module = model_type_to_module_name(model_type)
    names = [names for of, names in IMAGE_PROCESSOR_MAPPING_NAMES.items() if model_type_to_module_name(of) == module]
    family = get_image_processor_class_from_name(names[0]["pil"]) if names and "pil" in names[0] else None
    if family is None:
        raise ValueError(
            f"{model_type}: its repository has no preprocessor_config.json, and transformers' PIL image processors none for "
            "its family; the colours it was trained on are not known: add the file, or pass an image_processor"
        )
    return {name: getattr(family, name) for name in _FOLLOWED if getattr(family, name, None) is not None}


def load_image(source, smallest=None):
    """Opens a picture and returns it as RGB, the way a viewer shows it.

    Args:
        source: path, bytes, PIL picture, or an address "data:image/...;base64,...". EXIF rotation is applied, transparency
            laid on white, 16 bits scaled to 8; of an animation the first frame counts.
        smallest: pixels; a JPEG may be scaled down to a half, quarter or eighth while it is decoded, as long as both
            sides keep that many.

    Raises:
        ValueError: one line that names the file and what is wrong with it: missing, empty, not a picture, truncated,
            larger than `MAX_PIXELS`, or another address (nothing is fetched here).
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
            image = Image.open(io.BytesIO(data)) if data else source
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
    """PIL picture of any mode -> RGB as a viewer shows it: first frame, upright, on white, 8 bits."""
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
    """Gray of 16 bits, integers or floats -> gray of 8 bits."""
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
