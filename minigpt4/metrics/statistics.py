"""A figure with its number of examples and its uncertainty: a 95% interval.

For a share of images with one hit or miss each, it is Wilson's, which is also right for few images, and for none or all of
them; for everything else it is a bootstrap.

Every metric gives a row of sums per example (hits and tries, for instance) and a function from summed rows to the figure.
Examples about one image depend on each other, so whole images are resampled, not examples (a cluster bootstrap).
"""

import numpy as np

RESAMPLES = 1000


def ratio(sums):
    """[..., 2] sums of hits and tries -> [...] hits / tries; nan if there were no tries."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def measured(rows, pictures, value=ratio, seed=0):
    """{"value", "n", "interval": [low, high]} of a figure.

    Args:
        rows: [n, k] numbers, a row for each example.
        pictures: n keys; examples with the same one are drawn together.
        value: function of summed rows, [..., k] -> [...]; by default hits / tries.
        seed: for the resampling: the same rows have the same interval.

    "value" and "interval" are None if nothing was tried (if no object was named, for example).

    Raises:
        ValueError: no examples, or not one key for each.
    """
    rows = np.asarray(rows, dtype=float)
    if len(rows) == 0 or len(rows) != len(pictures):
        raise ValueError(f"found {len(rows)} examples and {len(pictures)} pictures; expected one for each, and at least one")
    found = float(value(rows.sum(0)))
    if not np.isfinite(found):
        return {"value": None, "n": len(rows), "interval": None}
    if value is ratio and len(set(pictures)) == len(rows) and np.isin(rows[:, 0], (0, 1)).all() and (rows[:, 1] == 1).all():
        return {"value": found, "n": len(rows), "interval": _wilson(int(rows[:, 0].sum()), len(rows))}
    return {"value": found, "n": len(rows), "interval": _interval(_by_picture(rows, pictures), value, seed)}


def median(sums):
    """[..., k] counts of the values 0 to k - 1 -> [...] their median; rows of `one_hot` make them."""
    seen = np.cumsum(sums, -1)
    half = seen[..., -1:] / 2
    return (np.argmax(seen >= half, -1) + np.argmax(seen > half, -1)) / 2


def one_hot(numbers):
    """[n] non-negative integers -> [n, highest + 1] rows, each with a 1 at its number."""
    return np.eye(max(numbers) + 1)[numbers]


def difference(rows, other_rows, pictures, value=ratio, seed=0):
    """`measured` of the first figure minus the second, for two models asked the same: both rows are drawn together."""
    width = np.asarray(rows).shape[1]
    both = np.hstack([np.asarray(rows, dtype=float), np.asarray(other_rows, dtype=float)])
    return measured(both, pictures, lambda sums: value(sums[..., :width]) - value(sums[..., width:]), seed)


def _wilson(hits, n):
    from scipy.stats import binomtest  # not at the top: loading a metric should not need scipy

    low, high = binomtest(hits, n).proportion_ci(method="wilson")
    return [float(low), float(high)]


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
