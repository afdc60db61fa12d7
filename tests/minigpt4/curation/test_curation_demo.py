"""The demo's own pieces: what stands in for the reviewer. The demo as a whole takes minutes: `minigpt4 curate --demo`."""

import pytest
import torch

from minigpt4.curation.demo import demo, likelier, sentences


def test_a_text_is_cut_into_sentences_that_end():
    assert sentences('A dog. It says "hello!" Two\ncats?  and then') == ["A dog.", 'It says "hello!"', "Two cats?"]


def test_a_text_is_as_likely_with_the_same_picture_and_less_or_more_with_others(original, processor):
    pictures = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = original.model.get_vision_features(pictures)
    same = likelier(original, processor, "a dog", features[0], features[:1])
    other = likelier(original, processor, "a dog", features[0], features[1:])
    back = likelier(original, processor, "a dog", features[1], features[:1])
    there = likelier(original, processor, "a dog", features[0], features[1:2])
    assert same == pytest.approx(0, abs=1e-5) and abs(other) > 1e-4 and there == pytest.approx(-back, abs=1e-5)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="no model there; `minigpt4 quickstart` trains it"):
        demo(tmp_path / "out", tmp_path / "none")
