"""Suites that ask for longer texts: do they fail, and do they fulfil the request?"""

import json
import re
from pathlib import Path

from ... import hub
from ...metrics import composed
from ...metrics.composed import HELD_OUT
from ...metrics.failures import KINDS as FAILURES
from ...metrics.failures import failure
from ...metrics.statistics import median, one_hot
from .. import data_files
from .base import Figure, Suite
from .objects import named_figures
from .scenes import Scenes

# Images with a request for each: the examples on the web page and in a Space.
TWELVE = Path(hub.__file__).with_name("abilities")
# The paper's two requests whose failures it counts.
DETAIL = "Describe the image in detail."
POEM = "Can you write a beautiful poem about this image?"
ABILITIES = {
    "memes": "Explain why this meme is funny.",
    "recipes": "How should I make something like this?",
    "advertisements": "Help me draft a professional advertisement for this.",
    "poems": "Can you craft a beautiful poem about this image?",
}


class Failures(Suite):
    """Failures of descriptions and poems (the paper's table: 35% -> 2%, 32% -> 1%); on composed scenes without --data.

    For tar shards whose images have a list of things or a label, also `named` and `invented` as in the suite objects.
    """

    def build(self):
        self.rows, self.known = {}, {}
        if self.shards():
            self.known, longest = self.pictures.rows, 300
            names = self.limited(self.known)
        elif self.paths:
            if not self.paths[0].is_dir():
                raise ValueError(f"{self.paths[0]}: is a file; expected a folder of pictures, or tar shards")
            self.pictures, longest = data_files.Folder(self.paths[0]), 300
            names, self.data = self.limited(self.pictures.names()), f"pictures of {self.paths[0].name}"
        else:
            self.pictures, longest = Scenes(self.options.limit or HELD_OUT, self.options.seed), 160
            names, self.rows, self.data = list(self.pictures.rows), self.pictures.rows, self.pictures.data
        for way, instruction in (("descriptions", DETAIL), ("poems", POEM)):
            for name in names:
                self.ask(name, instruction, longest, f"{way}/{name}")

    def figures(self, said, verdicts=None):
        ways = {}
        for way, asked in self.by_way().items():
            found = {request.id: failure(said[request.id], request.instruction) for request in asked}
            images = [request.image for request in asked]
            ways[way] = {"failures": Figure([[found[r.id] is not None, 1] for r in asked], images)}
            for kind in FAILURES:
                ways[way][kind] = Figure([[found[r.id] == kind, 1] for r in asked], images)
            if way == "descriptions" and self.rows:
                recall = [composed.named_objects(self.rows[r.image], said[r.id]) for r in asked]
                ways[way]["object_recall"] = Figure(recall, images)
            if way == "descriptions" and self.known:
                ways[way] |= named_figures([self.known[image] for image in images], [said[r.id] for r in asked], images)
            words = [len(said[r.id].split()) for r in asked]
            ways[way]["words"] = Figure([[n, 1] for n in words], images)
            ways[way]["words_median"] = Figure(one_hot(words), images, median)
        return ways

    def truth(self, request):
        if self.known:
            return "\n".join(self.known[request.image]["captions"])
        return self.rows[request.image]["text"] if self.rows else ""

    def remark(self, request, answer):
        return failure(answer, request.instruction) or ""


class Advanced(Suite):
    """Memes, recipes, advertisements, poems: was the request fulfilled? Judged by an LLM or a person (the paper: 65 of 100).

    --data is a folder with a folder of images for each: memes/, recipes/, advertisements/, poems/ (the paper: 25 each).
    """

    judged, by_person = True, True
    _SYSTEM = (
        "You see a picture, a request about it and an answer. Tell whether the answer fulfils the request for this very "
        "picture. Answer with `yes` or `no` and with nothing else."
    )

    def build(self):
        if not self.paths or not self.paths[0].is_dir():
            raise ValueError(f"this suite needs --data: a folder with {', '.join(f'{name}/' for name in ABILITIES)}")
        self.pictures, self.data = data_files.Folder(self.paths[0]), f"pictures of {self.paths[0].name}"
        everything = self.pictures.names()
        others = [name for name in everything if name.partition("/")[0] not in ABILITIES]
        if others:
            raise ValueError(f"{self.paths[0]}: {others[0]} is in none of {', '.join(f'{name}/' for name in ABILITIES)}")
        names = self.limited(everything)
        for ability, instruction in ABILITIES.items():
            of_ability = [name for name in names if name.startswith(f"{ability}/")]
            if not of_ability:
                raise ValueError(f"{self.paths[0]}: no pictures in {ability}/; expected some (the paper: 25)")
            for name in of_ability:
                self.ask(name, instruction, 300, name)

    def question(self, request, answer):
        """Messages for the judge, with the image."""
        from ..results_page import data_url

        told = f"Request: {request.instruction}\nAnswer: {answer}"
        picture = {"type": "image_url", "image_url": {"url": data_url(self.pictures.open(request.image), side=768)}}
        return [
            {"role": "system", "content": self._SYSTEM},
            {"role": "user", "content": [picture, {"type": "text", "text": told}]},
        ]

    def verdict(self, request, reply):
        """True or False from a judge's reply, or None if it says neither."""
        word = re.match(r"\W*(yes|no)\b", reply.lower())
        return word[1] == "yes" if word else None

    def figures(self, said, verdicts=None):
        ways = {"all": {"fulfilled": self._shares(verdicts, lambda _, verdict: verdict is True)}}
        for ability, asked in self.by_way().items():
            ways[ability] = {"fulfilled": self._shares(verdicts, lambda _, verdict: verdict is True, asked)}
        return ways


class Abilities(Advanced):
    """The twelve abilities of the paper's figures, each asked about an included image: a page with every answer.

    A person or an LLM judges the answers (--judge); otherwise only failures and lengths are measured.
    """

    judged = False

    def build(self):
        if self.paths:
            raise ValueError(f"{self.paths[0]}: this suite asks about the images that ship; leave --data out")
        self.pictures, self.data = data_files.Folder(TWELVE), "the twelve abilities of the paper's figures"
        abilities = json.loads((TWELVE / "questions.json").read_text("utf-8"))
        self.names = {ability["image"]: ability["name"] for ability in abilities}
        chosen = self.limited(self.names)
        for ability in abilities:
            if ability["image"] in chosen:
                self.ask(ability["image"], ability["question"], 300, f"abilities/{ability['image']}")

    def figures(self, said, verdicts=None):
        images = [request.image for request in self.requests]
        found = {
            "failures": Figure([[failure(said[r.id], r.instruction) is not None, 1] for r in self.requests], images),
            "words": Figure([[len(said[r.id].split()), 1] for r in self.requests], images),
        }
        if verdicts:
            found["fulfilled"] = self._shares(verdicts, lambda _, verdict: verdict is True)
        return {"abilities": found}

    def truth(self, request):
        return self.names[request.image]

    def remark(self, request, answer):
        return failure(answer, request.instruction) or ""
