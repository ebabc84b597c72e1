"""Fixtures that tests of backbones share."""

import photos
import pytest


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes, and one of their kind that may be unknown."""
    return photos.write_photos(tmp_path_factory.mktemp("photos"), {**photos.CLASSES, **photos.OTHER})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return photos.write_weights(tmp_path_factory.mktemp("weights") / "small.pth")
