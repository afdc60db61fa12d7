"""Registers MiniGPT-4 with transformers' Auto classes on import."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .configuration.configuration_minigpt4 import EfficientNetLiteConfig, MiniGPT4Config
from .modeling_minigpt4.light import MiniGPT4ForConditionalGeneration
from .modeling_minigpt4.vision_tower import EfficientNetLiteModel
from .processing.image_processing_minigpt4 import MiniGPT4ImageProcessor
from .processing.processing_minigpt4 import MiniGPT4Processor

AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel)
AutoConfig.register("minigpt4", MiniGPT4Config)
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(MiniGPT4Config, MiniGPT4ForConditionalGeneration)
AutoImageProcessor.register(MiniGPT4Config, image_processor_classes={"pil": MiniGPT4ImageProcessor})
AutoProcessor.register(MiniGPT4Config, MiniGPT4Processor)
