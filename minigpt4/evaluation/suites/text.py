"""A suite on text in images, which it renders itself: on a plain background, on textures and on photographs."""

import random
import re

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...processing.data.photographs import FREE, photograph
from .base import Figure, Suite
from .scenes import SHIFT

SIZE = 448  # pixels; towers with fewer scale it down
QUESTION = "What does the text in the image say?"
GROUNDS = ("plain", "texture", "photograph")
# Words of signs, menus and labels, of three to nine letters.
_WORDS = """
    open closed exit enter stop push pull danger warning caution sale free fresh coffee bakery market hotel museum
    library station airport parking taxi police doctor pharmacy school garden river bridge tower north south east
    west summer winter monday friday morning evening welcome goodbye thanks please silence private public office
    kitchen bread butter cheese lemon orange sugar salt pepper water juice music theatre cinema ticket platform
    window corner street avenue castle harbor island mountain forest village copper silver golden purple yellow
    seven eleven twenty hundred
"""
WORDS = _WORDS.split()


class Text(Suite):
    """One word in each image, a third each on a plain background, a texture and a photograph: is it read?

    `exact` is the share of answers with the word in them, `edit_distance` the letters to change in the nearest of its words,
    as a share of the word's (at most 1). Both are reported next to the same answers on other images ("shuffled").
    """

    def build(self):
        if self.paths:
            raise ValueError(f"{self.paths[0]}: this suite writes its own images; leave --data out, --seed chooses them")
        n = self.options.limit or 150
        if n <= SHIFT:
            raise ValueError(f"--limit is {n}; the shuffled control needs more than {SHIFT} images")
        self.pictures = Signs(n, self.options.seed)
        self.data = f"written words, seed {self.options.seed}"
        for name in self.pictures.words:
            self.ask(name, QUESTION, 24, name)

    def figures(self, said, verdicts=None):
        ways = {"all": self._figures(self.requests, said)}
        return ways | {way: self._figures(asked, said) for way, asked in self.by_way().items()}

    def _figures(self, requests, said):
        words, images = [self.pictures.words[r.image] for r in requests], [r.image for r in requests]
        answers = [said[r.id] for r in requests]
        shift = SHIFT % len(requests) or 1
        others = answers[shift:] + answers[:shift]
        return {
            "exact": Figure([[edits(w, text) == 0, 1] for w, text in zip(words, answers, strict=True)], images),
            "exact, shuffled": Figure([[edits(w, text) == 0, 1] for w, text in zip(words, others, strict=True)], images),
            "edit_distance": Figure([[edits(w, text), 1] for w, text in zip(words, answers, strict=True)], images),
            "edit_distance, shuffled": Figure([[edits(w, text), 1] for w, text in zip(words, others, strict=True)], images),
        }

    def truth(self, request):
        return self.pictures.words[request.image]

    def remark(self, request, answer):
        distance = edits(self.pictures.words[request.image], answer)
        return "read" if distance == 0 else f"{distance:.2f} of it to change"


def edits(word, answer):
    """Letters to change, add or remove until the answer's nearest word is `word`, as a share of its length, at most 1."""
    from nltk.metrics.distance import edit_distance

    found = re.findall(r"[^\W_]+", answer.lower())
    return min([1.0, *(edit_distance(word, other) / len(word) for other in found)])


class Signs:
    """Images of words: {name: word} in `words`, with names like "plain/003". The same seed gives the same images."""

    license = "Photographs: scikit-image, CC0 and public domain"

    def __init__(self, n, seed):
        rng = random.Random(f"signs-{seed}")
        self.words = {f"{GROUNDS[i % 3]}/{i:03}": rng.choice(WORDS) for i in range(n)}
        self.seed = seed

    def check(self, names):
        """Raises ValueError if the photographs are not installed."""
        try:
            photograph("coffee")
        except ModuleNotFoundError as error:
            raise ValueError(
                "the suite text writes on photographs of scikit-image; run `pip install scikit-image`"
            ) from error

    def open(self, name):
        """Draws an image, RGB."""
        rng = random.Random(f"sign-{self.seed}-{name}")
        image, word = _ground(name.partition("/")[0], rng), self.words[name]
        word = rng.choice((str.upper, str.lower, str.capitalize))(word)
        dark = np.asarray(image.convert("L")).mean() > 127
        ink, edge = ((15, 15, 15), (245, 245, 245)) if dark else ((245, 245, 245), (15, 15, 15))
        face = ImageFont.load_default(rng.randint(56, 84))
        width = face.getlength(word)
        if width > SIZE - 40:
            face = ImageFont.load_default(int(face.size * (SIZE - 40) / width))
            width = face.getlength(word)
        place = rng.uniform(width / 2 + 10, SIZE - width / 2 - 10), rng.uniform(60, SIZE - 60)
        ImageDraw.Draw(image).text(place, word, ink, face, anchor="mm", stroke_width=3, stroke_fill=edge)
        return image


def _ground(kind, rng):
    if kind == "plain":
        return Image.new("RGB", (SIZE, SIZE), tuple(rng.randint(40, 230) for _ in range(3)))
    if kind == "photograph":
        shot = photograph(rng.choice(sorted(FREE)))
        side = min(shot.size)
        left, top = rng.randint(0, shot.width - side), rng.randint(0, shot.height - side)
        return shot.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(rng.getrandbits(32)).integers(
        0, 256, (rng.choice((7, 14, 28)),) * 2 + (3,), dtype=np.uint8
    )
    texture = Image.fromarray(grain).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return Image.blend(texture, Image.new("RGB", (SIZE, SIZE), tuple(rng.randint(0, 255) for _ in range(3))), 0.5)
