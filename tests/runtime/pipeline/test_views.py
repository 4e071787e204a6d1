"""Whole, slide and multi-scale inference through the exported ONNX, against what mmsegmentation's own code gave."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import postprocess
import pytest
from bundles import steps
from exports import export_once, shelf
from support import ASSETS, LOGITS_TOLERANCE, assert_same_classes

from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Inference, Manifest, NetworkInput
from denseport.runtime.bundle.preprocessing import Preprocessing
from denseport.runtime.bundle.protocol import Protocol, parse_protocol
from denseport.runtime.errors import BundleError, ImageError
from denseport.runtime.media.images import read_image
from denseport.runtime.pipeline.network_input import view_inputs
from denseport.runtime.pipeline.reduce import Decision, decide
from denseport.runtime.pipeline.resample import LogitMap, Placement, slide_maps
from denseport.runtime.pipeline.views import View, input_sizes, protocol_views, window_starts, windows
from denseport.runtime.segmenter import Segmenter


@pytest.fixture(scope="module")
def session(exported: Callable[[str], Bundle]) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(exported("tiny_dpt_project").verified("model.onnx"))


@pytest.fixture(scope="module")
def golden(oracle: Path) -> dict[str, np.ndarray]:
    with np.load(oracle / "inference_tiny_dpt.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def described(oracle: Path) -> dict[str, Any]:
    text: dict[str, Any] = json.loads((oracle / "inference_tiny_dpt.json").read_text())
    return text


class Recorder:
    """Notes the network's inputs on the way to a session."""

    def __init__(self, session: OnnxRuntimeSession) -> None:
        self.session, self.shapes = session, []
        self.description = ""

    def run(self, image: np.ndarray) -> np.ndarray:
        self.shapes.append(list(image.shape))
        return self.session.run(image)


def inference_of(test_cfg: dict[str, Any]) -> Inference:
    if test_cfg["mode"] == "whole":
        return Inference()
    return Inference("slide", crop=tuple(test_cfg["crop_size"]), stride=tuple(test_cfg["stride"]))


def predict_view(
    session: Any, image: np.ndarray, view: View, preprocess: Preprocessing, inference: Inference
) -> list[LogitMap]:
    """The logits of one view, whole or in windows."""
    inputs = view_inputs(image, view, Protocol("as described", preprocess, inference))
    logits = [session.run(each)[0] for each in inputs]
    place = Placement(view.size, (image.shape[0], image.shape[1]), flip=view.flip)
    return slide_maps(logits, *windows(view.size, inference), place)


def ms_flip_views(image: np.ndarray, manifest: Manifest, convention: str) -> list[View]:
    protocol = parse_protocol(f"ms-flip:{convention}", manifest)
    return protocol_views(image.shape[:2], protocol, 16)


@pytest.mark.parametrize(
    "name", ["whole_256x64", "whole_2048x512", "slide_crop64_stride42", "slide_crop512_stride341", "slide_bigcrop"]
)
def test_single_scale_equals_the_oracle(
    session: OnnxRuntimeSession, golden: dict[str, np.ndarray], described: dict[str, Any], name: str
) -> None:
    image, facts = golden["img_bgr"], described[name]
    preprocess = steps(tuple(facts["scale"]))
    (view,) = protocol_views(image.shape[:2], Protocol("as described", preprocess, Inference()), 16)
    assert view.size == tuple(facts["metainfo"]["img_shape"])
    recorder = Recorder(session)
    maps = predict_view(recorder, image, view, preprocess, inference_of(facts["test_cfg"]))
    assert recorder.shapes == facts["net_inputs"]
    scores = postprocess.logits(maps)
    if f"{name}_logits" in golden:
        step = 1 if name.startswith("whole") else 2
        np.testing.assert_allclose(scores[:, ::step, ::step], golden[f"{name}_logits"], atol=LOGITS_TOLERANCE, rtol=0)
    assert_same_classes(postprocess.argmax(maps), golden[f"{name}_argmax"], scores)


@pytest.mark.parametrize(
    ("name", "convention", "inference", "step"),
    [
        ("tta_mmseg0_256x64", "0.x", Inference(), 3),
        ("tta_mmseg1", "1.x", Inference(), 2),
        ("tta_mmseg1_slide", "1.x", Inference("slide", (64, 64), (42, 42)), 3),
    ],
)
def test_multi_scale_and_flip_equals_the_oracle(
    exported: Callable[[str], Bundle],
    session: OnnxRuntimeSession,
    golden: dict[str, np.ndarray],
    described: dict[str, Any],
    name: str,
    convention: str,
    inference: Inference,
    step: int,
) -> None:
    image, facts, preprocess = golden["img_bgr"], described[name], steps((256, 64))
    manifest = replace(exported("tiny_dpt_project").manifest, preprocess=preprocess)
    views = ms_flip_views(image, manifest, convention)
    assert [[3, *view.size] for view in views] == facts["inputs"]
    assert [view.flip for view in views] == facts["flips"]
    maps = [predict_view(session, image, view, preprocess, inference) for view in views]
    scores = postprocess.probabilities(maps)
    np.testing.assert_allclose(scores[:, ::step, ::step], golden[f"{name}_probs"], atol=LOGITS_TOLERANCE, rtol=0)
    assert_same_classes(decide(maps, decision=Decision(averaged=True)).mask, golden[f"{name}_argmax"], scores)


@pytest.mark.parametrize("name", ["camvid_0001TP_008550", "ADE_val_00000003"])
def test_the_samples_masks_are_mmsegmentations(sample: Bundle, shared: Path, name: str) -> None:
    check_mask(sample, shared, name, "B")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camvid_Seq05VD_f05100", "facade_30may05_static_street_cambridge__p1010688"])
