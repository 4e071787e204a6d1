"""Engines of published models at full size, built by the real TensorRT-RTX: time, memory, and FP16's half size."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest
from support import REPO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"),
]


def figures(preset: str, precision: str, *more: str) -> dict[str, Any]:
    """What scripts/bench/engine.py prints; a process of its own, so that its peak memory is the build's."""
    command = [sys.executable, str(REPO / "scripts/bench/engine.py"), preset, "--precision", precision, *more]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print({key: found[key] for key in ("preset", "precision", "seconds", "peak_host_GB", "engine_MB")})
    return found


@pytest.mark.parametrize(
    ("preset", "most_gb"),
    # ViT-L's weights alone are 0.7 GB in FP16, and the builder holds several copies of them.
    [("dpt_vit-b16_160k", 3.0), ("upernet_vit-b16_mln_160k", 3.0), ("dpt_vit-l16_160k", 4.0)],
)
def test_fp16_engines_are_half_the_size(preset: str, most_gb: float) -> None:
    fp32, fp16 = figures(preset, "fp32"), figures(preset, "fp16")
    assert fp16["engine_MB"] <= 0.52 * fp32["engine_MB"]
    assert fp16["seconds"] < 60
    assert fp16["peak_host_GB"] < most_gb
    assert fp16["types_asked"]["fp16"] > 3 * fp16["types_asked"]["fp32"]  # and not an FP32 engine by another name


def test_a_fused_engine_is_as_large() -> None:
    """TensorRT-RTX runs the bodies of the fused nodes, so nothing is computed or stored in another way."""
    fused = figures("dpt_vit-b16_160k", "fp16", "--fused")
    assert fused["fused"] == {"UpsampleAdd": 3} and fused["plugin"].startswith("inlined")
    assert 200 < fused["engine_MB"] < 240 and fused["peak_host_GB"] < 3
