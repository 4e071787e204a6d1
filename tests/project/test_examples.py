"""The examples run as their users run them."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from support import ASSETS, REPO, small_images

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
            np.testing.assert_array_equal(cv2.imread(str(tmp_path / "out" / path.name), cv2.IMREAD_UNCHANGED), expected)
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