def test_the_masks_of_the_larger_checkpoint_are_mmsegmentations(
    shared: Path, tmp_path: Path, name: str, large: Bundle
) -> None:
    check_mask(large, shared, name, "A")


@pytest.fixture(scope="module")
def large(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    checkpoint = shared / "data/checkpoints/dpt_deit-s16_street.pth"
    return export_once(checkpoint, shelf(tmp_path_factory), tmp_path_factory.mktemp("bundles") / "large")


def check_mask(bundle: Bundle, shared: Path, name: str, model: str) -> None:
    data = shared / "data"
    (path,) = [
        path
        for folder in (data / "ade20k_val", data / "street")
        for path in folder.rglob(f"{name}.*")
        if path.suffix == ".jpg"
    ]
    image, expected = read_image(path), cv2.imread(str(data / f"masks/{model}_{name}.png"), cv2.IMREAD_UNCHANGED)
    with Segmenter(bundle) as segmenter:
        maps = segmenter.predict(image)[0]
        mask = segmenter(image).mask
    assert mask.shape == image.shape[:2] and mask.dtype == np.uint8
    assert_same_classes(mask, expected, postprocess.logits(maps))


@pytest.mark.parametrize("length", [1, 30, 64, 65, 106, 107, 300])
def test_windows_cover_everything_as_upstream_places_them(length: int) -> None:
    crop, stride = 64, 42
    windows = window_starts(length, crop, stride)
    assert {i for start, stop in windows for i in range(start, stop)} == set(range(length))
    # mmseg/models/segmentors/encoder_decoder.py, slide_inference
    expected = []
    for i in range(max(length - crop + stride - 1, 0) // stride + 1):
        end = min(i * stride + crop, length)
        expected.append((max(end - crop, 0), end))
    assert windows == expected
    assert all(stop - start == min(crop, length) for start, stop in windows)


def test_an_image_narrower_than_a_patch_is_refused(sample: Bundle) -> None:
    with Segmenter(sample) as segmenter, pytest.raises(ImageError, match="less than one patch of 16 x 16") as caught:
        segmenter(np.zeros((2, 400, 3), np.uint8))
    assert "--scale" in str(caught.value)


def test_tiny_and_long_images_have_masks_of_their_own_size(sample: Bundle) -> None:
    rng = np.random.default_rng(0)
    with Segmenter(sample) as segmenter:
        for size in ((1, 1), (3, 4), (17, 250), (250, 17)):
            assert segmenter(rng.integers(0, 256, (*size, 3), np.uint8)).mask.shape == size


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((40, 40, 3), np.float32),
        np.zeros((0, 40, 3), np.uint8),
    ],
    ids=["grey", "alpha", "float", "empty"],
)
def test_arrays_that_are_no_images_are_refused(sample: Bundle, image: np.ndarray) -> None:
    with Segmenter(sample) as segmenter, pytest.raises(ImageError, match="uint8 BGR; got"):
        segmenter(image)


def test_the_flipped_view_of_a_mirrored_image_is_the_mirror_of_the_view(sample: Bundle) -> None:
    image = read_image(next((ASSETS / "street").rglob("*.jpg")))
    session, manifest = OnnxRuntimeSession(sample.verified("model.onnx")), sample.manifest
    plain, flipped = ms_flip_views(image, manifest, "0.x")[4:6]

    def scores(image: np.ndarray, view: Any) -> np.ndarray:
        maps: list[LogitMap] = predict_view(session, image, view, manifest.preprocess, manifest.inference)
        return postprocess.logits(maps)

    mirrored = np.ascontiguousarray(image[:, ::-1])
    # cv2.resize is not symmetric to the last grey level, hence the wide tolerance.
    difference = np.abs(scores(image, plain)[..., ::-1] - scores(mirrored, flipped))
    assert np.median(difference) < 0.05


def test_the_sizes_of_landscapes_and_portraits() -> None:
    whole = Protocol("reference", steps(), Inference())
    assert input_sizes(whole) == ((512, 683), (683, 512))
    assert input_sizes(replace(whole, preprocess=steps((64, 48), keep_ratio=False))) == ((48, 64),)
    assert input_sizes(replace(whole, inference=Inference("slide", (512, 600), (341, 341)))) == ((512, 600), (512, 512))


def test_a_size_that_the_network_does_not_take_is_refused(sample: Bundle) -> None:
    fixed = replace(sample.manifest, input=NetworkInput(shape=(None, 3, 160, 213)))
    (view,) = protocol_views((480, 640), parse_protocol("reference", fixed), 16)
    assert view.size == (160, 213)
    with pytest.raises(ImageError, match=r"as \(1, 3, 160, 240\); it takes \(None, 3, 160, 213\)"):
        protocol_views((400, 600), parse_protocol("reference", fixed), 16)


def test_an_artifact_without_logits_is_refused(sample: Bundle) -> None:
    """Masks have three dimensions; the second of them is no number of classes."""

    class Masks(Session):
        description = "masks"

        def run(self, image: np.ndarray) -> np.ndarray:
            return np.zeros((1, 150, 8), np.float32)

    with Segmenter(sample, session=Masks()) as segmenter, pytest.raises(BundleError, match="tells 0 classes apart"):
        segmenter(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_logits_that_are_not_finite_are_refused(sample: Bundle, special: float) -> None:
    class Broken(Session):
        description = "broken"

        def run(self, image: np.ndarray) -> np.ndarray:
            logits = np.zeros((1, 150, 8, 8), np.float32)
            logits[0, 3, 2, 1] = special
            return logits

    with Segmenter(sample, session=Broken()) as segmenter, pytest.raises(BundleError, match="logits that are not"):
        segmenter(np.zeros((64, 64, 3), np.uint8))
