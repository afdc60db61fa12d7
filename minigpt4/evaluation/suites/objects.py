"""A suite on photographs with a list of things or a label: does the model name what is there, and only that?"""

import random

from ...metrics import pope
from ...metrics.objects import can_be_named, invented, names_one, there
from ...processing.data.photo_texts import WHAT, Statistics, is_there, things
from .. import data_files
from .base import Figure, Suite

LONGEST = 40  # tokens of an answer


class Objects(Suite):
    """Share of answers to "What is in this image?" that name a thing that is there (people not counted), share of named
    COCO things that are not, each next to the same answers on shuffled images of their source; and, as in POPE, equally many
    questions about things that are there and things that are not.

    --data is COCO's instances (and captions), or tar shards whose KEY.json has `objects` or `label`, and a `source`. Absent
    things are drawn from those of the data by how often they occur at all ("popular") and, if an image has a list, by how
    often they occur with those that are there ("adversarial").
    """

    def build(self):
        self.rows = {name: row for name, row in self._rows().items() if row.get("objects") or row.get("label")}
        if not self.rows:
            raise ValueError(f"{self.data}: no image has a list of things (`objects`) or a `label`; expected some")
        statistics, self.labels = Statistics(self.rows.values()), {}
        for name in self.limited(self.rows):
            self.ask(name, WHAT[0], LONGEST, f"what/{name}")
            for way in ("popular", "adversarial") if self.rows[name].get("objects") else ("popular",):
                self._ask_both(name, way, statistics)

    def _rows(self):
        if self.shards():
            return self.pictures.rows
        found = self.need("instances", "captions")
        rows = {}
        for path, content in found["instances"]:
            for name, kinds in data_files.coco_instances(content, path).items():
                rows[name] = {"captions": [], "objects": sorted(kinds), "source": path.stem}
        for path, content in found["captions"]:
            for name, texts in data_files.coco_captions(content, path).items():
                if name in rows:
                    rows[name]["captions"] += texts
        return rows

    def _ask_both(self, name, way, statistics):
        """A question about a thing that is there, and one about a thing that is not; none if there is no such thing."""
        row, rng = self.rows[name], random.Random(f"{self.options.seed}/{way}/{name}")
        absent = statistics.absent(row, rng, together=way == "adversarial")
        if absent is None:
            return
        for label, thing in (("yes", rng.choice(things(row))), ("no", absent)):
            self.labels[f"{way}/{label}/{name}"] = label
            self.ask(name, is_there(thing), LONGEST, f"{way}/{label}/{name}")

    def figures(self, said, verdicts=None):
        sources, kinds = {}, {"all": self.requests}
        for request in self.requests:
            row = self.rows[request.image]
            sources.setdefault(row.get("source", "images"), []).append(request)
            kinds.setdefault("with a list" if row.get("objects") else "with a label", []).append(request)
        if len(sources) > 1:
            sources = {**kinds, **dict(sorted(sources.items()))}
        ways = {source: self._of_images(asked, said) for source, asked in sources.items()}
        for way in ("popular", "adversarial"):
            if asked := [request for request in self.requests if request.id.startswith(f"{way}/")]:
                ways[f"yes or no, {way}"] = self._yes_or_no(asked, said)
        return ways

    def _of_images(self, requests, said):
        what = [request for request in requests if request.id.startswith("what/")]
        figures = named_figures([self.rows[r.image] for r in what], [said[r.id] for r in what], [r.image for r in what])
        shuffled = self._shuffled(what)
        if shuffled:
            rows, answers = [self.rows[r.image] for r in what], [said[shuffled[r].id] for r in what]
            others = named_figures(rows, answers, [r.image for r in what])
            figures |= {f"{name}, shuffled": figure for name, figure in others.items()}
        figures["words"] = Figure([[len(said[r.id].split()), 1] for r in what], [r.image for r in what])
        asked = [request for request in requests if request.id in self.labels]
        return figures | (self._yes_or_no(asked, said) if asked else {})

    def _shuffled(self, requests):
        """{request: the one of another image of its source whose answer it gets}; {} for sources with a single image."""
        of_source = {}
        for request in requests:
            of_source.setdefault(self.rows[request.image].get("source"), []).append(request)
        partner = {}
        for asked in of_source.values():
            order = random.Random(self.options.seed).sample(asked, len(asked))
            partner |= dict(zip(order, order[1:] + order[:1], strict=True))
        return partner if all(one is not other for one, other in partner.items()) else {}

    def _yes_or_no(self, asked, said):
        rows = pope.pope_rows([said[r.id] for r in asked], [self.labels[r.id] for r in asked])
        images = [request.image for request in asked]
        return {name: Figure(rows[name], images, pope.VALUES[name]) for name in ("accuracy", "yes_ratio")}

    def truth(self, request):
        row = self.rows[request.image]
        known = ", ".join([*([row["label"]] if row.get("label") else []), *sorted(there(row))])
        return f"{self.labels[request.id]} ({known})" if request.id in self.labels else known

    def remark(self, request, answer):
        if request.id in self.labels:
            return "right" if pope.said(answer) == self.labels[request.id] else "wrong"
        return "named" if names_one(answer, self.rows[request.image]) else "not named"


def named_figures(rows, answers, images):
    """{"named", "invented"}: Figures of answers about images with such rows, as far as they can be measured."""
    figures, every = {}, list(zip(rows, answers, images, strict=True))
    if known := [entry for entry in every if can_be_named(entry[0])]:
        named = [[names_one(answer, row), 1] for row, answer, _ in known]
        figures["named"] = Figure(named, [image for *_, image in known])
    if listed := [entry for entry in every if entry[0].get("objects")]:
        figures["invented"] = Figure([invented(answer, row) for row, answer, _ in listed], [image for *_, image in listed])
    return figures
