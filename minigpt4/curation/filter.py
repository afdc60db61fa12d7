"""Step 4: rules reject what generation and fix left broken; each rejection names its rule.

apology         "I'm sorry I made a mistake...", "I apologize for that ..." (the paper's), "as an AI"
empty, repetition, fragment    also measured before and after stage 2 (metrics/failures.py)
not English     hardly any of the commonest English words, or letters of other scripts
short           fewer words than the set number
near-duplicate  nearly the same words in the same order as an earlier accepted description
off-picture     low similarity to the image according to CLIP or SigLIP, if a scorer is configured
"""

import re
import zlib

import numpy as np
from tqdm.auto import tqdm

from minigpt4.metrics.failures import failure

from .counts import Report, chunks
from .sample import read_picture
from .texts import APOLOGY, AS_AN_AI, is_english

RULES = ("apology", "empty", "repetition", "fragment", "not English", "short", "near-duplicate", "off-picture")
MIN_WORDS = 20
MAX_LIKENESS = 0.8  # Jaccard of three-word shingles
_BANDS, _BAND_ROWS = 8, 3  # of the MinHash: two texts alike by 0.8 share a band with 99.7%, by 0.4 with 41%
_PRIME = (1 << 31) - 1


def filter_texts(store, min_words=MIN_WORDS, max_likeness=MAX_LIKENESS, scorer=None, min_score=None, batch_size=64):
    """Gives every fixed text a verdict; returns a `Report`.

    Args:
        scorer: a `Scorer`, or None; then no rule uses the image.
        min_score: the scorer's score below which a text is off-picture.
    """
    settings = {"min_words": min_words, "max_likeness": max_likeness}
    if scorer is not None:
        settings |= {"scorer": scorer.name, "min_score": min_score}
    run, report = store.run("filter", settings), Report("filter")
    bar = tqdm(store.pending("filter"), "filter", store.pending_count("filter"), unit="text")
    for chunk in chunks(bar, batch_size):
        scores = _scores(store, chunk, scorer, report)
        with store.transaction():
            for row in (row for row in chunk if row["picture"] in scores):
                score = scores[row["picture"]]
                found = text_rule(row["text"], min_words) or _picture_rule(score, min_score)
                found = found or _duplicate_rule(store, row, max_likeness) or (None, None)
                store.record("filter", run, [{"picture": row["picture"], "rule": found[0], "detail": found[1]}])
                report.done += 1
                report.count(f"rejected: {found[0]}" if found[0] else "passed")
    return report


def text_rule(text, min_words=MIN_WORDS):
    """(rule, detail) of the first text-only rule that rejects it, or None."""
    if found := APOLOGY.search(text) or AS_AN_AI.search(text):
        return "apology", found[0]
    if failed := failure(text):
        return failed, text.strip()[-60:] if failed == "fragment" else ""
    if not is_english(text):
        return "not English", text.strip()[:60]
    if (words := len(text.split())) < min_words:
        return "short", f"{words} words, expected {min_words} or more"
    return None


def shingles(text, size=3):
    """The set of a text's sequences of `size` words, without case and punctuation."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def bands(found):
    """MinHash of a set of shingles in bands of integers: similar sets very likely share one."""
    hashes = np.array([zlib.crc32(shingle.encode()) for shingle in found], dtype=np.int64) % _PRIME
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, _PRIME, (2, _BANDS * _BAND_ROWS, 1))
    smallest = ((a * hashes + b) % _PRIME).min(axis=1).reshape(_BANDS, _BAND_ROWS)
    return [zlib.crc32(bytes([i]) + row.tobytes()) for i, row in enumerate(smallest)]


def _picture_rule(score, min_score):
    if score is not None and score < min_score:
        return "off-picture", f"score {score:.3f}, expected {min_score:g} or more"
    return None


def _duplicate_rule(store, row, max_likeness):
    """The rule, if an accepted text is very similar to this one; else this one is added for later comparisons."""
    mine = shingles(row["text"])
    keys = bands(mine)
    others = store.rows(
        "SELECT DISTINCT picture, text FROM bands JOIN fixes USING (picture)"
        f" WHERE band IN ({', '.join('?' * len(keys))}) AND picture != ?",
        *keys,
        row["picture"],
    )
    for other in others:
        theirs = shingles(other["text"])
        likeness = len(mine & theirs) / len(mine | theirs)
        if likeness >= max_likeness:
            return "near-duplicate", f"{likeness:.0%} like that of {other['picture'][:12]}"
    with store.transaction() as execute:
        for key in keys:
            execute("INSERT OR IGNORE INTO bands VALUES (?, ?)", (key, row["picture"]))
    return None


def _scores(store, chunk, scorer, report):
    """{picture: score, or None without a scorer}; pictures that cannot be read are reported and missing."""
    if scorer is None:
        return {row["picture"]: None for row in chunk}
    readable, pictures = [], []
    for row in chunk:
        try:
            pictures.append(read_picture(store, row))
            readable.append(row)
        except ValueError as error:
            report.failed(error)
    if not readable:
        return {}
    scores = scorer(pictures, [row["text"] for row in readable])
    return {row["picture"]: score for row, score in zip(readable, scores, strict=True)}


class Scorer:
    """Similarity of images and texts from a CLIP or SigLIP of transformers: the cosine of their embeddings, -1 to 1.

    Args:
        name: a Hub id or folder.

    Raises:
        ValueError: not a model that embeds images and texts.
    """

    def __init__(self, name):
        from transformers import AutoModel, AutoProcessor

        self.name = str(name)
        try:
            self.model = AutoModel.from_pretrained(name).eval()
            self.processor = AutoProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: cannot be loaded as a scorer ({str(error).splitlines()[0]})") from error
        if not hasattr(self.model, "get_text_features"):
            raise ValueError(f"{name}: a {type(self.model).__name__}; expected a CLIP or SigLIP")

    def __call__(self, pictures, texts):
        """Images (bytes) and their texts -> [score, ...]. Texts beyond the model's limit are cut."""
        import torch

        from ..processing.image_processing_minigpt4 import load_image

        images = [load_image(picture) for picture in pictures]
        inputs = self.processor(text=texts, images=images, return_tensors="pt", padding="max_length", truncation=True)
        with torch.inference_mode():
            output = self.model(**inputs.to(self.model.device))
        seen, said = (torch.nn.functional.normalize(e, dim=-1) for e in (output.image_embeds, output.text_embeds))
        return (seen * said).sum(-1).tolist()
