"""CIDEr and BLEU-4 of short captions, by pycocoevalcap (lower case, no punctuation; its Java tokenizer is not needed)."""

import contextlib
import io
import re

from .failures import failure_rate


def caption_scores(captions, references):
    """{"cider", "bleu4", "repetition"} of captions against several references each.

    Args:
        captions: list of texts.
        references: list of lists of texts, as long; CIDEr weighs words by how rare they are in all references.

    Raises:
        ValueError: lists of different length, or pycocoevalcap is not installed.
    """
    if len(captions) != len(references) or not captions:
        raise ValueError(f"found {len(captions)} captions and {len(references)} lists of references; expected as many")
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ValueError("caption metrics need pycocoevalcap; run `pip install 'minigpt4-hf[metrics]'`") from error
    truth = {i: [_words(text) for text in texts] for i, texts in enumerate(references)}
    found = {i: [_words(text)] for i, text in enumerate(captions)}
    with contextlib.redirect_stdout(io.StringIO()):  # BLEU prints its ratio
        cider, _ = Cider().compute_score(truth, found)
        bleu, _ = Bleu(4).compute_score(truth, found)
    # A caption needs no full stop: its end is given here, so that only repetition (and emptiness) count.
    return {
        "cider": float(cider),
        "bleu4": bleu[3],
        "repetition": failure_rate([f"{text.strip()}." for text in captions]),
    }


def _words(text):
    return " ".join(re.sub(r"[^a-z0-9 ]", " ", text.lower()).split())
