"""What each suite asks, and what the answers are worth. `SUITES` has them by name.

A suite holds `requests` and `pictures`; `figures(said)` makes rows of sums of the answers, from which the runner takes
values and intervals. `judged` suites also need verdicts: of an LLM, or of a person.
"""

import random
import re
from typing import NamedTuple

from ..metrics import captions as caption_metric
from ..metrics import composed, pope
from ..metrics.chair import KINDS as COCO_KINDS
from ..metrics.chair import chair_rows, named_kinds
from ..metrics.composed import HELD_OUT, NOTO_FONT, SHIFT
from ..metrics.failures import KINDS as FAILURES
from ..metrics.failures import failure
from ..metrics.statistics import ratio
from ..metrics.vqa import chosen, short_answer, soft_accuracy
from ..processing.scenes import ARTWORK_LICENSE, draw, noto, openmoji, scenes
from . import files

DETAIL, POEM = (
    "Describe the image in detail.",
    "Can you write a beautiful poem about this image?",
)  # the paper's, for failures
DESCRIBE = "Describe this image in detail."
CHAIR_WAYS = {
    "long": ("Please describe this image as detailed as possible.", 300),
    "short": ("Please describe the image shortly and precisely, in less than 20 words.", 60),
}
SHORT = "Describe this image in one short sentence."
VQA = "Based on the image, respond to this question with a short answer: {}"
ABILITIES = {
    "memes": "Explain why this meme is funny.",
    "recipes": "How should I make something like this?",
    "advertisements": "Help me draft a professional advertisement for this.",
    "poems": "Can you craft a beautiful poem about this image?",
}


class Request(NamedTuple):
    """One thing to ask.

    id: unique in the suite. image: the picture's name. instruction: in the chat form; None is the caption form of stage 1.
    candidates: answers to choose from by likelihood; without any, the model writes its answer.
    """

    id: str
    image: str
    instruction: str | None
    max_new_tokens: int = 0
    candidates: tuple = ()


class Figure(NamedTuple):
    """Rows of sums and the picture of each, as `statistics.measured` takes them."""

    rows: list
    pictures: list
    value: object = ratio


class Options(NamedTuple):
    """What a person may choose: data and images (paths or Hub ids), limit (pictures), seed, max_new_tokens (or None)."""

    data: tuple = ()
    images: str | None = None
    limit: int | None = None
    seed: int = 0
    max_new_tokens: int | None = None


class Suite:
    """Base: reads the options, keeps the requests whole."""

    judged, by_person = False, False  # whether verdicts are needed, and whether a person's will do

    def __init__(self, options):
        self.options, self.requests = options, []
        self.paths = [files.local(name) for name in options.data]
        self.build()
        self._check()

    def build(self):
        """Sets `pictures`, `data` (what it is called) and `requests`."""
        raise NotImplementedError

    def figures(self, said, verdicts=None):
        """{way: {figure: Figure}} of {request id: answer}, and of {request id: verdict} where a judge reads."""
        raise NotImplementedError

    def measure(self, model, processor):
        """Figures that are not of answers."""
        return {}

    def truth(self, request):
        """What is known of a request's picture, for the report."""
        return ""

    def remark(self, request, answer):
        """What the suite found of one answer, for the report."""
        return ""

    @property
    def n(self):
        """How many pictures are asked about."""
        return len({request.image for request in self.requests})

    def ask(self, image, instruction, max_new_tokens, identity, **more):
        """Adds a request."""
        longest = self.options.max_new_tokens or max_new_tokens
        self.requests.append(Request(identity, image, instruction, longest, **more))

    def need(self, *kinds):
        """The data files of these kinds (see `files.find`), and sets `pictures` and `data`."""
        if not self.paths:
            raise ValueError(f"this suite needs --data: {' or '.join(files.KINDS[kind] for kind in kinds)}")
        found = files.find(self.paths, *kinds)
        first = self.paths[0]
        folder = first if first.is_dir() else first.parent
        self.pictures = files.Folder(files.local(self.options.images) if self.options.images else _images(folder))
        self.data = ", ".join(path.name for kind in found.values() for path, _ in kind)
        return found

    def limited(self, pictures):
        """The pictures to ask about: all, or `limit` of them drawn at random, sorted."""
        pictures, limit = sorted(set(pictures)), self.options.limit
        if limit is None:
            return pictures
        if limit > len(pictures):
            raise ValueError(f"--limit is {limit}, but there are {len(pictures)} pictures; expected no more")
        return sorted(random.Random(self.options.seed).sample(pictures, limit))

    def _check(self):
        if not self.requests:
            raise ValueError(f"{self.data}: nothing to ask (n = 0); expected at least one picture and question")
        seen = set()
        for request in self.requests:
            if request.id in seen:
                raise ValueError(f"{self.data}: id {request.id!r} comes twice; expected each once")
            seen.add(request.id)
        self.pictures.check([request.image for request in self.requests])

    def _shares(self, said, hit, requests=None):
        """A Figure of one share: hit(request, answer) -> bool."""
        requests = self.requests if requests is None else requests
        return Figure([[hit(r, said[r.id]), 1] for r in requests], [r.image for r in requests])


