"""Validation during training: the loss on held-out data, the best checkpoint, answers and their metrics.

recipe.data.validation, or a share of the training's pictures -> dataset.validation (processing/data/datasets.py)
every train.eval_steps: eval_loss, and with train.metric greedy answers -> eval_cider, eval_bleu4, eval_rouge_l
"""

import numpy as np
import torch
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import IntervalStrategy

from ..modeling_minigpt4.chat import answer_text
from ..processing.collator import IGNORE


def validate_while_training(arguments, train):
    """Sets the validation fields of `TrainingArguments`, in place; `train`: a `TrainSection`.

    The library requires `save_steps` to be a multiple of `eval_steps`. Here a checkpoint is written whenever the model is
    the best so far, so both are independent.
    """
    arguments.eval_strategy, arguments.do_eval = IntervalStrategy.STEPS, True
    arguments.eval_steps = min(train.eval_steps, train.steps)
    arguments.metric_for_best_model, arguments.greater_is_better = train.metric, train.metric != "loss"
    arguments.load_best_model_at_end = True
    arguments.per_device_eval_batch_size = train.batch_size


class StopEarly(EarlyStoppingCallback):
    """The library's early stopping, which also continues its count in a resumed run.

    Args:
        patience: number of evaluations without improvement.
    """

    def __init__(self, patience):
        super().__init__(patience)

    def on_train_begin(self, args, state, control, **kwargs):
        """Counts the evaluations since the best one."""
        super().on_train_begin(args, state, control, **kwargs)
        looks = [entry["step"] for entry in state.log_history if "eval_loss" in entry]
        self.early_stopping_patience_counter = sum(step > (state.best_global_step or 0) for step in looks)


@torch.no_grad()
def greedy_answers(model, processor, inputs, max_new_tokens):
    """Ids [B, A] of a model's answers to the prompts of a collated batch, padded with the padding token.

    A prompt is what comes before the first label of a row; its images are those of the row.
    """
    labels, ids = inputs["labels"], inputs["input_ids"]
    prompts = [row[: int((of_row != IGNORE).int().argmax())].tolist() for row, of_row in zip(ids, labels, strict=True)]
    padded = processor.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(ids.device)
    pictures = {name: inputs[name] for name in ("pixel_values", "vision_features") if name in inputs}
    settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens}
    settings["pad_token_id"] = processor.tokenizer.pad_token_id
    said = model.generate(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], **pictures, **settings)
    return said[:, padded["input_ids"].shape[1] :]


def answer_metrics(processor, stage):
    """A `compute_metrics` for the Trainer: captions' CIDEr, BLEU-4 and ROUGE-L (metrics/captions.py), of each answer
    against that of its example. In stage 1 only the first line counts, where a caption ends."""
    from ..metrics.captions import caption_scores

    def texts(rows):
        rows = np.where(rows < 0, processor.tokenizer.pad_token_id, rows)
        said = [answer_text(processor, row) for row in rows]
        return [text.split("\n")[0] for text in said] if stage == 1 else said

    def compute(prediction):
        return caption_scores(texts(prediction.predictions), [[text] for text in texts(prediction.label_ids)])

    return compute
