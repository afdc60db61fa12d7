"""Held-out composed scenes, their features, and the questions about them."""

import random

from ..inference.generation import answers, candidate_losses, caption_prompt, chat_prompt
from ..metrics import composed
from ..processing.data.scenes import BACKGROUNDS, NUMBERS, OBJECTS, answer_sentence, combination

CHOICES = 4  # as in AOK-VQA


class HeldOut:
    """Questions to a model about scenes that it was not trained on.

    Args:
        pictures: `scenes(...)`.
        features: [scenes, Q, C], the frozen vision part's output for each; may be set later.
    """

    def __init__(self, pictures, features=None):
        columns = pictures.with_format(None)[:]
        self.pictures = pictures
        self.rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        self.features = features
        self.descriptions = [row["conversation"][0] for row in self.rows]
        self.questions = [{**asked, "scene": i} for i, row in enumerate(self.rows) for asked in row["conversation"][1:]]

    def captions(self, model, processor):
        """A stage-1 caption of each scene."""
        prompts = [caption_prompt(processor)] * len(self.rows)
        return answers(model, processor, prompts, self.features, max_new_tokens=32, stop="\n", desc="captions")

    def conversation(self, model, processor, max_new_tokens=48):
        """(descriptions, answers) in the chat form."""
        asked = [*self.descriptions, *self.questions]
        prompts = [chat_prompt(processor, entry["instruction"]) for entry in asked]
        scene = [*range(len(self.rows)), *(question["scene"] for question in self.questions)]
        said = answers(model, processor, prompts, self.features[scene], max_new_tokens=max_new_tokens, desc="answers")
        return said[: len(self.rows)], said[len(self.rows) :]

    def choices(self, model, processor):
        """Which of `candidates` the model finds likeliest, for each question; 0 is the true one."""
        instructions = [question["instruction"] for question in self.questions]
        features = self.features[[question["scene"] for question in self.questions]]
        losses = candidate_losses(model, processor, instructions, self.candidates(), features)
        return [of_one.index(min(of_one)) for of_one in losses]

    def candidates(self):
        """The true answer to each question and three others of its kind."""
        kinds = {"background": BACKGROUNDS.keys(), "count": NUMBERS.values()}
        found = []
        for question in self.questions:
            row, kind, [truth] = self.rows[question["scene"]], question["question"], question["answer"]
            wrong = sorted({*kinds.get(kind, OBJECTS)} - {truth, *row["objects"]})
            wrong = random.Random(f"{question['scene']} {kind}").sample(wrong, CHOICES - 1)
            found.append([answer_sentence(row, kind, value) for value in (truth, *wrong)])
        return found

    def scores(self, said):
        """Scores of what `conversation` returned."""
        descriptions, replies = said
        return composed.answer_scores(self.rows, descriptions, self.questions, replies)

    def assert_disjoint(self, pictures):
        """No combination of objects, and no layout, is both trained on and measured."""
        rows = pictures.with_format(None).select_columns(["kind", "objects", "count", "background", "boxes"])
        for key in (combination, lambda row: (tuple(row["objects"]), str(row["boxes"]))):
            shared = {key(row) for row in rows} & {key(row) for row in self.rows}
            assert not shared, f"held-out scenes share {len(shared)} combinations or layouts with the training scenes"