def _images(folder):
    return folder / "images" if (folder / "images").is_dir() else folder


class Failures(Suite):
    """Failures of descriptions and poems (the paper's table: 35% -> 2%, 32% -> 1%); on composed scenes without --data."""

    def build(self):
        longest = 160
        if self.paths:
            self.pictures = files.Folder(self.paths[0])
            names = self.limited(self.pictures.names()) if self.paths[0].is_dir() else []
            self.data, self.rows, longest = f"pictures of {self.paths[0].name}", {}, 300
        else:
            self.pictures = Scenes(self.options.limit or HELD_OUT, self.options.seed)
            names, self.rows, self.data = list(self.pictures.rows), self.pictures.rows, self.pictures.data
        for way, instruction in (("descriptions", DETAIL), ("poems", POEM)):
            for name in names:
                self.ask(name, instruction, longest, f"{way}/{name}")

    def figures(self, said, verdicts=None):
        ways = {}
        for way in ("descriptions", "poems"):
            asked = [request for request in self.requests if request.id.startswith(way)]
            found = {request.id: failure(said[request.id], request.instruction) for request in asked}
            images = [request.image for request in asked]
            ways[way] = {"failures": Figure([[found[r.id] is not None, 1] for r in asked], images)}
            for kind in FAILURES:
                ways[way][kind] = Figure([[found[r.id] == kind, 1] for r in asked], images)
            if way == "descriptions" and self.rows:
                recall = [composed.named_objects(self.rows[r.image], said[r.id]) for r in asked]
                ways[way]["object_recall"] = Figure(recall, images)
            ways[way]["words"] = Figure([[len(said[r.id].split()), 1] for r in asked], images)
        return ways

    def truth(self, request):
        return self.rows[request.image]["text"] if self.rows else ""

    def remark(self, request, answer):
        return failure(answer, request.instruction) or ""


class Captions(Suite):
    """CIDEr, BLEU-4 and ROUGE-L of short captions against COCO's, asked for in words and in the form of stage 1."""

    def build(self):
        [(path, content), *more] = self.need("captions")["captions"]
        _only_one(path, more)
        self.references = files.coco_captions(content, path)
        for image in self.limited(self.references):
            self.ask(image, SHORT, 40, f"short/{image}")
            self.ask(image, None, 32, f"caption/{image}")

    def figures(self, said, verdicts=None):
        ways = {}
        for way in ("short", "caption"):
            asked = [request for request in self.requests if request.id.startswith(f"{way}/")]
            first = [re.split(r"(?<=[.!?])\s", said[request.id].strip())[0] for request in asked]
            rows = caption_metric.caption_rows(first, [self.references[request.image] for request in asked])
            images = [request.image for request in asked]
            ways[way] = {name: Figure(rows[name], images, value) for name, value in caption_metric.VALUES.items()}
            ways[way]["words"] = Figure([[len(text.split()), 1] for text in first], images)
        return ways

    def truth(self, request):
        return "\n".join(self.references[request.image])


