"""What a model in training says about a few fixed images."""

import torch

from ..inference.generation import answer_text, caption_prompt, chat_prompt
from ..processing.data.scenes import DETAIL_INSTRUCTIONS


@torch.no_grad()
def describe(model, processor, pictures, stage, max_new_tokens=60):
    """A greedy caption (stage 1) or detailed answer (stage 2) for each picture, as text.

    `pictures`: PIL pictures. The model is left in eval mode; no random number is drawn.
    """
    model.eval()
    prompt = caption_prompt(processor) if stage == 1 else chat_prompt(processor, DETAIL_INSTRUCTIONS[0])
    inputs = processor(
        text=[prompt] * len(pictures), images=[[picture] for picture in pictures], padding=True, return_tensors="pt"
    ).to(model.device)
    length = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)[:, length:]
    texts = [answer_text(processor, row) for row in ids]
    return [text.split("\n")[0] for text in texts] if stage == 1 else texts
