"""A tiny model and a picture as files, for the command line."""

import pytest

from minigpt4.hub.export import export


@pytest.fixture
def base(original, processor, tmp_path):
    """The tiny model as a folder."""
    return str(export(original, processor, tmp_path / "base"))


@pytest.fixture
def photo(picture, tmp_path):
    """A picture as a file."""
    picture().save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")
