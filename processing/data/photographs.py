"""Photographs from scikit-image's wheel: the quickstart shows six of them, the model card a random few."""

import random

from PIL import Image

# {name in skimage.data: credit}, as scikit-image states it. It has no licence for "motorcycle", one of a stereo pair.
MIDDLEBURY = {"motorcycle": "Middlebury Stereo 2014 (Scharstein et al.)"}
CREDITS = {
    "coffee": "Rachel Michetti, CC0",
    "cat": "Stefan van der Walt, CC0",
    "rocket": "SpaceX, public domain",
    "astronaut": "NASA, public domain",
    "camera": "Lav Varshney, CC0",
    **MIDDLEBURY,
}
# All that may be shown anywhere.
FREE = {name: credit for name, credit in CREDITS.items() if name not in MIDDLEBURY} | {
    "brick": "CC0Textures, CC0",
    "clock": "Stefan van der Walt, public domain",
    "grass": "linolafett, CC0",
    "gravel": "CC0Textures, CC0",
    "hubble_deep_field": "NASA, public domain",
    "retina": "Mikael Häggström, CC0",
}
SHOWN = 4  # on a model card


def photograph(name):
    """A photograph of `CREDITS` or `FREE` as a PIL image; raises ModuleNotFoundError without scikit-image."""
    from skimage import data

    if name in MIDDLEBURY:
        left, _, _ = data.stereo_motorcycle()
        return Image.fromarray(left)
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def drawn(n=SHOWN, seed=0):
    """Names of n random photographs of `FREE`, so that nobody chooses the examples of a model."""
    return random.Random(seed).sample(sorted(FREE), n)
