"""Collection over images: what is seen, in how many passes, interrupted and resumed, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support import ASSETS

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.collect import collect, collection_key
from denseport.calibration.observe.images import ImageStatistics, check_images
from denseport.calibration.observe.observers import Histogram
from denseport.export.errors import ExportError
from denseport.export.graph.model import read_model
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.pipeline.network_input import NetworkInputs, sample_evenly

TENSORS = (
    "image",
    "backbone.layers.0.ln1/LayerNormalization",
    "backbone.layers.1.attn.attn/Softmax",
    "decode_head.project.relu/Relu",
)
RNG = np.random.default_rng(0)
IMAGES = [RNG.standard_normal((1, 3, 48, 64)).astype(np.float32) for _ in range(5)]


@pytest.fixture(scope="module")
def model(sample: Bundle) -> ir.Model:
    return read_model(sample.verified("model.onnx"))


def histograms() -> dict[str, list[Histogram]]:
    return {name: [Histogram()] for name in TENSORS}


def assert_same(first: Mapping[str, list[Histogram]], second: Mapping[str, list[Histogram]]) -> None:
    for name in TENSORS:
        np.testing.assert_array_equal(first[name][0].counts, second[name][0].counts)
        assert first[name][0].maximum == second[name][0].maximum


def test_every_value_of_every_image_is_seen(sample: Bundle, model: ir.Model) -> None:
    found = histograms()
    progress: list[tuple[int, int]] = []
    collect(model, IMAGES, found, progress=lambda done, total: progress.append((done, total)))
    assert progress == [(i, 5) for i in range(1, 6)]
    assert found["image"][0].total == sum(image.size for image in IMAGES)
    softmax = found["backbone.layers.1.attn.attn/Softmax"][0]
    assert 0 < softmax.maximum <= 1.000001
    tokens = 3 * 4 + 1
    assert softmax.total % (5 * tokens * tokens) == 0


def test_memory_limit_splits_the_tensors_into_passes(model: ir.Model) -> None:
    one_pass, many = histograms(), histograms()
    steps: list[int] = []
    collect(model, IMAGES, one_pass)
    collect(model, IMAGES, many, limit=1, progress=lambda done, total: steps.append(total))
    assert_same(one_pass, many)
    assert steps[-1] == 5 * (len(TENSORS) - 1)  # one tensor a pass; the input comes with the first


class Stop(Exception):
    pass


@pytest.mark.parametrize("limit", [2**30, 1])
def test_an_interrupted_collection_goes_on(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("denseport.calibration.observe.collect.SAVE_SECONDS", 0.0)
    state = tmp_path / "state.npz"
    whole = histograms()
    collect(model, IMAGES, whole, limit=limit)

    class Interrupted(list[NDArray[Any]]):
        seen = 0

        def __getitem__(self, index: Any) -> Any:
            Interrupted.seen += 1
            if Interrupted.seen > 4:
                raise Stop
            return super().__getitem__(index)

    key = collection_key(model, "a b", histograms(), limit)
    with pytest.raises(Stop):
        collect(model, Interrupted(IMAGES), histograms(), limit=limit, state_file=state, key=key)
    assert state.exists()

    resumed, first_steps = histograms(), []
    collect(model, IMAGES, resumed, limit=limit, state_file=state, key=key, progress=lambda d, t: first_steps.append(d))
    assert first_steps[0] == 4  # the first image is asked for once more, to measure the tensors
    assert_same(whole, resumed)


def test_a_kept_collection_is_not_repeated(model: ir.Model, tmp_path: Path) -> None:
    state, first, second = tmp_path / "state.npz", histograms(), histograms()
    collect(model, IMAGES, first, state_file=state, key="one")
    steps: list[int] = []
    collect(model, IMAGES, second, state_file=state, key="one", progress=lambda d, t: steps.append(d))
    assert not steps
    assert_same(first, second)


def test_state_of_another_collection_is_not_taken_up(model: ir.Model, tmp_path: Path) -> None:
    state = tmp_path / "state.npz"
    state.write_bytes(b"damaged")
    whole, found = histograms(), histograms()
    collect(model, IMAGES, whole)
    collect(model, IMAGES, found, state_file=state, key="one")
    assert_same(whole, found)
    keys = {collection_key(model, names, histograms()) for names in ("a", "b", "a b")}
    assert len(keys) == 3


def test_warnings_have_figures() -> None:
    def warnings(images: list[NDArray[np.float32]]) -> str:
        statistics = ImageStatistics()
        for image in images:
            statistics.update(image)
        return "\n".join(statistics.warnings())

    assert "only 5 images" in warnings(IMAGES)
    assert warnings(IMAGES * 7) == ""
    assert "8 of 43 images of one colour" in warnings(IMAGES * 7 + [np.full((1, 3, 8, 8), 0.5, np.float32)] * 8)
    assert "+3.0" in warnings([image + np.float32(3) for image in IMAGES * 7])
    dark = warnings([image * np.float32(0.1) for image in IMAGES * 7])
    assert "0.10" in dark and "training images" in dark


def test_calibration_images_are_what_the_network_sees(sample: Bundle) -> None:
    paths = sample_evenly([str(ASSETS / "street/images/validation")], 9)
    images = NetworkInputs.of_bundle(paths, sample.manifest)
    assert len(images) == 4 and len(images[1:3]) == 2
    assert images[0].shape == (1, 3, 160, 213) and images[0].dtype == np.float32
    windows = NetworkInputs(images.paths, parse_protocol("slide:96:64", sample.manifest))
    assert {image.shape for image in windows} == {(1, 3, 96, 96)}
    assert check_images(images) == [image.shape[2:] for image in images]


def test_bad_input(sample: Bundle, model: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no images"):
        collect(model, [], histograms())
    with pytest.raises(CalibrationError, match="no images"):
        check_images(NetworkInputs.of_bundle([], sample.manifest))
    for wrong in (np.zeros((3, 48, 64), np.float32), np.zeros((1, 3, 48, 64)), np.zeros((1, 1, 48, 64), np.float32)):
        with pytest.raises(ExportError, match="expected normalised images"):
            collect(model, [wrong], histograms())
    with pytest.raises(CalibrationError, match=r"layers\.0\.ln1.*not finite"):
        collect(model, [np.full((1, 3, 48, 64), np.nan, np.float32)], {TENSORS[1]: [Histogram()]})
    with pytest.raises(ExportError, match="cannot be read"):
        (tmp_path / "model.onnx").write_bytes(b"no model")
        read_model(tmp_path / "model.onnx")
