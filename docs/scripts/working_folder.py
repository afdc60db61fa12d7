"""The authors' files of a tiny model, under the names that README and docs give to the published ones."""

from pathlib import Path

PARITY = Path(__file__).parents[2] / "tests/fixtures/parity"
ORIGINALS = {
    "prerained_minigpt4_7b.pth": "checkpoints/pretrained_minigpt4_tiny.pth",
    "eva_vit_g.pth": "checkpoints/eva_vit_g.pth",
    "blip2_pretrained_flant5xxl.pth": "checkpoints/blip2_pretrained_flant5xxl.pth",
    "vicuna-7b": "llama_tiny",
    "tiny_config.json": "tiny_config.json",
}


def link_originals(folder):
    """Links each of them into a folder."""
    for name, original in ORIGINALS.items():
        (Path(folder) / name).symlink_to(PARITY / original)
