"""Stops an answer where a turn ends in text: Vicuna v0 writes "###", which is not a special token."""

import torch
from transformers.generation import StoppingCriteria


class EndsWith(StoppingCriteria):
    """Stops a row as soon as its last ids are one of `sequences`, whatever the other rows of the batch do."""

    def __init__(self, sequences):
        self.sequences = [torch.tensor(sequence) for sequence in sequences]

    def __call__(self, input_ids, scores, **kwargs):
        """[B, L] -> bool [B]."""
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for sequence in self.sequences:
            ended |= (input_ids[:, -len(sequence) :] == sequence.to(input_ids.device)).all(1)
        return ended
