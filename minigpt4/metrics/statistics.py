"""A figure with how many examples it is of and how sure it is: a 95% bootstrap interval.

Every metric gives a row of sums for an example (hits and tries, say) and says what figure the summed rows make. Examples
about one picture depend on each other, so that whole pictures are drawn, and not examples (a cluster bootstrap).
"""

import numpy as np

RESAMPLES = 1000


def ratio(sums):
    """[..., 2] sums of hits and tries -> [...] hits / tries; nan where there was no try."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def measured(rows, pictures, value=ratio, seed=0):
    """{"value", "n", "interval": [low, high]} of a figure.

    Args:
        rows: [n, k] numbers, a row for each example.
        pictures: n keys; examples with the same one are drawn together.
        value: function of summed rows, [..., k] -> [...]; by default hits / tries.
        seed: of the draws: the same rows have the same interval.

    "value" is None where nothing was tried (no object was named, say), and "interval" with it.

    Raises:
        ValueError: no example, or not a key for each.
    """
    rows = np.asarray(rows, dtype=float)
    if len(rows) == 0 or len(rows) != len(pictures):
        raise ValueError(f"found {len(rows)} examples and {len(pictures)} pictures; expected as many, and at least one")
    found = float(value(rows.sum(0)))
    if not np.isfinite(found):
        return {"value": None, "n": len(rows), "interval": None}
    return {"value": found, "n": len(rows), "interval": _interval(_by_picture(rows, pictures), value, seed)}


def difference(rows, other_rows, pictures, value=ratio, seed=0):
    """`measured` of the first figure minus the second, for two models asked the same: both rows of an example are drawn."""
    width = np.asarray(rows).shape[1]
    both = np.hstack([np.asarray(rows, dtype=float), np.asarray(other_rows, dtype=float)])
    return measured(both, pictures, lambda sums: value(sums[..., :width]) - value(sums[..., width:]), seed)


def _by_picture(rows, pictures):
    """[n, k] -> [pictures, k], summed."""
    _, index = np.unique(np.asarray(pictures, dtype=str), return_inverse=True)
    sums = np.zeros((index.max() + 1, rows.shape[1]))
    np.add.at(sums, index, rows)
    return sums


def _interval(sums, value, seed):
    rng = np.random.default_rng(seed)
    drawn = np.stack([sums[rng.integers(len(sums), size=len(sums))].sum(0) for _ in range(RESAMPLES)])
    low, high = np.nanpercentile(value(drawn), [2.5, 97.5])
    return [float(low), float(high)]