class Coverage(Suite):
    """How many of a picture's captions a description covers, read by an LLM (the paper: 2.22 of COCO's 5)."""

    judged = True
    _SYSTEM = (
        "You are given a description of a picture under `Test:` and numbered captions of the same picture. Tell for each "
        "caption whether its information is in the test description. Answer with one line for each caption, `1: yes` or "
        "`1: no`, and with nothing else."
    )

    def build(self):
        [(path, content), *more] = self.need("captions")["captions"]
        _only_one(path, more)
        self.references = files.coco_captions(content, path)
        for image in self.limited(self.references):
            self.ask(image, DESCRIBE, 300, f"description/{image}")

    def question(self, request, answer):
        """Messages for the judge; each text on one line, so that a description cannot add a line of its own."""
        lines = [f"Test: {' '.join(answer.split())}"]
        lines += [f"{i}: {' '.join(text.split())}" for i, text in enumerate(self.references[request.image], 1)]
        return [{"role": "system", "content": self._SYSTEM}, {"role": "user", "content": "\n".join(lines)}]

    def verdict(self, request, reply):
        """[bool for each caption] of a judge's reply, or None of one that does not have just a line for each."""
        lines = re.findall(r"^\W*(\d+)\W*(yes|no)\b", reply.lower(), re.MULTILINE)
        wanted = [str(i) for i in range(1, len(self.references[request.image]) + 1)]
        return [word == "yes" for _, word in lines] if [number for number, _ in lines] == wanted else None

    def figures(self, said, verdicts=None):
        images = [request.image for request in self.requests]
        covered = [[sum(verdicts[r.id] or []), 1] for r in self.requests]
        shares = [[sum(verdicts[r.id] or []), len(self.references[r.image])] for r in self.requests]
        words = [[len(said[r.id].split()), 1] for r in self.requests]
        return {
            "descriptions": {
                "captions_covered": Figure(covered, images),
                "share_covered": Figure(shares, images),
                "words": Figure(words, images),
            }
        }

    def truth(self, request):
        return "\n".join(self.references[request.image])


class Chair(Suite):
    """CHAIR of long and short descriptions (the paper: CHAIRi 9.6 at 175 words, 7.2 at 28.8)."""

    def build(self):
        found = self.need("instances", "captions")
        if not found["instances"]:
            raise ValueError(f"{self.data}: CHAIR needs {files.KINDS['instances']}; captions add to them")
        [(path, content), *more] = found["instances"]
        _only_one(path, more)
        self.kinds = files.coco_instances(content, path)
        unknown = set().union(*self.kinds.values()) - set(COCO_KINDS)
        if unknown:
            raise ValueError(f"{path}: category {min(unknown)!r} is none of COCO's 80")
        for path, content in found["captions"]:  # what people named is there, too, as in the authors' code
            for image, texts in files.coco_captions(content, path).items():
                if image in self.kinds:
                    self.kinds[image] |= {kind for text in texts for kind in named_kinds(text)}
        for way, (instruction, longest) in CHAIR_WAYS.items():
            for image in self.limited(self.kinds):
                self.ask(image, instruction, longest, f"{way}/{image}")

    def figures(self, said, verdicts=None):
        ways = {}
        for way in CHAIR_WAYS:
            asked = [request for request in self.requests if request.id.startswith(f"{way}/")]
            rows = chair_rows([said[r.id] for r in asked], [self.kinds[r.image] for r in asked])
            ways[way] = {name: Figure(values, [r.image for r in asked]) for name, values in rows.items()}
        return ways

    def truth(self, request):
        return ", ".join(sorted(self.kinds[request.image]))

    def remark(self, request, answer):
        invented = sorted(set(named_kinds(answer)) - self.kinds[request.image])
        return f"not there: {', '.join(invented)}" if invented else ""


class Pope(Suite):
    """POPE: is this object there? One file for each way of drawing absent objects (random, popular, adversarial)."""

    def build(self):
        self.labels = {}
        found = self.need("pope")["pope"]
        chosen_images = set(self.limited(files.field(e, "image", str, path) for path, content in found for e in content))
        for path, content in found:
            way = next((name for name in ("random", "popular", "adversarial") if name in path.stem), path.stem)
            for entry in content:
                image, label = files.field(entry, "image", str, path), files.field(entry, "label", str, path).lower()
                if label not in ("yes", "no"):
                    raise ValueError(f"{path}: label {label!r}, expected yes or no")
                if image in chosen_images:
                    identity = f"{way}/{files.field(entry, 'question_id', (int, str), path)}"
                    self.labels[identity] = label
                    self.ask(image, files.field(entry, "text", str, path), 40, identity)

    def figures(self, said, verdicts=None):
        ways = {}
        for way in dict.fromkeys(request.id.partition("/")[0] for request in self.requests):
            asked = [request for request in self.requests if request.id.startswith(f"{way}/")]
            rows = pope.pope_rows([said[r.id] for r in asked], [self.labels[r.id] for r in asked])
            images = [request.image for request in asked]
            ways[way] = {name: Figure(rows[name], images, value) for name, value in pope.VALUES.items()}
        return ways

    def truth(self, request):
        return self.labels[request.id]

    def remark(self, request, answer):
        return "right" if pope.said(answer) == self.labels[request.id] else "wrong"


