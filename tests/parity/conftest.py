"""The original's two tiny models, as this package loads them and as plain loops (reference.py)."""

import copy

import pytest
from reference import Reference

from minigpt4 import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.hub.convert import projection_weights, read_checkpoint
from minigpt4.processing.chat_templates import LLAMA_2, with_image_token


@pytest.fixture(scope="session")
def reference(parity_dir):
    """The plain loops with Q-Former: Vicuna's variant."""
    return Reference(parity_dir)


@pytest.fixture(scope="session")
def llama_2_reference(parity_dir):
    """The plain loops without Q-Former: the Llama-2 variant."""
    return Reference(parity_dir, with_qformer=False)


@pytest.fixture
def llama_2(original, parity_dir):
    """The converted Llama-2 variant: no Q-Former, its own projection, the rest as in `original`."""
    config = copy.deepcopy(original.config)
    config.qformer_config = None
    weights = {
        **{name: tensor for name, tensor in original.state_dict().items() if "q" not in name.split(".")[1]},
        **projection_weights(read_checkpoint(parity_dir / "checkpoints" / "pretrained_minigpt4_llama2_tiny.pth")),
    }
    model = MiniGPT4ForConditionalGeneration(config).eval()
    model.load_state_dict(weights)
    return model


@pytest.fixture
def llama_2_processor(processor, tokenizer):
    """Its processor: four visual tokens, `[INST]` turns."""
    template = with_image_token(LLAMA_2, "<unk>")
    return MiniGPT4Processor(processor.image_processor, tokenizer, num_image_tokens=4, chat_template=template)
