from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from support import ASSETS

from denseport.runtime.cli.main import main
from denseport.runtime.media.images import read_image, write_image


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs ``denseport`` in this process: exit code, standard output, standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small image."""
    path = tmp_path / "in/photo.png"
    write_image(path, cv2.resize(read_image(min((ASSETS / "street").rglob("*.jpg"))), (96, 64)))
    return path
