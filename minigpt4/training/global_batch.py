"""How a step's examples are shared: a recipe says how many make up a step, the processes at hand say the rest.

train.global_batch = 256, 4 processes, at most 64 at a time -> 64 on each, none accumulated
train.global_batch = 256, 1 process,   at most 64 at a time -> 64, four batches accumulated
"""

import os
from dataclasses import replace


def share_batch(recipe, processes):
    """The recipe with `train.batch_size` and `train.accumulation` as that many processes need them.

    Of all equal batches that make up a process's share, the largest of at most `train.max_batch_size`. A recipe without
    `train.global_batch` is returned as it is.

    Raises:
        ValueError: the examples of a step cannot be shared out equally; with the numbers of processes that can.
    """
    train = recipe.train
    if not train.global_batch:
        return recipe
    share, rest = divmod(train.global_batch, processes)
    if rest:
        raise ValueError(
            f"train.global_batch is {train.global_batch}, which {processes} processes cannot share equally; take "
            f"{_or(_divisors(train.global_batch, processes))} of them with --set train.processes=N, or set another "
            "train.global_batch"
        )
    size = _divisors(share, train.max_batch_size)[-1]
    return replace(recipe, train=replace(train, batch_size=size, accumulation=share // size))


def take_part(most):
    """Whether this process is one of those that a run takes, where a launcher may have started more.

    Those that take part are told how many they are, in the launcher's own words (WORLD_SIZE); call it before anything
    reads these. The others may end at once.

    Args:
        most: `train.processes` of a recipe; 0: all.
    """
    started, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if not most or started <= most:
        return True
    os.environ["WORLD_SIZE"] = str(most)
    if rank == 0:
        print(f"the recipe takes {most} of the {started} processes that were started (train.processes)")
    return rank < most


def _divisors(number, most):
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def _or(numbers):
    return " or ".join(", ".join(map(str, numbers)).rsplit(", ", 1))
