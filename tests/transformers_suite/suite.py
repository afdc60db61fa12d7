"""MiniGPT-4 under the tests that transformers runs on its own models: `make test-transformers`.

Nothing is skipped here. What is skipped, the common tests skip themselves, and `pytest -rs` says why: no such hardware or
library, a slow test, a feature that the model does not have (experts, a sliding window, an encoder and decoder).

Not called test_*.py, so that a plain `pytest`, which may have no network, leaves it alone.
"""

import unittest

import torch
from sdist import make_importable
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES

from minigpt4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Model
from minigpt4.configuration.configuration_minigpt4 import EfficientNetLiteConfig

make_importable()
from transformers_tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from transformers_tests.test_configuration_common import ConfigTester  # noqa: E402
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor  # noqa: E402

# The common tests look names up in these lists of transformers' own models, to know what is headless and what takes labels.
MODEL_MAPPING_NAMES["minigpt4"] = MiniGPT4Model.__name__
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["minigpt4"] = MiniGPT4ForConditionalGeneration.__name__


class TinyModel:
    """What the common tests ask for: sizes, a tiny config, and inputs of one picture in each of the rows."""

    batch_size = 3
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    image_token_id = 0
    pad_token_id = 1
    text_length = 7
    is_training = True

    def __init__(self, with_qformer):
        self.with_qformer = with_qformer
        self.num_image_tokens = self.get_config().num_image_tokens
        self.seq_length = self.encoder_seq_length = self.num_image_tokens + self.text_length

    def get_config(self):
        sizes = {
            "hidden_size": self.hidden_size,
            "intermediate_size": 37,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
        }
        return MiniGPT4Config(
            vision_config=Blip2VisionConfig(**sizes, image_size=16, patch_size=4),
            qformer_config=Blip2QFormerConfig(**sizes, vocab_size=99) if self.with_qformer else None,
            text_config=LlamaConfig(**sizes, vocab_size=99, max_position_embeddings=512, pad_token_id=self.pad_token_id),
            num_query_tokens=5,
            image_token_id=self.image_token_id,
            # Everything, as a LLaVA trains: the tests look for gradients in each part. What is frozen is tested elsewhere.
            trained_parts=["vision_tower", *["query_tokens", "qformer"] * self.with_qformer, "projection", "language_model"],
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = ids_tensor([self.batch_size, self.seq_length], config.text_config.vocab_size - 2) + 2
        input_ids[:, : self.num_image_tokens] = config.image_token_id
        size = config.vision_config.image_size
        inputs = {
            "pixel_values": floats_tensor([self.batch_size, 3, size, size]),
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
        }
        return config, inputs


class CommonTests(ModelTesterMixin, GenerationTesterMixin):
    """The common tests on both classes."""

    all_model_classes = (MiniGPT4Model, MiniGPT4ForConditionalGeneration)
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True  # otherwise skipped: it looks for a year in a copyright line

    def setUp(self):
        self.model_tester = TinyModel(self.with_qformer)
        self.config_tester = ConfigTester(self, config_class=MiniGPT4Config, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()


class WithQFormerTest(CommonTests, unittest.TestCase):
    """The paper's model."""

    with_qformer = True


class WithoutQFormerTest(CommonTests, unittest.TestCase):
    """The authors' Llama-2 variant: neighboring patches merged."""

    with_qformer = False


class EfficientNetLiteConfigTest(unittest.TestCase):
    """The configuration of the embedded default's vision tower."""

    def test_config(self):
        sizes = {"image_size": 64, "pool_grid": 2}
        tester = ConfigTester(self, EfficientNetLiteConfig, has_text_modality=False, common_properties=[*sizes], **sizes)
        tester.run_common_tests()
