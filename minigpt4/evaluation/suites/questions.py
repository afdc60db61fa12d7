"""Suites of questions with known answers: POPE, AOK-VQA, GQA."""

from ...metrics import pope
from ...metrics.vqa import chosen, short_answer, soft_accuracy
from .. import data_files
from .base import Figure, Suite

VQA = "Based on the image, respond to this question with a short answer: {}"


class Pope(Suite):
    """POPE: is this object there? There is one file per sampling of absent objects (random, popular, adversarial)."""

    def build(self):
        self.labels = {}
        found = self.need("pope")["pope"]
        chosen_images = set(
            self.limited(data_files.field(e, "image", str, path) for path, content in found for e in content)
        )
        for path, content in found:
            way = next((name for name in ("random", "popular", "adversarial") if name in path.stem), path.stem)
            for entry in content:
                image, label = (
                    data_files.field(entry, "image", str, path),
                    data_files.field(entry, "label", str, path).lower(),
                )
                if label not in ("yes", "no"):
                    raise ValueError(f"{path}: label {label!r}, expected yes or no")
                if image in chosen_images:
                    identity = f"{way}/{data_files.field(entry, 'question_id', (int, str), path)}"
                    self.labels[identity] = label
                    self.ask(image, data_files.field(entry, "text", str, path), 40, identity)

    def figures(self, said, verdicts=None):
        ways = {}
        for way, asked in self.by_way().items():
            rows = pope.pope_rows([said[r.id] for r in asked], [self.labels[r.id] for r in asked])
            images = [request.image for request in asked]
            ways[way] = {name: Figure(rows[name], images, value) for name, value in pope.VALUES.items()}
        return ways

    def truth(self, request):
        return self.labels[request.id]

    def remark(self, request, answer):
        return "right" if pope.said(answer) == self.labels[request.id] else "wrong"


class Vqa(Suite):
    """AOK-VQA and GQA, by what the model writes and, if there are candidates, by which one it finds likeliest.

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
        identity, question = (
            data_files.field(entry, "question_id", str, path),
            data_files.field(entry, "question", str, path),
        )
        choices = _texts(entry, "choices", path)
        right = entry.get("correct_choice_idx")
        if type(right) is not int or not 0 <= right < len(choices):
            raise ValueError(
                f"{path}: question {identity} has correct_choice_idx {right!r}, expected a choice's index; the test split "
                "as published has no answers"
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
        question, answer = data_files.field(entry, "question", str, path), data_files.field(entry, "answer", str, path)
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
        if request.candidates:  # the answer is one of them verbatim
            return answer == truth["answers"][0]
        return soft_accuracy(answer, truth["answers"])

    def figures(self, said, verdicts=None):
        ways = {}
        for way, asked in self.by_way().items():
            ways[way] = {"accuracy": self._shares(said, self._score, asked)}
        return ways

    def truth(self, request):
        truth = self.truths[request.id]
        return truth["choices"][truth["right"]] if "choices" in truth else ", ".join(dict.fromkeys(truth["answers"]))

    def remark(self, request, answer):
        read = "" if request.candidates or "choices" in self.truths[request.id] else f", read as {short_answer(answer)!r}"
        return f"{float(self._score(request, answer)):.0%}{read}"


def _dict(entry, path):
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: a question is {entry!r:.60}, expected an object")
    return entry


def _texts(entry, name, path):
    texts = data_files.field(entry, name, list, path)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{path}: question {entry.get('question_id')!r} has {name} {texts!r:.60}, expected texts")
    return texts


def _vqa_image(kind, entry, path):
    if kind == "gqa":
        return f"{data_files.field(entry, 'imageId', str, path)}.jpg"
    return f"{data_files.field(entry, 'image_id', int, path):012}.jpg"  # COCO 2017's names


def _alternatives(entry):
    """The answers that a GQA question names, from its program: choose color, argument "red|blue"; () for others."""
    program = entry.get("semantic")
    argument = str(program[-1].get("argument", "")) if isinstance(program, list) and program else ""
    listed = next((part for part in argument.split(",") if "|" in part), "")
    return tuple(part.strip() for part in listed.split("|")) if listed else ()