class Vqa(Suite):
    """AOK-VQA and GQA, by what the model writes and, where the answers are given, by which it finds likeliest.

    AOK-VQA: "choices" (the choice named in the answer), "choices by likelihood" and "direct answers" (soft accuracy; as in
    the authors' script, without the questions that they mark difficult_direct_answer). GQA: "GQA" (exact match of the answer
    in the sentence) and, for questions that are answered yes or no or name their alternatives, "GQA by likelihood".
    """

    def build(self):
        self.truths, found = {}, self.need("aokvqa", "gqa")
        entries = [("aokvqa", path, entry) for path, content in found["aokvqa"] for entry in content]
        for path, content in found["gqa"]:
            entries += [("gqa", path, {**_dict(entry, path), "question_id": key}) for key, entry in content.items()]
        named = [(_vqa_image(kind, entry, path), kind, path, entry) for kind, path, entry in entries]
        chosen_images = set(self.limited(image for image, *_ in named))
        for image, kind, path, entry in named:
            if image in chosen_images:
                (self._aokvqa if kind == "aokvqa" else self._gqa)(image, entry, path)

    def _aokvqa(self, image, entry, path):
        identity, question = files.field(entry, "question_id", str, path), files.field(entry, "question", str, path)
        choices = _texts(entry, "choices", path)
        right = entry.get("correct_choice_idx")
        if type(right) is not int or not 0 <= right < len(choices):
            raise ValueError(
                f"{path}: question {identity} has correct_choice_idx {right!r}, expected that of a choice; the test split as "
                "published has no answers"
            )
        listed = f"{VQA.format(question)} Choose one of: {', '.join(choices)}."
        self._add("choices", identity, image, listed, {"choices": choices, "right": right})
        self._add(
            "choices by likelihood", identity, image, VQA.format(question), {"answers": [choices[right]]}, tuple(choices)
        )
        if entry.get("direct_answers") and entry.get("difficult_direct_answer") is not True:
            people = _texts(entry, "direct_answers", path)
            self._add("direct answers", identity, image, VQA.format(question), {"answers": people})

    def _gqa(self, image, entry, path):
        question, answer = files.field(entry, "question", str, path), files.field(entry, "answer", str, path)
        self._add("GQA", entry["question_id"], image, VQA.format(question), {"answers": [answer]})
        alternatives = ("yes", "no") if answer in ("yes", "no") else _alternatives(entry)
        if answer in alternatives:
            self._add(
                "GQA by likelihood", entry["question_id"], image, VQA.format(question), {"answers": [answer]}, alternatives
            )

    def _add(self, way, identity, image, instruction, truth, candidates=()):
        identity = f"{way}/{identity}"
        self.truths[identity] = truth
        self.ask(image, instruction, 40, identity, candidates=candidates)

    def _score(self, request, answer):
        truth = self.truths[request.id]
        if "choices" in truth:
            return chosen(answer, truth["choices"]) == truth["right"]
        if request.candidates:  # the answer is one of them as it stands
            return answer == truth["answers"][0]
        return soft_accuracy(answer, truth["answers"])

    def figures(self, said, verdicts=None):
        ways = {}
        for way in dict.fromkeys(request.id.partition("/")[0] for request in self.requests):
            asked = [request for request in self.requests if request.id.startswith(f"{way}/")]
            ways[way] = {"accuracy": self._shares(said, self._score, asked)}
        return ways

    def truth(self, request):
        truth = self.truths[request.id]
        return truth["choices"][truth["right"]] if "choices" in truth else ", ".join(dict.fromkeys(truth["answers"]))

    def remark(self, request, answer):
        read = "" if request.candidates or "choices" in self.truths[request.id] else f", read as {short_answer(answer)!r}"
        return f"{float(self._score(request, answer)):.0%}{read}"


