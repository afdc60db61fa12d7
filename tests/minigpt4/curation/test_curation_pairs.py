"""Two sampled answers about each picture: asked as people ask, resumed without repeating, and fit to be compared or not."""

import pytest
from curation import make_store

from minigpt4.curation import pairs as module
from minigpt4.curation.pairs import SAME, Sampler, paired, question, sample_pairs
from minigpt4.inference.generation import chat_prompt
from minigpt4.processing.data.scenes import DETAIL_INSTRUCTIONS


@pytest.fixture
def sampler(original, processor):
    return Sampler(original, processor, "tiny", max_new_tokens=6)


def test_two_different_answers_to_one_of_the_papers_questions_in_the_chat_form(tmp_path, sampler, monkeypatch):
    asked = []

    def listening(model, processor, prompts, *rest, **settings):
        asked.append(prompts)
        return answers(model, processor, prompts, *rest, **settings)

    answers = module.batch_answers
    monkeypatch.setattr(module, "batch_answers", listening)
    with make_store(tmp_path, 4, ("sample",)) as store:
        assert sample_pairs(store, sampler, batch_size=4).done == 4
        rows = store.rows("SELECT * FROM pairs ORDER BY picture")
        assert asked[0] == asked[1] == [chat_prompt(sampler.processor, row["question"]) for row in rows]
        assert {row["question"] for row in rows} <= set(DETAIL_INSTRUCTIONS)
        assert any(row["first"] != row["second"] for row in rows)
        [(settings, count)] = store.runs("pairs")
        assert count == 4 and settings["decoding"]["do_sample"] and settings["decoding"]["temperature"] == 1.0


class Stopping(Sampler):
    """Stops at its second batch."""

    batches = 0

    def __call__(self, rows, pixels):
        self.batches += 1
        if self.batches == 2:
            raise KeyboardInterrupt
        return super().__call__(rows, pixels)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, sampler):
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    with (
        make_store(tmp_path / "whole", 6, ("sample",)) as whole,
        make_store(tmp_path / "stopped", 6, ("sample",)) as stopped,
    ):
        sample_pairs(whole, sampler, 2, seed=5)
        with pytest.raises(KeyboardInterrupt):
            sample_pairs(stopped, Stopping(sampler.model, sampler.processor, "tiny", max_new_tokens=6), 2, seed=5)
        assert stopped.count("pairs") == 2
        assert sample_pairs(stopped, sampler, 2, seed=5).done == 4
        texts = [
            [tuple(row) for row in s.rows("SELECT first, second FROM pairs ORDER BY picture")] for s in (whole, stopped)
        ]
        assert texts[0] == texts[1] and len(set(texts[0])) > 1


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ("A dog is on the grass.", "A dog and a ball are on the grass.", None),
        ("A dog is on the grass.", " A dog is\non the grass. ", SAME),
        ("A dog is on the grass.", "A dog is on the", "fragment"),
        ("", "A dog is on the grass.", "empty"),
        ("A dog is here. A dog is here.", "A dog is on the grass.", "repetition"),
        ("A dog is on the grass.", "I'm sorry, as an AI I see nothing.", "unrelated"),
    ],
)
def test_answers_that_differ_in_more_than_what_they_invent_are_not_compared(first, second, problem):
    assert paired({"picture": "aa"}, "Describe this image in detail.", first, second)["problem"] == problem


def test_a_pictures_question_is_always_the_same_and_all_four_are_asked():
    pictures = [f"{i:064x}" for i in range(40)]
    assert [question(p) for p in pictures] == [question(p) for p in pictures]
    assert {question(p) for p in pictures} == set(DETAIL_INSTRUCTIONS)


def test_counts_of_what_is_not_to_be_compared_are_this_runs(tmp_path, sampler, monkeypatch):
    monkeypatch.setattr(module, "batch_answers", lambda model, processor, prompts, *_, **__: ["A dog."] * len(prompts))
    with make_store(tmp_path, 3, ("sample",)) as store:
        assert sample_pairs(store, sampler).counts == {f"not to be compared ({SAME})": 3}
        assert not sample_pairs(store, sampler).counts
        assert store.pending_count("judge") == 0
