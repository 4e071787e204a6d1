"""The examples run as their users run them."""

from __future__ import annotations

import array
import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from hostile import tiny_bundle
from support import ASSETS, REPO, small_images, stored_indices

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.media.images import read_image
from denseport.runtime.media.videos import VideoReader, VideoWriter
from denseport.runtime.segmenter import Segmenter

PATIENCE = 120.0  # seconds
STREET = sorted((ASSETS / "street/images").rglob("*.jpg"))


def example(name: str, *arguments: object) -> str:
    command = [sys.executable, REPO / "examples" / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_folder(sample: Bundle, tmp_path: Path) -> None:
    paths = small_images(tmp_path / "in")
    lines = example("folder.py", sample.path, tmp_path / "in", "-o", tmp_path / "out").splitlines()
    with Segmenter(sample) as segment:
        for path, line in zip(paths, lines, strict=True):
            expected = segment(path).mask
            np.testing.assert_array_equal(stored_indices((tmp_path / "out" / path.name).read_bytes()), expected)
            largest = segment.manifest.classes[np.bincount(expected.ravel()).argmax()]
            assert line.startswith(f"{path.name}: {largest} ")


def test_video(sample: Bundle, tmp_path: Path) -> None:
    frame = cv2.resize(read_image(STREET[0]), (120, 90), interpolation=cv2.INTER_AREA)
    with VideoWriter(tmp_path / "in.webm", 10.0) as writer:
        for shift in range(4):
            writer.write(np.roll(frame, shift, 1))
    example("video.py", sample.path, tmp_path / "in.webm", "-o", tmp_path / "out.webm")
    with VideoReader(tmp_path / "out.webm") as video:
        assert video.frames == 4 and abs(video.fps - 10) < 0.1 and len(list(video)) == 4


def test_asyncio_service(sample: Bundle, tmp_path: Path) -> None:
    (path, _) = small_images(tmp_path / "in")
    command = [sys.executable, str(REPO / "examples/asyncio_service.py"), str(sample.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split()[-1])
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client, client.makefile("rb") as answers:
                for data in (path.read_bytes(), b"no image", path.read_bytes()):
                    client.sendall(len(data).to_bytes(4, "big") + data)
                pngs = [answers.read(int.from_bytes(answers.read(4), "big")) for _ in range(3)]
        finally:
            server.terminate()
    with Segmenter(sample) as segment:
        expected = segment(path).mask
    assert pngs[1] == b""
    for png in (pngs[0], pngs[2]):
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED), expected)


