"""A model of this package in VLMEvalKit (https://github.com/open-compass/VLMEvalKit), as a file to copy there:

    cp minigpt4/evaluation/vlmevalkit.py VLMEvalKit/vlmeval/vlm/minigpt4_hf.py
    vlmeval/vlm/__init__.py     from .minigpt4_hf import MiniGPT4HF
    vlmeval/config.py           in minigpt4_series: 'MiniGPT-4-HF': partial(MiniGPT4HF, model_path='REPO_OR_FOLDER')
    python run.py --data POPE --model MiniGPT-4-HF

It needs transformers, but neither this package nor the authors' repository (which VLMEvalKit's own class `MiniGPT4` also
imports as `minigpt4`: install only one of the two). From VLMEvalKit it uses `BaseModel`, whose `generate` checks a message,
a list of {'type': 'image' or 'text', 'value': path or text}, and calls `generate_inner`.
"""

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from vlmeval.vlm.base import BaseModel


class MiniGPT4HF(BaseModel):
    """A repository on the Hub, or a folder that `minigpt4 export` wrote; takes any number of images between texts.

    Args:
        model_path: the repository or folder. Its code is run (`trust_remote_code`).
        kwargs: arguments of `generate`, overriding greedy answers of at most 512 tokens.
    """

    INSTALL_REQ = False
    INTERLEAVE = True

    def __init__(self, model_path, **kwargs):
        super().__init__()
        self.processor = AutoProcessor.from_pretrained(model_path, trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(model_path, dtype="auto", trust_remote_code=True)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.kwargs = {"do_sample": False, "max_new_tokens": 512, **kwargs}

    @torch.inference_mode()
    def generate_inner(self, message, dataset=None):
        """The answer to a message, as text."""
        content = [_part(item) for item in message]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        ids = self.model.generate(**inputs, **self.kwargs)[0, inputs["input_ids"].shape[1] :]
        return self._answer(self.processor.decode(ids, skip_special_tokens=True))

    def _answer(self, text):
        """The text up to the end of the turn, which some language models write as text, and after a repeated role."""
        for marker in self.processor.turn_markers:
            text = text.split(marker)[0].split("Assistant:")[-1]
        return text.strip()


def _part(item):
    if item["type"] == "text":
        return {"type": "text", "text": item["value"]}
    return {"type": "image", "image": Image.open(item["value"]).convert("RGB")}
