"""Published models at full size with random weights: they export, and ONNX Runtime agrees with torch."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
import torch

from denseport.export.entrance.torch_to_onnx import check_export, export_onnx
from denseport.export.models.presets import PRESETS
from denseport.export.models.segmentor import build

SHAPES = [(1, 3, 512, 512), (1, 3, 512, 688), (2, 3, 512, 512)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("dpt_vit-b16_160k", "upernet_deit-s16_ln_mln_160k", "setr_vit-l_pup_160k", "segmenter_vit-b_mask_160k"),
        *("segformer_mit-b0_160k", "segformer_mit-b5_160k"),
    ],
)
def test_full_size_models_export_and_agree_with_torch(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(PRESETS[name].spec).requires_grad_(False)
    start = time.perf_counter()
    files = export_onnx(model, tmp_path / "model.onnx")
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in files)
    print(f"\n{name}: exported in {seconds:.0f} s, {size / 2**20:.0f} MiB")
    for check in check_export(model, files[0], SHAPES):
        print(f"  input {check.shape}: logits differ by {check.max_difference:.1e}, agreement {check.agreement:.6f}")
        assert check.agreement > 0.999
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
