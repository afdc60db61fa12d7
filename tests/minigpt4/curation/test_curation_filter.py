"""The rules: each rejects what it is meant for and names itself."""

import pytest
from curation import description, make_store

from minigpt4.curation.filter import MIN_WORDS, Scorer, bands, filter_texts, shingles, text_rule

GOOD = description(1)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (GOOD, None),
        (f"I'm sorry I made a mistake in that. {GOOD}", "apology"),
        (f"{GOOD} I apologize for that confusion.", "apology"),
        (f"As an AI I see that. {GOOD}", "apology"),
        (" ... ", "empty"),
        (f"{GOOD} {GOOD}", "repetition"),
        ("a dog and " * 20 + ".", "repetition"),
        (GOOD[:-20], "fragment"),
        ("Der Hund sitzt neben dem alten Baum und schaut auf den kleinen See hinter dem Haus im Dorf.", "not English"),
        ("The dog is on the grass.", "short"),
    ],
)
def test_rules_about_the_text(text, rule):
    assert (text_rule(text) or (None, None))[0] == rule


def test_short_says_how_short():
    assert text_rule("The dog is on the grass.")[1] == f"6 words, expected {MIN_WORDS} or more"


def test_near_duplicates_of_accepted_texts_are_rejected_and_a_second_run_finds_nothing_to_do(tmp_path):
    def text(number):
        return description(number // 2).replace("the light", "the last light" if number % 2 else "the light")

    with make_store(tmp_path, 20, ("sample", "generate", "fix"), text) as store:
        report = filter_texts(store)
        assert report.counts == {"passed": 10, "rejected: near-duplicate": 10}
        assert "% like that of" in store.value("SELECT detail FROM verdicts WHERE rule = 'near-duplicate'")
        assert filter_texts(store).done == 0


def test_bands_are_shared_by_like_texts_only():
    mine = set(bands(shingles(GOOD)))
    assert mine & set(bands(shingles(GOOD.replace("the day", "the night"))))
    assert not mine & set(bands(shingles(description(2) + " Entirely other words follow here.")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP with random weights, as a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTextConfig,
        CLIPVisionConfig,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("clip")
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", "<unk>", *sorted(set(GOOD.split()))])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=16, **special)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, eos_token_id=1, **sizes).to_dict(),
        vision_config=CLIPVisionConfig(image_size=32, patch_size=16, **sizes).to_dict(),
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_a_scorer_rejects_what_has_nothing_to_do_with_the_picture(tmp_path, clip, capsys):
    with make_store(tmp_path, 6, ("sample", "generate", "fix")) as store:
        (tmp_path / "pictures" / "0003.png").unlink()
        report = filter_texts(store, scorer=Scorer(clip), min_score=2.0)  # no cosine is that large
        assert report.counts == {"rejected: off-picture": 5} and report.failures == 1
        assert "0003.png: the picture is gone" in capsys.readouterr().err
        (tmp_path / "more").mkdir()
    with make_store(tmp_path / "more", 3, ("sample", "generate", "fix")) as store:
        assert filter_texts(store, scorer=Scorer(clip), min_score=-1.0).counts == {"passed": 3}


def test_an_unknown_scorer_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded as a scorer"):
        Scorer(tmp_path)
