"""Suites on images that people described, in COCO's format: captions, descriptions and named objects."""

import re

from ...metrics import captions as caption_metric
from ...metrics.chair import chair_rows
from ...processing.data.kinds import KINDS as COCO_KINDS
from ...processing.data.kinds import named_kinds
from .. import data_files
from .base import Figure, Suite

SHORT = "Describe this image in one short sentence."
DESCRIBE = "Describe this image in detail."
CHAIR_WAYS = {
    "long": ("Please describe this image as detailed as possible.", 300),
    "short": ("Please describe the image shortly and precisely, in less than 20 words.", 60),
}


class Captions(Suite):
    """CIDEr, BLEU-4 and ROUGE-L of short captions against COCO's, asked for in words and in the form of stage 1."""

    def build(self):
        path, content = _only_one(self.need("captions")["captions"])
        self.references = data_files.coco_captions(content, path)
        for image in self.limited(self.references):
            self.ask(image, SHORT, 40, f"short/{image}")
            self.ask(image, None, 32, f"caption/{image}")

    def figures(self, said, verdicts=None):
        ways = {}
        for way, asked in self.by_way().items():
            first = [re.split(r"(?<=[.!?])\s", said[request.id].strip())[0] for request in asked]
            rows = caption_metric.caption_rows(first, [self.references[request.image] for request in asked])
            images = [request.image for request in asked]
            ways[way] = {name: Figure(rows[name], images, value) for name, value in caption_metric.VALUES.items()}
            ways[way]["words"] = Figure([[len(text.split()), 1] for text in first], images)
        return ways

    def truth(self, request):
        return "\n".join(self.references[request.image])


class Coverage(Suite):
    """How many of an image's captions a description covers, judged by an LLM (the paper: 2.22 of COCO's 5)."""

    judged = True
    _SYSTEM = (
        "You are given a description of a picture under `Test:` and numbered captions of the same picture. Tell for each "
        "caption whether its information is in the test description. Answer with one line for each caption, `1: yes` or "
        "`1: no`, and with nothing else."
    )

    def build(self):
        path, content = _only_one(self.need("captions")["captions"])
        self.references = data_files.coco_captions(content, path)
        for image in self.limited(self.references):
            self.ask(image, DESCRIBE, 300, f"description/{image}")

    def question(self, request, answer):
        """Messages for the judge; each text is on one line, so a description cannot add a line of its own."""
        lines = [f"Test: {' '.join(answer.split())}"]
        lines += [f"{i}: {' '.join(text.split())}" for i, text in enumerate(self.references[request.image], 1)]
        return [{"role": "system", "content": self._SYSTEM}, {"role": "user", "content": "\n".join(lines)}]

    def verdict(self, request, reply):
        """[bool for each caption] from a judge's reply, or None unless it has exactly one line for each."""
        lines = re.findall(r"^\W*(\d+)\W*(yes|no)\b", reply.lower(), re.MULTILINE)
        wanted = [str(i) for i in range(1, len(self.references[request.image]) + 1)]
        return [word == "yes" for _, word in lines] if [number for number, _ in lines] == wanted else None

    def figures(self, said, verdicts=None):
        images = [request.image for request in self.requests]
        covered = [[sum(verdicts[r.id] or []), 1] for r in self.requests]
        shares = [[sum(verdicts[r.id] or []), len(self.references[r.image])] for r in self.requests]
        words = [[len(said[r.id].split()), 1] for r in self.requests]
        return {
            "descriptions": {
                "captions_covered": Figure(covered, images),
                "share_covered": Figure(shares, images),
                "words": Figure(words, images),
            }
        }

    def truth(self, request):
        return "\n".join(self.references[request.image])


class Chair(Suite):
    """CHAIR of long and short descriptions (the paper: CHAIRi 9.6 at 175 words, 7.2 at 28.8)."""

    def build(self):
        found = self.need("instances", "captions")
        if not found["instances"]:
            raise ValueError(f"{self.data}: CHAIR needs {data_files.KINDS['instances']}; captions add to them")
        path, content = _only_one(found["instances"])
        self.kinds = data_files.coco_instances(content, path)
        unknown = set().union(*self.kinds.values()) - set(COCO_KINDS)
        if unknown:
            raise ValueError(f"{path}: category {min(unknown)!r} is not one of COCO's 80")
        for path, content in found["captions"]:  # what people named also counts as there, as in the authors' code
            for image, texts in data_files.coco_captions(content, path).items():
                if image in self.kinds:
                    self.kinds[image] |= {kind for text in texts for kind in named_kinds(text)}
        for way, (instruction, longest) in CHAIR_WAYS.items():
            for image in self.limited(self.kinds):
                self.ask(image, instruction, longest, f"{way}/{image}")

    def figures(self, said, verdicts=None):
        ways = {}
        for way, asked in self.by_way().items():
            rows = chair_rows([said[r.id] for r in asked], [self.kinds[r.image] for r in asked])
            ways[way] = {name: Figure(values, [r.image for r in asked]) for name, values in rows.items()}
        return ways

    def truth(self, request):
        return ", ".join(sorted(self.kinds[request.image]))

    def remark(self, request, answer):
        invented = sorted(set(named_kinds(answer)) - self.kinds[request.image])
        return f"not there: {', '.join(invented)}" if invented else ""


def _only_one(found):
    """The (path, content) of the only file of a kind; raises ValueError if there are several."""
    [(path, content), *more] = found
    if more:
        raise ValueError(f"{path} and {more[0][0]}: two files of the same kind; name one of them with --data")
    return path, content
