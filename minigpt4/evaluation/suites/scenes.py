"""Composed scenes, of which everything is known, held out from training."""

import re

from ...metrics import composed
from ...metrics.composed import HELD_OUT, NOTO_FONT, SHIFT
from ...metrics.failures import failure
from ...processing.scenes import ARTWORK_LICENSE, draw, noto, openmoji, scenes
from .base import Figure, Suite


class Scenes:
    """Held-out composed scenes as pictures: "0007" in the artwork they are learned in, "noto-0007" in another."""

    license = ARTWORK_LICENSE

    def __init__(self, n, seed):
        columns = scenes(n, seed, "test").with_format(None)[:]
        values = zip(*columns.values(), strict=True)
        self.rows = {f"{i:04}": dict(zip(columns, row, strict=True)) for i, row in enumerate(values)}
        self.data = f"composed scenes, held out, seed {seed}"

    def check(self, names):
        """Every scene can be drawn."""

    def open(self, name):
        """Draws a scene."""
        return draw(self.rows[name.removeprefix("noto-")], noto if name.startswith("noto-") else openmoji)


class Composed(Suite):
    """Held-out composed scenes: captions, descriptions, questions; with pictures swapped; in artwork never seen.

    Swapped, each scene's question is asked about another scene's picture: what is right then needed no picture. A linear
    probe of the frozen vision features (probe.py) tells what one linear layer could see at best.
    """

    def build(self):
        if self.paths:
            raise ValueError(f"{self.paths[0]}: this suite composes its own scenes; leave --data out, --seed chooses them")
        n = self.options.limit or HELD_OUT
        if n <= SHIFT:
            raise ValueError(f"--limit is {n}; swapping pictures needs more than {SHIFT} scenes")
        self.pictures = Scenes(n, self.options.seed)
        self.rows, self.data, self.asked = self.pictures.rows, self.pictures.data, {}
        names = list(self.rows)
        for i, name in enumerate(names):
            self.ask(name, None, 32, f"captions/{name}")
            for way, image in (("", name), ("swapped ", names[(i + SHIFT) % n]), ("unseen ", f"noto-{name}")):
                if way != "unseen " or NOTO_FONT.is_file():
                    self._talk(way, name, image)

    @property
    def n(self):
        """How many scenes; those of the other artwork are the same."""
        return len(self.rows)

    def _talk(self, way, name, image):
        description, *questions = self.rows[name]["conversation"]
        self.ask(image, description["instruction"], 48, f"{way}descriptions/{name}")
        for question in questions:
            identity = f"{way}questions/{name}/{question['question']}"
            self.asked[identity] = question
            self.ask(image, question["instruction"], 48, identity)

    def figures(self, said, verdicts=None):
        names = list(self.rows)
        captions = [said[f"captions/{name}"] for name in names]
        ways = {
            "captions": self._captions(captions),
            "captions, swapped": self._captions(captions[SHIFT:] + captions[:SHIFT]),
        }
        for way in ("", "swapped ", "unseen "):
            if not any(request.id.startswith(f"{way}descriptions/") for request in self.requests):
                continue
            told = f", {'artwork never seen' if way == 'unseen ' else way.strip()}" if way else ""
            ways[f"questions{told}"] = self._questions(f"{way}questions/", said)
            said_of = {name: said[f"{way}descriptions/{name}"] for name in names}
            recall = [composed.named_objects(self.rows[name], said_of[name]) for name in names]
            ways[f"descriptions{told}"] = {"object_recall": Figure(recall, names)}
            answers = [(r.id.split("/")[1], said[r.id]) for r in self.requests if re.match(rf"{way}(?:desc|quest)", r.id)]
            failed = [[failure(text) is not None, 1] for _, text in answers]
            ways[f"descriptions and questions{told}"] = {"failures": Figure(failed, [name for name, _ in answers])}
        return ways

    def measure(self, model, processor):
        from ..probe import linear_probe

        return {"linear probe": linear_probe(model, processor, self.pictures, self.options.seed)}

    def _captions(self, captions):
        hits = [(name, composed.caption_hits(self.rows[name], text)) for name, text in zip(self.rows, captions, strict=True)]
        figures = dict.fromkeys(figure for _, scene in hits for figure in scene)
        return {f: Figure([s[f] for _, s in hits if f in s], [name for name, s in hits if f in s]) for f in figures}

    def _questions(self, way, said):
        asked = {identity: question for identity, question in self.asked.items() if identity.startswith(way)}
        kinds = dict.fromkeys(question["question"] for question in asked.values())
        figures = {"answered_right": self._right(asked, said)}
        for kind in sorted(kinds):
            figures[kind] = self._right({i: q for i, q in asked.items() if q["question"] == kind}, said)
        return figures

    @staticmethod
    def _right(asked, said):
        rows = [[composed.is_right(question, said[identity]), 1] for identity, question in asked.items()]
        return Figure(rows, [identity.split("/")[1] for identity in asked])

    def truth(self, request):
        return self.rows[request.id.split("/")[1]]["text"]

    def remark(self, request, answer):
        if request.id in self.asked:
            return "right" if composed.is_right(self.asked[request.id], answer) else "wrong"
        return failure(answer) or "" if request.instruction else ""
