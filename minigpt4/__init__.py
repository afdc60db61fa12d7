"""MiniGPT-4 (arXiv 2304.10592) as a Hugging Face model package.

Names are imported on first access, so `minigpt4 --help` starts without torch; accessing any of them registers all with
transformers' Auto classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what `__getattr__` loads, for editors and type checkers
    from .configuration.configuration_minigpt4 import EfficientNetLiteConfig, MiniGPT4Config
    from .inference.named_models import load
    from .modeling_minigpt4.light import MiniGPT4ForConditionalGeneration
    from .modeling_minigpt4.modeling_minigpt4 import MiniGPT4Model
    from .processing.collator import MiniGPT4DataCollator
    from .processing.image_processing_minigpt4 import MiniGPT4ImageProcessor
    from .processing.processing_minigpt4 import MiniGPT4Processor

__version__ = "0.1.0"

_HOME = {
    "EfficientNetLiteConfig": "configuration.configuration_minigpt4",
    "MiniGPT4Config": "configuration.configuration_minigpt4",
    "MiniGPT4Model": "modeling_minigpt4.modeling_minigpt4",
    "MiniGPT4ForConditionalGeneration": "modeling_minigpt4.light",
    "MiniGPT4ImageProcessor": "processing.image_processing_minigpt4",
    "MiniGPT4Processor": "processing.processing_minigpt4",
    "MiniGPT4DataCollator": "processing.collator",
    "load": "inference.named_models",
}
# A literal, for type checkers; tests/test_imports.py compares it with the above.
__all__ = [
    "EfficientNetLiteConfig",
    "MiniGPT4Config",
    "MiniGPT4DataCollator",
    "MiniGPT4ForConditionalGeneration",
    "MiniGPT4ImageProcessor",
    "MiniGPT4Model",
    "MiniGPT4Processor",
    "load",
]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'minigpt4' has no attribute {name!r}")
    import_module(".registration", __name__)
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__():
    return [*globals(), *__all__]
