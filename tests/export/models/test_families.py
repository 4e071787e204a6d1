"""SegFormer, Segmenter and SETR against what the real mmsegmentation computed: logits and class maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import postprocess
import pytest
import torch
from exports import export_once, shelf
from numpy.typing import NDArray
from support import assert_same_classes

from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.weights import load_model
from denseport.export.graph.fold import fold
from denseport.export.graph.fusion import fuse
from denseport.export.graph.mask import append_mask
from denseport.export.graph.model import save_model
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.preprocessing import normalisation, without_resize
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.segmenter import Segmenter

NAMES = ("segformer", "segmenter_mask", "segmenter_linear", "setr_naive", "setr_pup", "setr_mla")
# An export takes seconds: in each run the two that differ most from DPT are exported, with --slow all of them.
EXPORTED = [
    name if name in ("segformer", "segmenter_mask") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES
]
TOLERANCE = 1e-4  # of the largest logit, as the oracle's README says


@pytest.fixture(scope="module")
def families(shared: Path) -> Path:
    return shared / "oracle_families"


@pytest.fixture(scope="module")
def bundle_of(families: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    def export(name: str) -> Bundle:
        folder = tmp_path_factory.mktemp("families") / name
        return export_once(families / f"mmseg_{name}/checkpoint.pth", shelf(tmp_path_factory), folder)

    return export


def sizes(golden: np.lib.npyio.NpzFile) -> list[str]:
    found = [key.removeprefix("in_") for key in golden.files if key.startswith("in_")]
    assert len(found) >= 4, "a file without inputs: the comparison would show nothing"
    return found


def check_logits(golden: np.lib.npyio.NpzFile, size: str, logits: NDArray[np.float32]) -> None:
    whole = f"out_{size}" in golden.files  # large outputs are thinned out
    wanted, found = golden[f"out_{size}" if whole else f"sub_{size}"], logits if whole else logits[..., ::3, ::3]
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize("rewrite", [True, False], ids=["rewritten", "upstream-order"])
@pytest.mark.parametrize("name", NAMES)
def test_torch_logits_equal_the_oracle(families: Path, name: str, rewrite: bool) -> None:
    checkpoint = read_checkpoint(families / f"mmseg_{name}/checkpoint.pth")
    recognised = recognise(checkpoint)
    assert recognised.warnings == () and recognised.preset is None
    model = load_model(checkpoint, recognised.spec, rewrite=rewrite)
    with np.load(families / f"mmseg_{name}/golden.npz") as golden:
        for size in sizes(golden):
            check_logits(golden, size, model(torch.from_numpy(golden[f"in_{size}"])).numpy())


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_logits_and_masks_equal_the_oracle(families: Path, bundle_of: Callable[[str], Bundle], name: str) -> None:
    """The masks by way of images: the golden inputs are normalised grey levels."""
    bundle = bundle_of(name)
    manifest = bundle.manifest
    assert manifest.architecture.lower() == name.partition("_")[0]
    session = OnnxRuntimeSession(bundle.verified("model.onnx"))
    steps, normalise = without_resize(manifest.preprocess), normalisation(manifest.preprocess)
    protocols = {"whole": Inference(), "test": manifest.inference}
    with np.load(families / f"mmseg_{name}/golden.npz") as golden:
        for size in sizes(golden):
            given = golden[f"in_{size}"]
            check_logits(golden, size, session.run(given))
            levels = given.transpose(0, 2, 3, 1) * np.float32(normalise.std) + np.float32(normalise.mean)
            assert np.abs(levels - levels.round()).max() < 1e-3
            for mode, inference in protocols.items():
                with Segmenter(bundle, protocol=Protocol(mode, steps, inference)) as segmenter:
                    for i, image in enumerate(levels.round().astype(np.uint8)[..., ::-1]):
                        scores = postprocess.logits(segmenter.predict(image)[0])
                        assert_same_classes(segmenter(image).mask, golden[f"{mode}_{size}"][i], scores)


def test_segformers_second_level_is_fused_at_one_size(bundle_of: Callable[[str], Bundle], tmp_path: Path) -> None:
    """Of the sums that the rewrite leaves, and of the mask's end."""
    model = ir.load(bundle_of("segformer").verified("model.onnx"))
    append_mask(model)
    fold(model, (1, 3, 64, 96))
    save_model(model, tmp_path / "plain.onnx")
    assert fuse(model).fused == {"UpsampleAdd": 1, "UpsampleArgmax": 1}
    save_model(model, tmp_path / "fused.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 96)).astype(np.float32)
    plain, fused = (OnnxRuntimeSession(tmp_path / f"{name}.onnx").run(image) for name in ("plain", "fused"))
    np.testing.assert_array_equal(plain, fused)


def test_the_sliding_windows_of_these_configurations_slide(families: Path) -> None:
    """Otherwise the comparison above would show nothing of them."""
    from denseport.export.checkpoint.settings import inference_of

    for name in NAMES:
        found, warnings = inference_of(read_checkpoint(families / f"mmseg_{name}/checkpoint.pth"))
        assert not warnings
        assert found == (Inference() if name == "segformer" else Inference("slide", (64, 64), (42, 42)))
