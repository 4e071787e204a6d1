"""`denseport run`: masks, overlays and videos; what it refuses leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from command_line import files, refused
from support import ASSETS

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.media import images
from denseport.runtime.media.images import read_image
from denseport.runtime.media.videos import VideoReader, VideoWriter
from denseport.runtime.pipeline import saving
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.files import writing
from denseport.runtime.system.machine import install_command

PHOTOS = sorted((ASSETS / "street").rglob("*.jpg"))


def test_run_writes_masks_and_overlays(call: Callable[..., Any], sample: Bundle, tmp_path: Path) -> None:
    code, out, err = call("run", sample.path, PHOTOS[0], "-o", tmp_path / "new/out")
    assert code == 0 and "ONNX Runtime" in err
    name = PHOTOS[0].stem
    assert files(tmp_path / "new/out") == {f"{name}_mask.png", f"{name}_overlay.png"}
    assert f"{name}_mask.png" in out and " %" in out
    image = read_image(PHOTOS[0])
    mask = cv2.imread(str(tmp_path / f"new/out/{name}_mask.png"), cv2.IMREAD_COLOR)
    with Segmenter(sample) as segmenter:
        expected = segmenter(image).mask
    palette = np.array(sample.manifest.palette, np.uint8)
    np.testing.assert_array_equal(mask[..., ::-1], palette[expected])
    assert read_image(tmp_path / f"new/out/{name}_overlay.png").shape[0] >= image.shape[0]


def test_run_finds_folders_and_writes_json(
    call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path
) -> None:
    shutil.copytree(photo.parent, photo.parent / "deep/er")
    code, out, _ = call("run", sample.path, photo.parent, "-o", tmp_path / "out", "--no-overlay", "--json")
    result = json.loads(out)
    assert code == 0 and result["failures"] == []
    assert files(tmp_path / "out") == {"photo_mask.png", "deep/er/photo_mask.png"}
    for entry in result["results"]:
        assert (entry["width"], entry["height"]) == (96, 64)
        assert sum(found["percent"] for found in entry["classes"]) == pytest.approx(100, abs=0.1)
        assert all(found["name"] == sample.manifest.classes[found["index"]] for found in entry["classes"])
        assert [Path(path).exists() for path in entry["files"]] == [True]


def test_run_makes_a_video_and_a_mask_for_each_frame(
    call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path
) -> None:
    frame = read_image(photo)
    with VideoWriter(tmp_path / "clip.webm", 10) as writer:
        for shift in range(3):
            writer.write(np.roll(frame, shift, 1))
    code, out, _ = call("run", sample.path, tmp_path / "clip.webm", "-o", tmp_path / "out", "--json")
    assert code == 0 and json.loads(out)["results"][0]["frames"] == 3
    assert files(tmp_path / "out") == {"clip_overlay.webm", *(f"clip_mask/{i:06}.png" for i in (1, 2, 3))}
    with VideoReader(tmp_path / "out/clip_overlay.webm") as reader:
        assert len(list(reader)) == 3 and reader.fps == 10
    assert cv2.imread(str(tmp_path / "out/clip_mask/000003.png"), cv2.IMREAD_UNCHANGED).shape[:2] == (64, 96)


@pytest.mark.parametrize(("name", "reason"), [("clip_mask", "Not a directory"), ("clip_overlay.webm", "Is a dir")])
def test_what_is_in_the_way_of_a_video_is_noticed_before_its_frames(
    call: Callable[..., Any], sample: Bundle, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "clip.webm").write_text("no video")
    (place := tmp_path / "out" / name).mkdir(parents=True)
    if name == "clip_mask":
        place.rmdir()
        place.touch()
    refused(call("run", sample.path, tmp_path / "clip.webm", "-o", tmp_path / "out"), f"{place}: ", reason)


def test_run_writes_the_formats_that_it_is_told(
    call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path
) -> None:
    with VideoWriter(tmp_path / "clip.webm", 10) as writer:
        writer.write(read_image(photo))
        writer.write(read_image(photo))
    inputs, formats = (photo, tmp_path / "clip.webm"), "coco,npz,scores,geojson,coco"
    code, out, _ = call("run", sample.path, *inputs, "-o", tmp_path / "out", "--format", formats, "--json")
    endings = ("coco.json", "arrays.npz", "scores.png", "polygons.geojson")
    places = [Path(file).name for file in json.loads(out)["results"][0]["files"]]
    assert code == 0 and places == [f"photo_{ending}" for ending in endings]
    of_video = {f"clip_{ending.replace('.', f'/00000{frame}.')}" for ending in endings for frame in (1, 2)}
    assert files(tmp_path / "out") == {*places, *of_video}
    with Segmenter(sample) as segmenter:
        expected = segmenter(photo, scores=True)
    assert expected.scores is not None
    assert json.loads((tmp_path / "out/photo_coco.json").read_text()) == expected.to_coco(file_name="photo.png")
    assert json.loads((tmp_path / "out/photo_polygons.geojson").read_text()) == expected.to_geojson()
    (frame,) = json.loads((tmp_path / "out/clip_coco/000002.json").read_text())["images"]
    assert (frame["id"], frame["file_name"]) == (2, "clip.webm")
    with np.load(tmp_path / "out/photo_arrays.npz") as arrays:
        np.testing.assert_array_equal(arrays["mask"], expected.mask)
        np.testing.assert_allclose(arrays["scores"], expected.scores, atol=1e-6)
    levels = cv2.imread(str(tmp_path / "out/photo_scores.png"), cv2.IMREAD_UNCHANGED)
    assert levels.dtype == np.uint16
    np.testing.assert_allclose(levels / 65535, expected.scores, atol=1e-5)


def test_run_smooths_a_video_on_request(call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path) -> None:
    frame = read_image(photo)
    with VideoWriter(tmp_path / "clip.webm", 10) as writer:
        for shift in (0, 3, 6):
            writer.write(np.roll(frame, shift, 1))
    masks = {}
    for weight in ("0", "0.9"):
        arguments = (tmp_path / "clip.webm", "-o", tmp_path / weight, "--temporal-smoothing", weight)
        code, _, _ = call("run", sample.path, *arguments)
        assert code == 0
        masks[weight] = [
            cv2.imread(str(tmp_path / weight / f"clip_mask/{i:06}.png"), cv2.IMREAD_UNCHANGED) for i in (1, 2, 3)
        ]
    np.testing.assert_array_equal(masks["0"][0], masks["0.9"][0])  # nothing came before the first
    changed = {weight: (found[0] != found[2]).mean() for weight, found in masks.items()}
    assert changed["0.9"] < changed["0"]


IMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "grey": lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2GRAY),
    "rgba": lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2BGRA),
    "sixteen": lambda image: image.astype(np.uint16) * 257,
}


def test_run_takes_every_kind_of_image(call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path) -> None:
    image, folder = read_image(photo), photo.parent
    for name, convert in IMAGES.items():
        assert cv2.imwrite(str(folder / f"{name}.png"), convert(image))
    levels = image[..., 1] // 64
    images.write_mask(folder / "palette.png", levels, [(0, 0, 0), (80, 80, 80), (160, 160, 160), (240, 240, 240)])
    (folder / "exif.jpg").write_bytes(turned_jpeg(image))
    code, out, err = call("run", sample.path, folder, "-o", tmp_path / "out", "--json", "--no-overlay")
    assert code == 0, err
    sizes = {Path(entry["input"]).stem: (entry["height"], entry["width"]) for entry in json.loads(out)["results"]}
    assert sizes == {
        **dict.fromkeys(("photo", "grey", "rgba", "sixteen", "palette"), (64, 96)),
        "exif": (96, 64),
    }
    masks = {name: (tmp_path / f"out/{name}_mask.png").read_bytes() for name in sizes}
    assert masks["photo"] == masks["rgba"] == masks["sixteen"]


def turned_jpeg(image: np.ndarray) -> bytes:
    """A JPEG whose EXIF orientation (6) says that it has to be turned by 90 degrees."""
    data = cv2.imencode(".jpg", image)[1].tobytes()
    ifd = b"\x00\x01" + b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00" + b"\x00\x00\x00\x00"
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08" + ifd
    return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]


def test_a_bad_image_among_many_fails_alone(
    call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(PHOTOS[0].read_bytes()[:2000])
    (tmp_path / "text.png").write_text("hello")
    cv2.imwrite(str(tmp_path / "narrow.png"), np.zeros((3, 900, 3), np.uint8))
    (tmp_path / "clip.mp4").write_bytes(b"nothing")
    names = ["broken.jpg", "missing.jpg", "text.png", "narrow.png", "clip.mp4"]
    inputs = [*(tmp_path / name for name in names), photo]
    code, out, err = call("run", sample.path, *inputs, "-o", tmp_path / "out", "--json")
    assert code == 2 and "5 of 6 inputs failed" in err
    result = json.loads(out)
    assert [Path(entry["input"]).name for entry in result["failures"]] == names
    assert all(entry["error"] and entry["remedy"] for entry in result["failures"])
    for word in ("cut short", "no such file", "less than one patch of 16", "OpenCV"):
        assert word in err
    assert [Path(entry["input"]) for entry in result["results"]] == [photo]
    assert len(files(tmp_path / "out")) == 2


def test_only_bad_images_leave_nothing(call: Callable[..., Any], sample: Bundle, tmp_path: Path) -> None:
    code, out, err = call("run", sample.path, tmp_path / "missing.jpg", "-o", tmp_path / "out")
    assert (code, out) == (2, "") and "missing.jpg: there is no such file" in err and "Check the path" in err
    (tmp_path / "empty").mkdir()
    refused(call("run", sample.path, tmp_path / "empty", "-o", tmp_path / "out"), "no image or video found")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def alter(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda bundle: (bundle / "model.onnx").unlink(), ["model.onnx: missing from the bundle", "export again"]),
        (lambda bundle: alter(bundle / "model.onnx"), ["model.onnx: altered since", "never run"]),
        (lambda bundle: (bundle / "manifest.json").unlink(), ["no manifest.json in it", "denseport export"]),
        (lambda bundle: (bundle / "manifest.json").write_text("{"), ["manifest.json: not JSON", "Export"]),
        (lambda bundle: shutil.rmtree(bundle), ["no such folder", "denseport export"]),
    ],
    ids=["missing", "altered", "no-manifest", "bad-manifest", "no-bundle"],
)
def test_a_bad_bundle_is_not_run(
    call: Callable[..., Any],
    sample: Bundle,
    tmp_path: Path,
    photo: Path,
    damage: Callable[[Path], object],
    words: list[str],
) -> None:
    bundle = Path(shutil.copytree(sample.path, tmp_path / "bundle"))
    damage(bundle)
    refused(call("run", bundle, photo, "-o", tmp_path / "out"), str(bundle), *words)
    refused(call("inspect", bundle, "--verify"), *words)
    assert not (tmp_path / "out").exists()


def test_results_that_cannot_be_written(
    call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with monkeypatch.context() as patched:  # it is told before the work
        patched.setattr("denseport.runtime.backends.onnxruntime.OnnxRuntimeSession", None)
        refused(call("run", sample.path, photo, "-o", tmp_path / "file"), "cannot be written", "choose another place")
        refused(call("eval", sample.path, "--data", tmp_path, "--report", tmp_path / "file"), "file: cannot be written")
        refused(call("bench", sample.path, "--report", tmp_path / "file/new"), "file/new: cannot be written")

    def full(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    refused(call("run", sample.path, photo, "-o", tmp_path / "new/out"), "No space left on device", "Free some room")
    assert files(tmp_path) == {"file", "in/photo.png"} and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--artifact", "int8.onnx"], ["no artifact 'int8.onnx'; it has model.onnx", "denseport build"]),
        (["--protocol", "best"], ["no protocol 'best'", "ms-flip"]),
        (["--protocol", "slide:64:65"], ["no protocol 'slide:64:65'", "slide:CROP:STRIDE"]),
        (["--no-overlay", "--no-mask"], ["leave nothing to write", "--json"]),
        (["--no-overlay", "--format", "coco"], ["--format says what is written", "one of them"]),
        (["--format", "coco,svg"], ["no format is called 'svg'", "png, overlay, scores, coco, geojson, npz"]),
        (["--format", ""], ["no format is called ''"]),
        (["--format", "scores", "--server", "grpc://localhost:1"], ["a server sends masks alone"]),
    ],
)
def test_bad_options_of_run_leave_nothing(
    call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path, options: list[str], words: list[str]
) -> None:
    refused(call("run", sample.path, photo, "-o", tmp_path / "out", *options), *words)
    assert not (tmp_path / "out").exists()


def test_a_missing_onnx_runtime_is_the_machines_fault(
    call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    words = ["ONNX Runtime is not installed", install_command("onnxruntime")]
    refused(call("run", sample.path, photo, "-o", tmp_path / "out"), *words, code=3)
    assert not (tmp_path / "out").exists()


def test_another_number_of_classes_than_the_network_has_is_noticed(
    call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path
) -> None:
    bundle = Path(shutil.copytree(sample.path, tmp_path / "bundle"))
    data = json.loads((bundle / "manifest.json").read_text())
    data.update(classes=data["classes"][:10], palette=data["palette"][:10])
    (bundle / "manifest.json").write_text(json.dumps(data))
    code, _, err = call("run", bundle, photo, "-o", tmp_path / "out")
    assert code == 2 and "model.onnx tells 150 classes apart, the manifest names 10" in err
    assert not (tmp_path / "out").exists()


def test_a_file_name_of_any_bytes_can_be_printed(sample: Bundle, tmp_path: Path, photo: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")  # Latin-1 on a UTF-8 system
    shutil.copy(photo, tmp_path / name)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "denseport.runtime.cli.main",
            "run",
            sample.path,
            tmp_path / name,
            "-o",
            tmp_path / "out",
            "--format",
            "png,coco",
        ],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb"caf\udce9_mask.png" in done.stdout
    assert len(files(tmp_path / "out")) == 2
    coco = json.loads(next((tmp_path / "out").glob("*_coco.json")).read_text())
    assert coco["images"][0]["file_name"] == name


def test_one_name_that_cannot_be_written_does_not_end_the_run(
    call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path
) -> None:
    """A name of 252 bytes has no room for a suffix; where a result's folder should be, there is a file."""
    long = f"{'n' * 248}.png"
    for name in (long, "a/x.png", "z.png"):
        (photo.parent / name).parent.mkdir(exist_ok=True)
        shutil.copy(photo, photo.parent / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").touch()
    code, out, err = call("run", sample.path, photo.parent, "-o", tmp_path / "out", "--json")
    found = json.loads(out)
    assert code == 2 and "denseport: error: 2 of 4 inputs failed" in err
    assert {Path(each["input"]).name for each in found["results"]} == {"photo.png", "z.png"}
    reasons = {Path(each["input"]).name: each["error"] for each in found["failures"]}
    assert "File name too long" in reasons[long] and "File exists" in reasons["x.png"]
    assert all(each["remedy"] for each in found["failures"])
    written = {f"{name}_{kind}.png" for name in ("photo", "z") for kind in ("mask", "overlay")}
    assert files(tmp_path / "out") == {"a", *written}


def test_what_was_done_is_told_though_the_place_fills_up(
    call: Callable[..., Any], sample: Bundle, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *rest: Any) -> None:
        if path.name.startswith("z"):
            with writing(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        images.write_mask(path, *rest)

    monkeypatch.setattr(saving, "write_mask", full)
    for name in ("z.png", "zz.png"):
        shutil.copy(photo, photo.parent / name)
    code, out, err = call("run", sample.path, photo.parent, "-o", tmp_path / "out", "--no-overlay", "--json")
    assert code == 2 and "No space left" in err
    assert [Path(each["input"]).name for each in json.loads(out)["results"]] == ["photo.png"]
    assert files(tmp_path / "out") == {"photo_mask.png"}
