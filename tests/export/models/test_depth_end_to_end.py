"""An image in, a depth out, as Depth Anything's own ``infer_image`` computes it: every step of ours together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from depth_networks import checkpoint_of, config_of

from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.settings import depth_of
from denseport.export.checkpoint.weights import load_model
from denseport.export.models.head_spec import DepthAnythingHeadSpec
from denseport.runtime import DepthEstimator
from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.preprocessing import USUAL_NORMALISE
from denseport.runtime.bundle.steps import Load, ResizeRounded


class Torch(Session):
    """The network itself, without the seconds that an export takes."""

    description = "torch"

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def run(self, image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = self.model(torch.from_numpy(image)).numpy()
        return found


@pytest.mark.parametrize(("name", "unit"), [("da2_relative", "relative"), ("da2_metric", "metres")])
def test_depths_are_those_of_infer_image(
    shared: Path, depth_sample: Bundle, tmp_path: Path, name: str, unit: str
) -> None:
    folder = shared / "oracle_families" / name
    checkpoint = read_checkpoint(checkpoint_of(folder), config_of(name, tmp_path))
    spec = recognise(checkpoint).spec
    assert isinstance(spec.head, DepthAnythingHeadSpec)
    session, bundle, depth = (
        Torch(load_model(checkpoint, spec)),
        Bundle(depth_sample.path),
        depth_of(checkpoint, spec.head),
    )
    assert (depth.unit, depth.interpolation) == (unit, "bilinear")
    manifest, golden = bundle.manifest, np.load(folder / "golden.npz")
    images = [key for key in golden.files if key.startswith("bgr_")]
    assert len(images) == 3
    for key in images:
        at = int(key.partition("_at")[2])
        resize = ResizeRounded((at, at), "lower_bound", 14, "bicubic", "opencv")
        steps = (Load(float32=True), resize, USUAL_NORMALISE)
        bundle.manifest = replace(manifest, preprocess=steps, depth=depth, align_corners=True, patch_size=14)
        with DepthEstimator(bundle, session=session, threads=1) as estimate:
            found = estimate(golden[key]).depth
        want = golden[key.replace("bgr", "depth")]
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * max(1.0, float(want.max())))
