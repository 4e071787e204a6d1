"""A module of torch of one's own becomes a bundle whose masks are the module's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign import MEAN, STD, normalised
from support import ASSETS
from torch import Tensor, nn

from denseport.export.entrance.declared import Declared
from denseport.export.entrance.module import export_module
from denseport.runtime.errors import InputError
from denseport.runtime.media.images import read_image
from denseport.runtime.segmenter import Segmenter

PHOTO = sorted((ASSETS / "street").rglob("*.jpg"))[0]
USUAL = Declared(classes=("a", "b", "c"), mean=MEAN, std=STD, size=(96, 64), bgr=False)


class Net(nn.Module):
    """Two convolutions; the logits at the input's size among other entries of a dict."""

    def __init__(self, side: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 3, 1)
        self.places = None if side is None else nn.Parameter(torch.randn(1, 8, side, side))

    def forward(self, image: Tensor) -> dict[str, Any]:
        features = torch.relu(self.stem(image))
        if self.places is not None:  # as a position embedding, which ties many networks to one size
            features = features + self.places
        logits = self.head(features)
        return {"out": F.interpolate(logits, image.shape[2:], mode="bilinear"), "aux": features}


def test_masks_are_those_of_the_module(tmp_path: Path) -> None:
    module = Net().eval()
    bundle = export_module(module, tmp_path / "bundle", USUAL)
    manifest = bundle.manifest
    source = manifest.artifacts["model.onnx"]
    assert [each.against for each in source.proof] == ["torch"] and "parity" not in manifest.provenance
    assert (manifest.name, manifest.architecture, manifest.stride, manifest.parameters) == ("Net", "Net", 4, 419)
    assert [check["shape"][0] for check in source.record["checks"]] == [1, 2, 1] and source.record["adapted"]["cut"]
    assert sorted(each.name for each in bundle.path.iterdir()) == ["manifest.json", "model.onnx"]
    image = np.asarray(cv2.resize(read_image(PHOTO), (96, 64), interpolation=cv2.INTER_AREA), np.uint8)
    with torch.inference_mode():
        expected = module(torch.from_numpy(normalised(image)))["out"][0].argmax(0).numpy()
    with Segmenter(bundle) as segment:
        assert (segment(image).mask == expected).mean() > 0.999


def test_a_module_of_one_size(tmp_path: Path) -> None:
    module = Net(16).eval()
    with pytest.raises(InputError, match="cannot be run on 2 images of 320 x 256 pixels") as caught:
        export_module(module, tmp_path / "bundle", USUAL)
    assert "dynamic=False" in str(caught.value)
    square = Declared(classes=3, mean=MEAN, std=STD, size=(64, 64))
    bundle = export_module(module, tmp_path / "bundle", square, dynamic=False, output_name="out", name="tied")
    assert bundle.manifest.input.shape == (1, 3, 64, 64) and bundle.manifest.name == "tied"
    with Segmenter(bundle) as segment:
        assert segment(PHOTO).mask.shape == read_image(PHOTO).shape[:2]


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (Net(), {}, r"Call module.eval\(\) first"),
        (Net().eval(), {"output_name": "logits"}, "the module gives out, aux, not logits"),
        (Net().eval(), {"declared": Declared(classes=3, mean=MEAN, std=STD), "dynamic": False}, "one size"),
        (nn.Conv2d(4, 3, 1).eval(), {}, "expected input"),
        (Net().eval().half(), {}, r"Call module.float\(\) first"),
        (torch.relu, {}, "is not a torch.nn.Module"),
    ],
)
def test_refusals(tmp_path: Path, module: nn.Module, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        export_module(module, tmp_path / "bundle", **{"declared": USUAL, **options})
    assert not list(tmp_path.iterdir())
