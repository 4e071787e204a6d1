"""The C++ runtime's masks are Python's, and mmsegmentation's, in every protocol that it has."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from bundles import steps
from cpp import OPENVINO, assert_same_mask, built, for_openvino, run, segment
from support import ASSETS, ORACLE_MODELS, assert_same_classes, small_images

from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.segmenter import Segmenter

STREET = sorted((ASSETS / "street/images").rglob("*.jpg"))
PROTOCOLS = (
    *("reference", "slide", "slide:128:85", "native", "native:64:42", "native:100:100", "fixed:320x192"),
    *("fixed:333x77", "ms-flip", "ms-flip:1.x"),
)


@pytest.fixture(params=["release", "sanitized"])
def program(request: pytest.FixtureRequest) -> Path:
    return built(f"{request.param}/denseport-cpp")


@pytest.mark.parametrize("artifact", ["model.onnx", OPENVINO])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_samples_masks_are_pythons(
    program: Path, sample_copy: Bundle, tmp_path: Path, protocol: str, artifact: str
) -> None:
    if artifact == OPENVINO and program.parent.name == "sanitized":
        pytest.skip("AddressSanitizer ends programs whose TBB opens libtbbbind, as OpenVINO's does here")
    bundle = for_openvino(sample_copy)
    images, options = small_images(tmp_path / "images"), ("--artifact", artifact, "--protocol", protocol)
    found = segment(program, bundle.path, images, tmp_path / "masks", *options)
    with Segmenter(bundle, artifact=artifact, protocol=protocol, threads=1) as segmenter:
        for image, mask in zip(images, found, strict=True):
            assert_same_mask(mask, segmenter(image, top_k=2))


@pytest.mark.parametrize(("protocol", "temperature"), [("reference", 20.0), ("ms-flip", 0.05)])
def test_a_temperature_changes_no_mask(sample_copy: Bundle, tmp_path: Path, protocol: str, temperature: float) -> None:
    """In either runtime: it is of scores, which the C++ runtime does not give."""
    program = built("release/denseport-cpp")
    images, options = small_images(tmp_path / "images"), ("--artifact", "model.onnx", "--protocol", protocol)
    before = segment(program, sample_copy.path, images, tmp_path / "before", *options)
    sample_copy.keep_temperature(temperature)
    after = segment(program, sample_copy.path, images, tmp_path / "after", *options)
    with Segmenter(sample_copy, artifact="model.onnx", protocol=protocol, threads=1) as segmenter:
        for image, old, mask in zip(images, before, after, strict=True):
            np.testing.assert_array_equal(mask, old)
            assert np.mean(segmenter(image).mask != mask) <= 1e-3  # but for ties


@pytest.mark.parametrize("size", [(16, 16), (17, 400), (300, 31), (1, 1), (1000, 750)])
def test_images_of_any_size_are_segmented(program: Path, sample: Bundle, tmp_path: Path, size: tuple[int, int]) -> None:
    """Enlarged, reduced, narrow; masks of many tiles and of a part of one."""
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    (mask,) = segment(program, sample.path, [image], tmp_path / "out", "--artifact", "model.onnx")
    with Segmenter(sample, artifact="model.onnx", threads=1) as segmenter:
        assert_same_mask(mask, segmenter(image, top_k=2))


@pytest.mark.parametrize("name", ORACLE_MODELS)
def test_the_oracles_networks_give_pythons_masks(
    program: Path, exported: Callable[[str], Bundle], tmp_path: Path, name: str
) -> None:
    bundle, options = exported(name), ("--artifact", "model.onnx", "--protocol", "fixed:97x81")
    (mask,) = segment(program, bundle.path, STREET[:1], tmp_path, *options)
    with Segmenter(bundle, artifact="model.onnx", protocol="fixed:97x81", threads=1) as segmenter:
        assert_same_mask(mask, segmenter(STREET[0], top_k=2))


@pytest.mark.parametrize(
    ("golden", "protocol", "scale", "inference"),
    [
        ("whole_256x64", "reference", (256, 64), Inference()),
        ("whole_2048x512", "reference", (2048, 512), Inference()),
        ("slide_crop64_stride42", "reference", (512, 128), Inference("slide", (64, 64), (42, 42))),
        ("slide_crop512_stride341", "reference", (2048, 512), Inference("slide", (512, 512), (341, 341))),
        ("slide_bigcrop", "reference", (256, 64), Inference("slide", (128, 128), (85, 85))),
        ("tta_mmseg0_256x64", "ms-flip:0.x", (256, 64), Inference()),
        ("tta_mmseg1", "ms-flip:1.x", (256, 64), Inference()),
        ("tta_mmseg1_slide", "ms-flip:1.x", (256, 64), Inference("slide", (64, 64), (42, 42))),
    ],
)
def test_masks_are_the_oracles(
    program: Path,
    exported: Callable[[str], Bundle],
    oracle: Path,
    tmp_path: Path,
    golden: str,
    protocol: str,
    scale: tuple[int, int],
    inference: Inference,
) -> None:
    bundle = Bundle(shutil.copytree(exported("tiny_dpt_project").path, tmp_path / "bundle"))
    changed = replace(bundle.manifest, preprocess=steps(scale), inference=inference)
    (bundle.path / MANIFEST).write_text(changed.to_json())
    with np.load(oracle / "inference_tiny_dpt.npz") as stored:
        image, expected = stored["img_bgr"], stored[f"{golden}_argmax"]
    cv2.imwrite(str(tmp_path / "image.png"), image)
    options = ("--artifact", "model.onnx", "--protocol", protocol)
    (mask,) = segment(program, bundle.path, [tmp_path / "image.png"], tmp_path / "out", *options)
    with Segmenter(bundle.path, artifact="model.onnx", protocol=protocol, threads=1) as segmenter:
        scores = segmenter(image, top_k=2).top_scores
    assert scores is not None
    assert_same_classes(mask, expected, scores)


@pytest.mark.parametrize("name", ["camvid_0001TP_008550", "ADE_val_00000003"])
def test_the_samples_masks_are_mmsegmentations(
    program: Path, sample: Bundle, shared: Path, tmp_path: Path, name: str
) -> None:
    (image,) = [path for folder in ("ade20k_val", "street") for path in (shared / "data" / folder).rglob(f"{name}.jpg")]
    expected = cv2.imread(str(shared / f"data/masks/B_{name}.png"), cv2.IMREAD_UNCHANGED)
    (mask,) = segment(program, sample.path, [image], tmp_path, "--artifact", "model.onnx")
    with Segmenter(sample, artifact="model.onnx", threads=1) as segmenter:
        scores = segmenter(image, top_k=2).top_scores
    assert scores is not None
    assert_same_classes(mask, expected, scores)


def test_an_empty_image_is_refused(program: Path, sample: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    done = run(program, "run", sample.path, tmp_path / "empty.png", "-o", tmp_path / "out")
    assert done.returncode == 2 and "the file is empty" in done.stderr