class Advanced(Suite):
    """Memes, recipes, advertisements, poems: was the request fulfilled? Read by an LLM or a person (the paper: 65 of 100).

    --data is a folder with a folder of pictures for each: memes/, recipes/, advertisements/, poems/ (the paper: 25 each).
    """

    judged, by_person = True, True
    _SYSTEM = (
        "You see a picture, a request about it and an answer. Tell whether the answer fulfils the request for this very "
        "picture. Answer with `yes` or `no` and with nothing else."
    )

    def build(self):
        if not self.paths or not self.paths[0].is_dir():
            raise ValueError(f"this suite needs --data: a folder with {', '.join(f'{name}/' for name in ABILITIES)}")
        self.pictures, self.data = files.Folder(self.paths[0]), f"pictures of {self.paths[0].name}"
        names = self.limited(self.pictures.names())
        for ability, instruction in ABILITIES.items():
            of_ability = [name for name in names if name.startswith(f"{ability}/")]
            if not of_ability:
                raise ValueError(f"{self.paths[0]}: no pictures in {ability}/; expected some (the paper: 25)")
            for name in of_ability:
                self.ask(name, instruction, 300, name)

    def question(self, request, answer):
        """Messages for the judge, with the picture."""
        from .report import data_url

        told = f"Request: {request.instruction}\nAnswer: {answer}"
        picture = {"type": "image_url", "image_url": {"url": data_url(self.pictures.open(request.image), side=768)}}
        return [
            {"role": "system", "content": self._SYSTEM},
            {"role": "user", "content": [picture, {"type": "text", "text": told}]},
        ]

    def verdict(self, request, reply):
        """True or False of a judge's reply, or None of one that says neither."""
        word = re.match(r"\W*(yes|no)\b", reply.lower())
        return word[1] == "yes" if word else None

    def figures(self, said, verdicts=None):
        ways = {"all": {"fulfilled": self._shares(verdicts, lambda _, verdict: verdict is True)}}
        for ability in ABILITIES:
            asked = [request for request in self.requests if request.id.startswith(f"{ability}/")]
            ways[ability] = {"fulfilled": self._shares(verdicts, lambda _, verdict: verdict is True, asked)}
        return ways


class Scenes:
    """Held-out composed scenes as pictures: "0007" in the artwork they are learned in, "noto-0007" in another."""

    license = ARTWORK_LICENSE

    def __init__(self, n, seed):
        columns = scenes(n, seed, "test").with_format(None)[:]
        values = zip(*columns.values(), strict=True)
        self.rows = {f"{i:04}": dict(zip(columns, row, strict=True)) for i, row in enumerate(values)}
        self.data = f"composed scenes, held out, seed {seed}"

    def check(self, names):
        """Every scene can be drawn."""

    def open(self, name):
        """Draws a scene."""
        return draw(self.rows[name.removeprefix("noto-")], noto if name.startswith("noto-") else openmoji)


