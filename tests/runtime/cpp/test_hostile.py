"""Damaged manifests, images and models under AddressSanitizer and UBSan: an error, never more."""

from __future__ import annotations

from pathlib import Path

import pytest
from cpp import built, run
from cpp_damage import TARGETS, write_damaged


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files_are_refused_and_nothing_else_happens(target: str, tmp_path: Path) -> None:
    program = built(f"sanitized/fuzz/fuzz_{target}")
    assert run(program, *write_damaged(target, 0, 400, tmp_path)).returncode == 0
