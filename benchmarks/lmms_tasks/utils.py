"""What the tasks beside this file share: images that `python benchmarks/lmms.py` wrote, read by the suites' own rules."""

from PIL import Image

from minigpt4.evaluation.suites.text import edits
from minigpt4.metrics import pope


def images(doc):
    """The image of a question."""
    return [Image.open(doc["image"]).convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    """The question as it is."""
    return doc["question"]


def yes_or_no(doc, results):
    """Whether the answer is the right one of yes and no, and whether it is yes (POPE's rules)."""
    said = pope.said(results[0])
    return {"accuracy": float(said == doc["answer"]), "yes_ratio": float(said == "yes")}


def word(doc, results):
    """Whether the answer contains the written word, and how much of it would have to change."""
    distance = edits(doc["answer"], results[0])
    return {"exact": float(distance == 0), "edit_distance": distance}
