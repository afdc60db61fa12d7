"""CHAIR (Rohrbach et al. 2018): objects of COCO's 80 kinds that a caption names and that are not in the image.

    chair_i   share of the named objects that are not there (the paper's figure)
    chair_s   share of the captions with such an object
    recall    share of the kinds that are there that are named
    words     mean per caption: longer captions invent more, so the two belong together

The words for each kind are in processing/data/kinds.py: this project's own list, so figures are close to those of the CHAIR
code but not the same.
"""

import datasets
import evaluate

from minigpt4.metrics.statistics import ratio
from minigpt4.processing.data.kinds import named_kinds


def chair_rows(captions, truths):
    """{figure: [a row of sums for each caption]}, which `ratio` turns into figures.

    Args:
        captions: list of texts; truths: for each, the kinds in its image.
    """
    rows = {"chair_i": [], "chair_s": [], "recall": [], "words": []}
    for caption, truth in zip(captions, truths, strict=True):
        named = named_kinds(caption)
        invented = [kind for kind in named if kind not in truth]
        rows["chair_i"].append([len(invented), len(named)])
        rows["chair_s"].append([bool(invented), 1])
        rows["recall"].append([len(set(named) & set(truth)), len(set(truth))])
        rows["words"].append([len(caption.split()), 1])
    return rows


class Chair(evaluate.Metric):
    """CHAIRi, CHAIRs, recall and mean length."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Rohrbach et al. 2018, arXiv 1809.02156",
            inputs_description="predictions: list of captions; references: list of lists of COCO kinds in the picture",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        import numpy as np

        return {name: float(ratio(np.sum(rows, 0))) for name, rows in chair_rows(predictions, references).items()}
