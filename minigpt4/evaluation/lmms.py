"""This package's models in lmms-eval: `python -m lmms_eval --model minigpt4 --model_args pretrained=DIR_OR_ID --tasks pope`.

lmms-eval (0.7.3 or newer) finds `manifest` by its entry point in pyproject.toml, and this module is imported only inside
lmms-eval. For VLMEvalKit see `minigpt4.evaluation`.
"""

import torch
from accelerate import PartialState
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm.auto import tqdm

from ..inference.generation import answer_text
from ..inference.named_models import load
from ..processing.processing_minigpt4 import ASKING


def manifest():
    """What lmms-eval registers."""
    return ModelManifest(model_id="minigpt4", simple_class_path=f"{__name__}.MiniGPT4")


class MiniGPT4(lmms):
    """Answers lmms-eval's requests: each a text with any number of images, in chat form.

    Args:
        pretrained: "embedded", a folder, or an id on the Hub.
        batch_size: answers at a time (lmms-eval's --batch_size). device: torch's name, by default what accelerate finds.
    """

    def __init__(self, pretrained="embedded", batch_size=16, device=None, **_):
        super().__init__()
        state = PartialState(cpu=not torch.accelerator.is_available())
        self._rank, self._world_size, self.batch_size = state.process_index, state.num_processes, int(batch_size)
        self.model, self.processor = load(pretrained, device=torch.device(device or state.device))

    def generate_until(self, requests):
        """A text for each request, in order; cut at the first of the request's `until` strings."""
        texts = []
        for start in tqdm(range(0, len(requests), self.batch_size), desc="minigpt4", disable=self._rank != 0):
            batch = [request.args for request in requests[start : start + self.batch_size]]
            longest = max(options.get("max_new_tokens", 128) for _, options, *_ in batch)
            said = self._answers([self._conversation(*arguments) for arguments in batch], longest)
            texts += [_cut(text, options.get("until")) for text, (_, options, *_) in zip(said, batch, strict=True)]
        return texts

    def loglikelihood(self, requests):
        """Not offered: lmms-eval's multiple choice by likelihood takes one continuation at a time."""
        raise NotImplementedError("ask for generated answers, or see `minigpt4 evaluate --suite vqa` for likelihoods")

    def generate_until_multi_round(self, requests):
        """Not offered."""
        raise NotImplementedError("tasks of several rounds are not supported")

    def _conversation(self, context, _, doc_to_visual, doc_id, task, split):
        pictures = [{"type": "image", "image": picture} for picture in doc_to_visual(self.task_dict[task][split][doc_id])]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": context}]}]

    @torch.inference_mode()
    def _answers(self, conversations, max_new_tokens):
        inputs = self.processor.apply_chat_template(
            conversations,
            **ASKING,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(self.model.device)
        ids = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return [answer_text(self.processor, row) for row in ids[:, inputs["input_ids"].shape[1] :]]


def _cut(text, until):
    for end in [until] if isinstance(until, str) else until or []:
        text = text.split(end)[0] if end else text
    return text.strip()