class Composed(Suite):
    """Held-out composed scenes: captions, descriptions, questions; with pictures swapped; in artwork never seen.

    Swapped, each scene's question is asked about another scene's picture: what is right then needed no picture. A linear
    probe of the frozen vision features (probe.py) tells what one linear layer could see at best.
    """

    def build(self):
        if self.paths:
            raise ValueError(f"{self.paths[0]}: this suite composes its own scenes; leave --data out, --seed chooses them")
        n = self.options.limit or HELD_OUT
        if n <= SHIFT:
            raise ValueError(f"--limit is {n}; swapping pictures needs more than {SHIFT} scenes")
        self.pictures = Scenes(n, self.options.seed)
        self.rows, self.data, self.asked = self.pictures.rows, self.pictures.data, {}
        names = list(self.rows)
        for i, name in enumerate(names):
            self.ask(name, None, 32, f"captions/{name}")
            for way, image in (("", name), ("swapped ", names[(i + SHIFT) % n]), ("unseen ", f"noto-{name}")):
                if way != "unseen " or NOTO_FONT.is_file():
                    self._talk(way, name, image)

    @property
    def n(self):
        """How many scenes; those of the other artwork are the same."""
        return len(self.rows)

    def _talk(self, way, name, image):
        description, *questions = self.rows[name]["conversation"]
        self.ask(image, description["instruction"], 48, f"{way}descriptions/{name}")
        for question in questions:
            identity = f"{way}questions/{name}/{question['question']}"
            self.asked[identity] = question
            self.ask(image, question["instruction"], 48, identity)

    def figures(self, said, verdicts=None):
        names = list(self.rows)
        captions = [said[f"captions/{name}"] for name in names]
        ways = {
            "captions": self._captions(captions),
            "captions, swapped": self._captions(captions[SHIFT:] + captions[:SHIFT]),
        }
        for way in ("", "swapped ", "unseen "):
            if not any(request.id.startswith(f"{way}descriptions/") for request in self.requests):
                continue
            told = f", {'artwork never seen' if way == 'unseen ' else way.strip()}" if way else ""
            ways[f"questions{told}"] = self._questions(f"{way}questions/", said)
            said_of = {name: said[f"{way}descriptions/{name}"] for name in names}
            recall = [composed.named_objects(self.rows[name], said_of[name]) for name in names]
            ways[f"descriptions{told}"] = {"object_recall": Figure(recall, names)}
            answers = [(r.id.split("/")[1], said[r.id]) for r in self.requests if re.match(rf"{way}(?:desc|quest)", r.id)]
            failed = [[failure(text) is not None, 1] for _, text in answers]
            ways[f"descriptions and questions{told}"] = {"failures": Figure(failed, [name for name, _ in answers])}
        return ways

    def measure(self, model, processor):
        from .probe import linear_probe

        return {"linear probe": linear_probe(model, processor, self.pictures, self.options.seed)}

    def _captions(self, captions):
        hits = [(name, composed.caption_hits(self.rows[name], text)) for name, text in zip(self.rows, captions, strict=True)]
        figures = dict.fromkeys(figure for _, scene in hits for figure in scene)
        return {f: Figure([s[f] for _, s in hits if f in s], [name for name, s in hits if f in s]) for f in figures}

    def _questions(self, way, said):
        asked = {identity: question for identity, question in self.asked.items() if identity.startswith(way)}
        kinds = dict.fromkeys(question["question"] for question in asked.values())
        figures = {"answered_right": self._right(asked, said)}
        for kind in sorted(kinds):
            figures[kind] = self._right({i: q for i, q in asked.items() if q["question"] == kind}, said)
        return figures

    @staticmethod
    def _right(asked, said):
        rows = [[composed.is_right(question, said[identity]), 1] for identity, question in asked.items()]
        return Figure(rows, [identity.split("/")[1] for identity in asked])

    def truth(self, request):
        return self.rows[request.id.split("/")[1]]["text"]

    def remark(self, request, answer):
        if request.id in self.asked:
            return "right" if composed.is_right(self.asked[request.id], answer) else "wrong"
        return failure(answer) or "" if request.instruction else ""


SUITES = {
    "failures": Failures,
    "coverage": Coverage,
    "captions": Captions,
    "chair": Chair,
    "pope": Pope,
    "vqa": Vqa,
    "advanced": Advanced,
    "composed": Composed,
}


def load_suite(name, options):
    """The suite of a name, ready to be asked.

    Raises:
        ValueError: one line: no such suite, no such data, another benchmark's file, missing pictures, ids that come twice,
            nothing to ask.
    """
    if name not in SUITES:
        raise ValueError(f"--suite is {name!r}; expected one of {', '.join(SUITES)}")
    for option in ("limit", "max_new_tokens"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} is {value}; expected 1 or more")
    suite = SUITES[name](options)
    suite.name = name
    return suite


def _only_one(path, more):
    if more:
        raise ValueError(f"{path} and {more[0][0]}: two files of one kind; name one of them with --data")


def _dict(entry, path):
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: a question is {entry!r:.60}, expected an object")
    return entry


def _texts(entry, name, path):
    texts = files.field(entry, name, list, path)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{path}: question {entry.get('question_id')!r} has {name} {texts!r:.60}, expected texts")
    return texts


def _vqa_image(kind, entry, path):
    if kind == "gqa":
        return f"{files.field(entry, 'imageId', str, path)}.jpg"
    return f"{files.field(entry, 'image_id', int, path):012}.jpg"  # COCO 2017's names


def _alternatives(entry):
    """The answers that a GQA question names, from its program: choose color, argument "red|blue"; () for others."""
    program = entry.get("semantic")
    argument = str(program[-1].get("argument", "")) if isinstance(program, list) and program else ""
    listed = next((part for part in argument.split(",") if "|" in part), "")
    return tuple(part.strip() for part in listed.split("|")) if listed else ()
