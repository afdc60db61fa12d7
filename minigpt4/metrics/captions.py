"""Short captions against several references each: CIDEr (pycocoevalcap), BLEU-4 (sacrebleu) and ROUGE-L (rouge-score).

Texts are normalised like COCO's Java tokenizer does, except for brackets and the full stops of abbreviations: lower case,
"don't" and "man's" as two words, "t-shirt" and "3.5" as one, no punctuation. Of Flickr8k's 5,000 dev captions, 4 come out
differently, and CIDEr of the first caption against the other four is 0.8037 with either.
"""

import re

import datasets
import evaluate
import numpy as np

from minigpt4.metrics.failures import failure_rate


def caption_scores(captions, references):
    """{"cider", "bleu4", "rouge_l", "repetition"} of captions against several references each.

    Args:
        captions: list of texts.
        references: equally long list of lists of texts; CIDEr weights words by how rare they are in all references.

    Raises:
        ValueError: lists of different length, or one of the packages is not installed.
    """
    rows = caption_rows(captions, references)
    scores = {name: float(value(np.sum(rows[name], 0))) for name, value in VALUES.items()}
    # A caption needs no full stop: one is added here, so that only repetition (and emptiness) count.
    return {**scores, "repetition": failure_rate([f"{text.strip()}." for text in captions])}


def caption_rows(captions, references):
    """{metric: [a row of sums for each caption]}, which `VALUES` turns into figures; arguments as for `caption_scores`."""
    if len(captions) != len(references) or not captions:
        raise ValueError(f"found {len(captions)} captions and {len(references)} lists of references; expected one for each")
    try:
        from pycocoevalcap.cider.cider import Cider
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ValueError(f"caption metrics: {error}; run `pip install -e '.[metrics]'` in the clone") from error
    truth = [[_words(text) for text in texts] for texts in references]
    found = [_words(text) for text in captions]
    _, cider = Cider().compute_score(dict(enumerate(truth)), {i: [text] for i, text in enumerate(found)})
    rouge = RougeScorer(["rougeL"])
    bleu = _bleu()
    counted = [bleu.sentence_score(text, texts) for text, texts in zip(found, truth, strict=True)]
    return {
        "cider": [[float(score), 1] for score in cider],
        "bleu4": [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in counted],
        "rouge_l": [
            [rouge.score_multi(texts, text)["rougeL"].fmeasure, 1] for text, texts in zip(found, truth, strict=True)
        ],
    }


def _mean(sums):
    return sums[..., 0] / sums[..., 1]


def _bleu_of(sums):
    """Corpus BLEU-4, 0 to 1, from summed n-gram matches, n-grams and lengths: [..., 10] -> [...]."""
    flat = np.reshape(sums, (-1, 10)).astype(int).tolist()
    scores = [_bleu().compute_bleu(row[:4], row[4:8], *row[8:], smooth_method="none").score / 100 for row in flat]
    return np.reshape(scores, np.shape(sums)[:-1])


def _bleu():
    from sacrebleu.metrics import BLEU

    # `effective_order` only silences a warning about sentences: their counts are summed, their scores not used.
    return BLEU(tokenize="none", smooth_method="none", effective_order=True)


# {metric: function of summed rows, for `statistics.measured`}
VALUES = {"cider": _mean, "bleu4": _bleu_of, "rouge_l": _mean}


_WORD = re.compile(r"n't|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-./:,]\w+)*|[%&$#]")


def _words(text):
    text = text.lower().replace("\u2019", "'")
    return " ".join(_WORD.findall(re.sub(r"n't\b", " n't", text)))


class Captions(evaluate.Metric):
    """CIDEr, BLEU-4, ROUGE-L and the share with repetition."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="CIDEr: Vedantam et al. 2015; BLEU: Papineni et al. 2002; ROUGE: Lin 2004",
            inputs_description="predictions: list of captions; references: list of lists of reference captions",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        return caption_scores(predictions, references)
