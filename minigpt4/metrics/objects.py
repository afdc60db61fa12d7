"""Does an answer name what is in the image? For images with a list of things or a label.

    named       share of the answers that name at least one thing that is there, except people: if most images have people,
                "a man" is right without looking
    invented    share of the named things of COCO's 80 kinds that are not there (CHAIRi); for images with a list

Rows are those of processing/data/photo_texts.py; what is there are the kinds of the list and those that people named in
captions (as CHAIR's authors count), or whatever names the label. The words are in processing/data/kinds.py.
"""

import datasets
import evaluate

from minigpt4.metrics.statistics import ratio
from minigpt4.processing.data.kinds import named_kinds, names_label
from minigpt4.processing.data.photo_texts import written


def there(row):
    """The COCO kinds in an image with a list, including those of people's captions; none if there is only a label."""
    listed = row.get("objects")
    return {kind for text in written(row) for kind in named_kinds(text)} | set(listed) if listed else set()


def can_be_named(row):
    """Whether anything but people is known to be there."""
    return bool(row.get("label") or there(row) - {"person"})


def names_one(answer, row):
    """Whether an answer names at least one thing that is there, except people."""
    if row.get("label") and names_label(answer, row["label"]):
        return True
    return bool(set(named_kinds(answer)) & (there(row) - {"person"}))


def invented(answer, row):
    """[named things that are not there, named things] of COCO's kinds; [0, 0] without a list, as nothing is known."""
    named = named_kinds(answer) if row.get("objects") else []
    return [sum(kind not in there(row) for kind in named), len(named)]


class Objects(evaluate.Metric):
    """The share of answers that name a thing that is there, and the share of named things that are not."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="CHAIR: Rohrbach et al. 2018, arXiv 1809.02156",
            inputs_description="predictions: list of answers; references: list of lists of COCO kinds in the picture",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        import numpy as np

        rows = [{"captions": [], "objects": kinds} for kinds in references]
        pairs = list(zip(predictions, rows, strict=True))
        named = [[names_one(answer, row), 1] for answer, row in pairs if can_be_named(row)]
        sums = {"named": named or [[0, 0]], "invented": [invented(answer, row) for answer, row in pairs]}
        return {name: float(ratio(np.sum(of, 0))) for name, of in sums.items()}
