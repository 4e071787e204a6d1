"""Networks of other libraries, which an environment of one's own has: ``pip install torchvision transformers``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign import MEAN, STD, normalised
from support import ASSETS, REPO

from denseport.export.entrance.declared import Declared
from denseport.export.entrance.foreign import import_bundle
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.media.images import read_image
from denseport.runtime.segmenter import Segmenter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PHOTO = sorted((ASSETS / "street").rglob("*.jpg"))[0]


def test_the_example_with_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setattr(sys, "argv", ["own_module.py", str(tmp_path / "bundle"), str(PHOTO)])
    runpy.run_path(str(REPO / "examples" / "own_module.py"), run_name="__main__")
    *checks, shape = capsys.readouterr().out.splitlines()
    assert len(checks) == 3 and shape == str(read_image(PHOTO).shape[:2])
    manifest = Bundle(tmp_path / "bundle").manifest
    assert manifest.artifacts["model.onnx"].record["adapted"]["cut"] == ["Resize"] and manifest.stride == 16


def test_segformer_by_the_exporter_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    exporter = pytest.importorskip("transformers.exporters.exporter_onnx")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(num_labels=19, depths=[1, 1, 1, 1])
    module = transformers.SegformerForSemanticSegmentation(config).eval()
    given = {"pixel_values": torch.randn(2, 3, 160, 192)}
    found = exporter.OnnxExporter().export(module, given, config=exporter.OnnxConfig(dynamic=True))
    found.save_pretrained(str(tmp_path))
    about = Declared(classes=19, mean=MEAN, std=STD, bgr=False, size=(96, 64))
    bundle = import_bundle(tmp_path / "model.onnx", tmp_path / "bundle", about)
    assert bundle.manifest.input.shape == (None, 3, None, None) and bundle.manifest.stride == 4
    image = np.asarray(cv2.resize(read_image(PHOTO), (96, 64), interpolation=cv2.INTER_AREA), np.uint8)
    with torch.inference_mode():
        logits = module(torch.from_numpy(normalised(image))).logits
    expected = F.interpolate(logits, (64, 96), mode="bilinear")[0].argmax(0).numpy()
    with Segmenter(bundle) as segment:
        assert (segment(image).mask == expected).mean() > 0.999
