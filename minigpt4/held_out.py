"""Held-out composed scenes, their features, and what is asked about them."""

from .generation import answers, caption_prompt, chat_prompt
from .metrics import composed
from .processing.scenes import combination


class HeldOut:
    """What a model is asked about scenes that it was not trained on.

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

    def scores(self, said):
        """What `conversation` returned, measured."""
        descriptions, replies = said
        return composed.answer_scores(self.rows, descriptions, self.questions, replies)

    def assert_disjoint(self, pictures):
        """No combination of objects, and no layout, is both trained on and measured."""
        rows = pictures.with_format(None).select_columns(["kind", "objects", "count", "background", "boxes"])
        for key in (combination, lambda row: (tuple(row["objects"]), str(row["boxes"]))):
            shared = {key(row) for row in rows} & {key(row) for row in self.rows}
            assert not shared, f"held-out scenes share {len(shared)} combinations or layouts with the training scenes"
