from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from support import ASSETS

from denseport.runtime.media.images import read_image, write_image


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small image."""
    path = tmp_path / "in/photo.png"
    write_image(path, cv2.resize(read_image(min((ASSETS / "street").rglob("*.jpg"))), (96, 64)))
    return path
