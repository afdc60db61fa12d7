"""Photographs that scikit-image carries, all of them free to show: the shipped model describes them."""

from PIL import Image

# {name in skimage.data: whose it is}
CREDITS = {
    "rocket": "SpaceX, public domain",
    "coffee": "Rachel Michetti, CC0",
    "chelsea": "Stefan van der Walt, CC0",
    "astronaut": "NASA, public domain",
}


def photograph(name):
    """One of `CREDITS` as a PIL picture; raises ModuleNotFoundError without scikit-image."""
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")