def module(name: str) -> ModuleType:
    """An example, imported."""
    spec = importlib.util.spec_from_file_location(name, REPO / f"examples/{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_fastapi_service(tmp_path: Path) -> None:
    """By uvicorn, as the example says."""
    bundle = tiny_bundle(tmp_path / "bundle")
    (path, _) = small_images(tmp_path / "in")
    command = [sys.executable, "-m", "uvicorn", "--app-dir", "examples", "fastapi_service:app", "--port", "0"]
    environment = os.environ | {"BUNDLE": str(bundle.path)}
    with subprocess.Popen(command, cwd=REPO, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = next(re.findall(r"http://[\d.:]+", line)[0] for line in server.stderr if "running on" in line)
            with Segmenter(bundle) as segment, httpx.Client(base_url=url, timeout=PATIENCE) as client:
                expected, data = segment(path), path.read_bytes()
                assert client.post("/shares", files={"image": data}).json() == expected.shares()
                assert client.post("/polygons", files={"image": data}).json() == expected.to_geojson(simplify=1.0)
                mask = client.post("/mask", files={"image": data}).content
                np.testing.assert_array_equal(stored_indices(mask), expected.mask)
                overlay = client.post("/overlay", files={"image": data})
                assert overlay.headers["content-type"] == "image/jpeg"
                painted = cv2.imdecode(np.frombuffer(overlay.content, np.uint8), cv2.IMREAD_COLOR)
                assert painted.shape == expected.overlay(opacity=0.6).shape
                refused = client.post("/shares", files={"image": b"no image"})
                assert refused.status_code == 422 and set(refused.json()) == {"error", "remedy"}
        finally:
            server.terminate()


def ros_image(encoding: str, pixels: list[list[list[int]]], padding: int = 0) -> SimpleNamespace:
    """A sensor_msgs/Image, byte by byte as its definition says; ``padding`` ends each row."""
    rows = [bytes(value for pixel in row for value in pixel) + b"\xee" * padding for row in pixels]
    data = array.array("B", b"".join(rows))
    return SimpleNamespace(
        header="time and frame", height=len(rows), width=len(pixels[0]), encoding=encoding, is_bigendian=0,
        step=len(rows[0]), data=data,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "pixel", "bgr"),
    [
        ("bgr8", [1, 2, 3], [1, 2, 3]),
        ("8UC3", [1, 2, 3], [1, 2, 3]),
        ("rgb8", [1, 2, 3], [3, 2, 1]),
        ("bgra8", [1, 2, 3, 9], [1, 2, 3]),
        ("rgba8", [1, 2, 3, 9], [3, 2, 1]),
        ("mono8", [7], [7, 7, 7]),
    ],
)
@pytest.mark.parametrize("padding", [0, 5])
def test_ros2_images_are_read(encoding: str, pixel: list[int], bgr: list[int], padding: int) -> None:
    black = [0] * len(pixel)
    image = module("ros2_node").image_of(ros_image(encoding, [[black, pixel, black], [pixel, black, black]], padding))
    assert image.tolist() == [[[0] * 3, bgr, [0] * 3], [bgr, [0] * 3, [0] * 3]]
    assert image.dtype == np.uint8 and image.flags.c_contiguous


def test_ros2_images_that_do_not_fit_are_refused() -> None:
    node = module("ros2_node")
    with pytest.raises(ValueError, match="yuv422 are not taken; convert"):
        node.image_of(ros_image("yuv422", [[[1, 2]]]))
    for wrong in ({"step": 2}, {"height": 9}, {"width": 9}):
        message = ros_image("bgr8", [[[1, 2, 3], [4, 5, 6]]])
        with pytest.raises(ValueError, match="reshape"):
            node.image_of(SimpleNamespace(**vars(message) | wrong))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_ros2_masks_are_written(dtype: type) -> None:
    mask = np.array([[0, 1, 200], [3, 4, 5]], dtype)
    message = module("ros2_node").fill_mask(SimpleNamespace(), mask, "time and frame")
    assert (message.height, message.width, message.step) == (2, 3, 3 * mask.itemsize)
    assert message.encoding == {1: "mono8", 2: "mono16"}[mask.itemsize] and message.header == "time and frame"
    order = "big" if message.is_bigendian else "little"
    found = [
        int.from_bytes(message.data[at : at + mask.itemsize], order)
        for at in range(0, 6 * mask.itemsize, mask.itemsize)
    ]
    assert found == mask.ravel().tolist() and message.data.typecode == "B"


def test_ros2_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for ROS, which cannot be installed here: what the node subscribes to and publishes."""
    bundle = tiny_bundle(tmp_path / "bundle")
    published: list[Any] = []
    errors: list[str] = []

    class Node:
        def __init__(self, name: str) -> None:
            self.publisher = SimpleNamespace(publish=published.append)
            self.logger = SimpleNamespace(error=errors.append, info=lambda text: None)

        def declare_parameter(self, name: str, default: str) -> Any:
            return SimpleNamespace(value={"bundle": str(bundle.path)}[name])

        def create_publisher(self, kind: type, topic: str, qos: object) -> Any:
            assert (kind, topic) == (SimpleNamespace, "mask")
            return self.publisher

        def create_subscription(self, kind: type, topic: str, callback: Any, qos: object) -> None:
            assert (kind, topic) == (SimpleNamespace, "image")
            self.callback = callback

        def get_logger(self) -> Any:
            return self.logger

    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)

    def spin(node: Node) -> None:
        node.callback(ros_image("bgr8", pixels.tolist()))
        node.callback(ros_image("bayer_rggb8", [[[1]]]))

    fakes = {
        "rclpy": SimpleNamespace(init=lambda: None, spin=spin),
        "rclpy.node": SimpleNamespace(Node=Node),
        "rclpy.qos": SimpleNamespace(qos_profile_sensor_data=None),
        "sensor_msgs.msg": SimpleNamespace(Image=SimpleNamespace),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    module("ros2_node").main()
    with Segmenter(bundle) as segment:
        expected = segment(pixels).mask
    (message,) = published
    assert bytes(message.data) == expected.tobytes() and message.header == "time and frame"
    assert len(errors) == 1 and "bayer_rggb8" in errors[0]
