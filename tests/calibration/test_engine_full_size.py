"""INT8 engines of published models at full size, built by TensorRT-RTX: their size, and what is INT8 in them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from engine_text import products
from quantizing import write_quantized, write_typed

from denseport.export.engine.build import EngineOptions, build_engine
from denseport.export.engine.profile import named_profiles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"),
]

TARGETS = ("sm_86", "sm_89", "sm_120")
EXPORT = """
import sys
from pathlib import Path
import torch
from denseport.export.models.segmentor import build
from denseport.export.entrance.torch_to_onnx import export_onnx
from denseport.export.models.presets import PRESETS
torch.manual_seed(0)
export_onnx(build(PRESETS[sys.argv[1]].spec).eval(), Path(sys.argv[2]))
"""


def build(model: Path) -> Path:
    engine = model.with_suffix(".engine")
    options = EngineOptions("tensorrt_rtx", named_profiles("fixed:512x512", "tensorrt_rtx"), targets=TARGETS)
    build_engine(model, engine, options)
    return engine


@pytest.mark.parametrize("preset", ["dpt_vit-b16_160k", "upernet_deit-s16_160k"])
def test_int8_engines_are_a_third_of_the_size(tmp_path: Path, preset: str) -> None:
    names = ("model", "int8", "int8.fp16")
    fp32, int8, mixed = (tmp_path / f"{name}.onnx" for name in names)
    # In a process of its own, for torch's memory.
    subprocess.run([sys.executable, "-c", EXPORT, preset, str(fp32)], check=True)
    image = np.random.default_rng(0).standard_normal((1, 3, 512, 512)).astype(np.float32)
    layers = write_quantized(fp32, int8, image)
    write_typed(int8, mixed, "fp16")
    blocks = sum(node.op_type == "Softmax" for node in ir.load(int8).graph)
    whole = build(fp32).stat().st_size
    for model in (int8, mixed):
        engine = build(model)
        counts = products(engine)
        found = {kind: counts[kind, "int8", "int8"] for kind in ("fully_connected", "corrltn")}
        print(preset, model.stem, engine.stat().st_size / 1e6, engine.stat().st_size / whole, layers, found)
        assert engine.stat().st_size <= 0.35 * whole
        assert sum(found.values()) == layers - 2 * blocks  # query, key and value become one
