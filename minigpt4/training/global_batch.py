"""How a step's examples are split: a recipe sets their number, the available processes determine the rest.

train.global_batch = 256, 4 processes, at most 64 at a time -> 64 on each, none accumulated
train.global_batch = 256, 1 process,   at most 64 at a time -> 64, four batches accumulated
"""

import os
from dataclasses import replace


def share_batch(recipe, processes):
    """The recipe with `train.batch_size` and `train.accumulation` set for a number of processes.

    Each process's share is divided into equal batches, as large as `train.max_batch_size` allows. A recipe without
    `train.global_batch` is returned unchanged.

    Raises:
        ValueError: the examples of a step cannot be split equally; with the numbers of processes that work.
    """
    train = recipe.train
    if not train.global_batch:
        return recipe
    share, rest = divmod(train.global_batch, processes)
    if rest:
        raise ValueError(
            f"train.global_batch is {train.global_batch}, which {processes} processes cannot share equally; use "
            f"{_or(_divisors(train.global_batch, processes))} of them with --set train.processes=N, or set another "
            "train.global_batch"
        )
    size = _divisors(share, train.max_batch_size)[-1]
    return replace(recipe, train=replace(train, batch_size=size, accumulation=share // size))


def take_part(most):
    """Whether this process takes part in a run, if a launcher may have started more than needed.

    For those that do, it sets the launcher's own variable (WORLD_SIZE) to their number; call it before anything reads
    that. The others may exit.

    Args:
        most: `train.processes` of a recipe; 0: all.
    """
    started, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if not most or started <= most:
        return True
    os.environ["WORLD_SIZE"] = str(most)
    if rank == 0:
        print(f"the recipe uses {most} of the {started} processes that were started (train.processes)")
    return rank < most


def _divisors(number, most):
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def _or(numbers):
    return " or ".join(", ".join(map(str, numbers)).rsplit(", ", 1))
