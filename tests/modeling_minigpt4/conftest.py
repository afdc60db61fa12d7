"""The original's tiny model as base models in folders."""

import pytest
from vision_parts import write_blip2


@pytest.fixture
def blip2(original, tmp_path):
    """Folder of a BLIP-2 with the original's vision side."""
    return write_blip2(original, tmp_path / "blip2")


@pytest.fixture
def parts(blip2, parity_dir):
    """Arguments of `from_parts` for the original's tiny model."""
    projection = parity_dir / "checkpoints" / "pretrained_minigpt4_tiny.pth"
    return {"vision": str(blip2), "text": str(parity_dir / "llama_tiny"), "projection": projection}
