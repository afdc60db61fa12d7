"""The most that one linear layer can see: linear maps from the frozen vision features to what is in a scene.

They are fitted in closed form (ridge regression) on composed training scenes, one map per question. The projection must
also speak the LLM's language, so this is the upper bound to compare its figures with.
"""

import torch

from ..processing.data.scenes import scenes
from ..training.run import cache_features
from .suites.base import Figure

TRAINING_SCENES = 25  # per measured scene
RIDGE = 1e-2  # times the features' mean variance


def linear_probe(model, processor, held_out, seed):
    """{figure: Figure} on held-out scenes for a linear map of the features.

    Args:
        held_out: `suites.Scenes`. seed: of the training scenes.

    "object_recall": of the n likeliest objects, n being the scene's number of objects, the share that is there. Any other
    figure is named after a question, and is the share of scenes whose likeliest answer is true.
    """
    names = list(held_out.rows)
    train = scenes(TRAINING_SCENES * len(names), seed, "train")
    rows, truth = train.with_format(None)[:], [held_out.rows[name] for name in names]
    rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    seen = cache_features(model, processor, train)[:, 0].flatten(1).float()
    shown = cache_features(model, processor, [{"image": held_out.open(name)} for name in names])[:, 0].flatten(1).float()
    fit = _Ridge(seen)
    figures = {"object_recall": _objects(fit, rows, shown, truth, names)}
    kinds = sorted({question["question"] for row in truth for question in row["conversation"][1:]})
    return figures | {kind: _question(fit, kind, rows, shown, truth, names) for kind in kinds}


class _Ridge:
    """Ridge regression on a subset of the same examples, in the dual: as many equations as examples."""

    def __init__(self, features):
        self.mean = features.mean(0)
        self.features = features - self.mean
        self.penalty = RIDGE * self.features.pow(2).sum(1).mean()

    def predict(self, subset, targets, shown):
        """Fits targets [n, classes] of examples `subset` [n]; -> [shown, classes]."""
        features, offset = self.features[subset], targets.mean(0)
        kernel = features @ features.T
        kernel.diagonal().add_(self.penalty)
        weights = torch.linalg.solve(kernel, targets - offset)
        return (shown - self.mean) @ features.T @ weights + offset


def _objects(fit, rows, shown, truth, names):
    objects = sorted({name for row in [*rows, *truth] for name in row["objects"]})
    targets = torch.tensor([[float(name in row["objects"]) for name in objects] for row in rows])
    scores = fit.predict(torch.arange(len(rows)), targets, shown)
    hits = []
    for row, score in zip(truth, scores, strict=True):
        likeliest = {objects[i] for i in score.topk(len(row["objects"])).indices.tolist()}
        hits.append([len(likeliest & set(row["objects"])), len(row["objects"])])
    return Figure(hits, names)


def _question(fit, kind, rows, shown, truth, names):
    known, answers = _answers(kind, rows)
    asked, right = _answers(kind, truth)
    classes = sorted({*answers, *right})
    targets = torch.tensor([[float(answer == one) for one in classes] for answer in answers])
    scores = fit.predict(torch.tensor(known), targets, shown[asked])
    said = [classes[i] for i in scores.argmax(1).tolist()]
    return Figure([[a == b, 1] for a, b in zip(said, right, strict=True)], [names[i] for i in asked])


def _answers(kind, rows):
    """(indices of the rows that are asked this, their answers)."""
    found = [(i, q["answer"][0]) for i, row in enumerate(rows) for q in row["conversation"] if q["question"] == kind]
    return [i for i, _ in found], [answer for _, answer in found]
