"""One curation step in a separate process, for the tests that kill it; imported once, by the process it is forked from."""

import hashlib
import time
from pathlib import Path

import openai  # noqa: F401  the endpoint imports it when it is made

from minigpt4.curation import sample as sampling
from minigpt4.curation.endpoint import Endpoint
from minigpt4.curation.filter import filter_texts
from minigpt4.curation.fix import fix
from minigpt4.curation.generate import Answer, generate
from minigpt4.curation.judge import judge
from minigpt4.curation.pairs import paired, question, sample_pairs
from minigpt4.curation.publish import publish
from minigpt4.curation.store import Store
from minigpt4.curation.verify import DecisionsFile, Desk


def run_step(step, folder, told, url):
    """One step over the store in `folder`; tells when it begins, and in verify tells of each decision."""
    with Store(Path(folder) / "store.sqlite", create=step == "sample") as store, store.only_one(step):
        told.send("ready")
        STEPS[step](store, Path(folder), told, url)


def _sample(store, folder, told, url):
    row = sampling._row

    def slowly(*arguments):  # as from a large folder; 200 small images are read in a moment
        time.sleep(0.003)
        return row(*arguments)

    sampling._row = slowly  # in this process, which samples and ends
    sampling.sample(store, folder / "pictures", 200)


def _generate(store, folder, told, url):
    class Describer:
        """Answers by what is in the pictures, as slowly as a small model."""

        def settings(self):
            return {}

        def pixels(self, images):
            return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]

        def __call__(self, pixels):
            time.sleep(0.03)
            return [Answer(f"A picture {value}.", "More.") for value in pixels]

    generate(store, Describer(), batch_size=2)


def _pairs(store, folder, told, url):
    class Sampler:
        """Answers by what is in the pictures, as slowly as a small model."""

        def settings(self):
            return {}

        def pixels(self, images):
            return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]

        def __call__(self, rows, pixels):
            time.sleep(0.03)
            answers = [(f"A picture {value}.", f"A picture {value} and a ball.") for value in pixels]
            return [paired(row, question(row["picture"]), *two) for row, two in zip(rows, answers, strict=True)]

    sample_pairs(store, Sampler(), batch_size=2)


def _judge(store, folder, told, url):
    judge(store, Endpoint("m", url, concurrency=3, retries=0))


def _fix(store, folder, told, url):
    fix(store, Endpoint("m", url, concurrency=3, retries=0))


def _filter(store, folder, told, url):
    filter_texts(store, batch_size=1)


def _verify(store, folder, told, url):
    file = DecisionsFile(folder / "decisions.jsonl")
    file.load(store)
    desk = Desk(store, file)
    while row := desk.next("ann"):
        desk.decide("ann", row["picture"], "accept", "")
        told.send(row["picture"])


def _publish(store, folder, told, url):
    publish(store, folder / "set", validation=0.2)


STEPS = {
    "sample": _sample,
    "generate": _generate,
    "fix": _fix,
    "filter": _filter,
    "verify": _verify,
    "pairs": _pairs,
    "judge": _judge,
    "publish": _publish,
}
