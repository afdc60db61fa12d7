"""Suites on composed scenes, about which everything is known, held out from training."""

import re

from ...metrics import composed, pope
from ...metrics.composed import HELD_OUT, NOTO_FONT, SHIFT
from ...metrics.failures import failure
from ...processing.data.scenes import ARTWORK_LICENSE, draw, noto, openmoji, scenes, with_article
from .base import Figure, Suite

# Relations from a scene's first object to its second: {relation: (in words, its opposite in words)}.
RELATIONS = {"left": ("to the left of", "to the right of"), "above": ("above", "below")}


class Scenes:
    """Images of held-out composed scenes: "0007" in the artwork of training, "noto-0007" in another."""

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
    """Held-out composed scenes: captions, descriptions, questions; with swapped images; in unseen artwork.

    Swapped, each scene's question is asked about another scene's image: answers that are still right did not need it. A
    linear probe of the frozen vision features (probe.py) shows the most that one linear layer could see.
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
        """Number of scenes; the other artwork shows the same ones."""
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


class Spatial(Suite):
    """Relations of two objects on held-out composed scenes: yes-no questions, half of each, and naming one of the two.

    "Is the dog to the left of the cat?" is asked with the true relation and with its opposite, from either object: always
    saying yes, or going by the names, is right half of the time. "What is to the left of the cat?" is also scored with the
    answer about another scene ("shuffled"): answers that are still right did not need the image.
    """

    def build(self):
        if self.paths:
            raise ValueError(f"{self.paths[0]}: this suite composes its own scenes; leave --data out, --seed chooses them")
        n = self.options.limit or HELD_OUT
        if n <= SHIFT:
            raise ValueError(f"--limit is {n}; the shuffled control needs more than {SHIFT} scenes")
        self.pictures, self.labels = Scenes(n * 4, self.options.seed), {}  # about half of all scenes are pairs
        pairs = [name for name, row in self.pictures.rows.items() if row["kind"] == "pair"][:n]
        self.rows = {name: self.pictures.rows[name] for name in pairs}
        self.data = self.pictures.data
        for name, row in self.rows.items():
            (first, second), (holds, opposite) = row["objects"], RELATIONS[row["relation"]]
            for label, one, relation, other in (
                ("yes", first, holds, second),
                ("yes", second, opposite, first),
                ("no", first, opposite, second),
                ("no", second, holds, first),
            ):
                identity = f"yes or no/{name}/{one} {relation}"
                self.labels[identity] = label
                self.ask(name, f"Is the {one} {relation} the {other}?", 24, identity)
            self.ask(name, f"What is {holds} the {second}?", 24, f"named/{name}/{first}")

    def figures(self, said, verdicts=None):
        asked = [request for request in self.requests if request.id in self.labels]
        ways = {"yes or no": self._yes_or_no(asked, said)}
        for relation in RELATIONS:
            of_relation = [request for request in asked if self.rows[request.image]["relation"] == relation]
            if of_relation:
                way = {"left": "yes or no, left and right", "above": "yes or no, above and below"}[relation]
                ways[way] = self._yes_or_no(of_relation, said)
        open_ones = [request for request in self.requests if request.id not in self.labels]
        answers, images = [said[request.id] for request in open_ones], [request.image for request in open_ones]
        ways["named"] = {
            "right": Figure([[_names(r, text), 1] for r, text in zip(open_ones, answers, strict=True)], images),
            "right, shuffled": Figure(
                [[_names(r, text), 1] for r, text in zip(open_ones, answers[SHIFT:] + answers[:SHIFT], strict=True)], images
            ),
        }
        return ways

    def _yes_or_no(self, asked, said):
        rows = pope.pope_rows([said[r.id] for r in asked], [self.labels[r.id] for r in asked])
        images = [request.image for request in asked]
        return {name: Figure(rows[name], images, pope.VALUES[name]) for name in ("accuracy", "yes_ratio")}

    def truth(self, request):
        first, second = self.rows[request.image]["objects"]
        relation = RELATIONS[self.rows[request.image]["relation"]][0]
        return f"{with_article(first)} {relation} {with_article(second)}"

    def remark(self, request, answer):
        if request.id in self.labels:
            return "right" if pope.said(answer) == self.labels[request.id] else "wrong"
        return "right" if _names(request, answer) else "wrong"


def _names(request, answer):
    """Whether the first object that an answer names is the one that was asked for."""
    return composed.first_named(answer, composed.OBJECTS) == request.id.split("/")[-1]
