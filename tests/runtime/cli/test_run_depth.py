"""`denseport run` on a depth bundle: PNGs of 16 bits, arrays, overlays, videos; formats without meaning are refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from command_line import files, refused

from denseport.runtime import DepthEstimator
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.writing import DepthWriting
from denseport.runtime.media.images import read_image
from denseport.runtime.media.videos import VideoReader, VideoWriter
from denseport.runtime.pipeline.depth import Depth
from denseport.runtime.system import machine
from denseport.runtime.system.machine import install_command


def test_every_format_holds_the_depths(
    call: Callable[..., Any], depth_sample: Bundle, tmp_path: Path, photo: Path
) -> None:
    out = tmp_path / "out"
    code, text, err = call("run", depth_sample.path, photo, "-o", out, "--format", "png,overlay,npy,npz", "--json")
    assert code == 0 and "ONNX Runtime" in err
    ends = ("depth.png", "overlay.png", "depth.npy", "arrays.npz")
    assert files(out) == {f"photo_{end}" for end in ends}
    with DepthEstimator(depth_sample) as estimate:
        want = estimate(photo).depth
    np.testing.assert_array_equal(np.load(out / "photo_depth.npy"), want)
    np.testing.assert_array_equal(np.load(out / "photo_arrays.npz")["depth"], want)
    values = cv2.imread(str(out / "photo_depth.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(values / 1000, np.maximum(want, 0), atol=6e-4)
    assert read_image(out / "photo_overlay.png").shape[0] >= want.shape[0]
    (entry,) = json.loads(text)["results"]
    assert (entry["unit"], entry["larger_is"], entry["width"], entry["height"]) == ("metres", "farther", 96, 64)
    assert entry["least"] == pytest.approx(want.min()) and entry["most"] == pytest.approx(want.max())
    code, text, _ = call("run", depth_sample.path, photo, "-o", tmp_path / "b", "--depth-scale", "5000", "--no-overlay")
    assert code == 0 and "metres, larger is farther" in text and files(tmp_path / "b") == {"photo_depth.png"}
    values = cv2.imread(str(tmp_path / "b/photo_depth.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(values / 5000, np.maximum(want, 0), atol=2e-4)


def test_a_video_becomes_depths_and_a_video(
    call: Callable[..., Any], depth_sample: Bundle, tmp_path: Path, photo: Path
) -> None:
    image, video = read_image(photo), tmp_path / "a.webm"
    with VideoWriter(video, 10.0) as writer:
        for shift in range(3):
            writer.write(np.roll(image, 4 * shift, axis=1))
    code, text, err = call("run", depth_sample.path, video, "-o", tmp_path / "out", "--format", "npy,overlay")
    assert code == 0 and "3 frames, all in the colours of" in text, err
    assert files(tmp_path / "out") == {"a_overlay.webm", *(f"a_depth/{i:06}.npy" for i in (1, 2, 3))}
    assert np.load(tmp_path / "out/a_depth/000003.npy").shape == (64, 96)
    with VideoReader(tmp_path / "out/a_overlay.webm") as reader:
        assert len(list(reader)) == 3


def test_the_frames_of_a_video_have_one_range() -> None:
    """The first frame's: a colour means one depth in all of them. What lies beyond is told."""

    def found(*depths: float) -> Depth:
        return Depth(np.array([depths], np.float32), "metres", "farther", None, "m", np.zeros((1, 2, 3), np.uint8))

    paint = DepthWriting(opacity=1.0).painter()
    frames = [paint(each) for each in (found(1, 3), found(2, 3), found(3, 9))]
    assert paint.told()["colours"] == [1.0, 3.0]
    assert "1 to 3: 17 % of all pixels lie beyond them" in paint.told()["warning"]
    bar = slice(4 * 256 // 8, None), slice(256, None)  # the panel; the maps are enlarged
    np.testing.assert_array_equal(frames[1][bar], frames[0][bar])
    np.testing.assert_array_equal(frames[1][0, 255], frames[0][0, 255])
    np.testing.assert_array_equal(frames[2][0, 255], frames[0][0, 255])
    assert not np.array_equal(frames[1][0, 0], frames[0][0, 0])


def test_a_scale_that_leaves_nothing_is_refused(
    call: Callable[..., Any], depth_sample: Bundle, tmp_path: Path, photo: Path
) -> None:
    answer = call("run", depth_sample.path, photo, "-o", tmp_path / "out", "--depth-scale", "1e-9", "--no-overlay")
    refused(answer, "at the scale 1e-09 every value of a PNG is 0: the depths go up to")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "coco"], "--format coco means nothing for a network of depth"),
        (["--format", "npz,geojson"], "--format geojson means nothing"),
        (["--format", "scores"], "--format scores means nothing"),
        (["--grey"], "--grey is not for a network of depth"),
        (["--no-mask"], "--no-mask is not for a network of depth"),
        (["--protocol", "ms-flip"], "ms-flip is of segmentation"),
        (["--depth-scale", "10", "--format", "npy"], "--depth-scale applies to PNGs"),
        (["--opacity", "0.5", "--format", "npy"], "--opacity applies to overlays"),
        (["--opacity", "0.5", "--no-overlay"], "--opacity applies to overlays"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused(
    call: Callable[..., Any], depth_sample: Bundle, tmp_path: Path, photo: Path, options: list[str], words: str
) -> None:
    refused(call("run", depth_sample.path, photo, "-o", tmp_path / "out", *options), words)
    assert not (tmp_path / "out").exists()


def test_depth_options_are_not_for_masks(call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path) -> None:
    for options in (["--depth-scale", "100"], ["--format", "npy"]):
        refused(call("run", sample.path, photo, "-o", tmp_path / "out", *options), "for a network of segmentation")


def test_pillow_is_missed_at_once(
    call: Callable[..., Any], depth_sample: Bundle, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It decodes what Hugging Face's networks are given: a server without it would be ready, and fail each request."""
    bundle = Path(shutil.copytree(depth_sample.path, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    steps = [step for step in manifest["preprocess"] if step["kind"] != "load"]
    load = {"kind": "load", "orientation": False, "grey": False, "float32": False, "library": "pillow"}
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "preprocess": [load, *steps]}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    for command in (["run", bundle, photo, photo, "-o", tmp_path / "out"], ["serve", bundle]):
        code, _, err = call(*command)
        assert code == 3 and "denseport: error: not installed: PIL" in err and install_command("pillow") in err
    assert f"yes  decode image files for {bundle}" in call("doctor", bundle)[1]
    monkeypatch.setitem(machine.DISTRIBUTIONS, "pillow", ("no-such-package",))
    _, text, _ = call("doctor", bundle)
    assert f"no   decode image files for {bundle}, as its checkpoint does: no pillow" in text
    assert install_command("pillow") in text and "decode" not in call("doctor", depth_sample.path)[1]


def test_a_published_network_has_no_miou(call: Callable[..., Any], depth_sample: Bundle, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(depth_sample.path, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    about = {"preset": "v2_vits", "dataset": "NYUv2", "protocol": "AbsRel 0.053", "recognised_by": "its hash"}
    reference = {**about, "mIoU": None, "mIoU_ms_flip": None}
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "reference": reference}))
    code, text, _ = call("inspect", bundle)
    assert code == 0 and "v2_vits: AbsRel 0.053; recognised by its hash" in text and "mIoU" not in text
