"""What each suite asks, and how the answers are scored. `SUITES` has them by name.

base.py       requests, figures, options     captions.py    captions, coverage, chair
questions.py  pope, vqa                      writing.py     failures, advanced, abilities
scenes.py     composed, spatial          objects.py     objects
text.py       text

A suite has `requests` and `pictures`; `figures(said)` turns the answers into rows of sums, from which the runner computes
values and intervals. `judged` suites also need verdicts from an LLM or a person.
"""

from .base import Figure, Options, Request, Suite
from .captions import Captions, Chair, Coverage
from .objects import Objects
from .questions import Pope, Vqa
from .scenes import Composed, Scenes, Spatial
from .text import Text
from .writing import POEM, Abilities, Advanced, Failures

__all__ = ["POEM", "SUITES", "Figure", "Options", "Request", "Scenes", "Suite", "load_suite"]

SUITES = {
    "failures": Failures,
    "coverage": Coverage,
    "captions": Captions,
    "chair": Chair,
    "pope": Pope,
    "vqa": Vqa,
    "advanced": Advanced,
    "composed": Composed,
    "objects": Objects,
    "text": Text,
    "spatial": Spatial,
    "abilities": Abilities,
}


def load_suite(name, options):
    """The suite of a name, ready to run.

    Raises:
        ValueError: one line: no such suite, no such data, another benchmark's file, missing images, duplicate ids,
            nothing to ask.
    """
    if name not in SUITES:
        raise ValueError(f"--suite is {name!r}; expected one of {', '.join(SUITES)}")
    for option in ("limit", "max_new_tokens"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} is {value}; expected 1 or more")
    if not 0 <= options.holdout_share < 1:
        raise ValueError(f"--holdout-share is {options.holdout_share}; expected a share from 0 to below 1, such as 0.1")
    suite = SUITES[name](options)
    suite.name = name
    return suite
