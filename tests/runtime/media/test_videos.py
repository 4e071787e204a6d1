from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from denseport.runtime.errors import ImageError, OutputError
from denseport.runtime.media.videos import VideoReader, VideoWriter


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63)])
def test_a_video_comes_back(tmp_path: Path, height: int, width: int) -> None:
    colours = [(30 * i, 120, 240 - 30 * i) for i in range(8)]
    with VideoWriter(tmp_path / "out/v.webm", 12.5) as writer:
        for colour in colours:
            writer.write(np.full((height, width, 3), colour, np.uint8))
        assert not (tmp_path / "out/v.webm").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["v.webm"]
    with VideoReader(tmp_path / "out/v.webm") as reader:
        frames = list(reader)
        assert (reader.fps, reader.frames, reader.read) == (12.5, 8, 8)
    assert len(frames) == 8
    for frame, colour in zip(frames, colours, strict=True):
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
        assert np.abs(frame.mean(axis=(0, 1)) - colour).max() < 12


def test_a_video_is_not_left_behind_by_an_error(tmp_path: Path) -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="a frame of"), VideoWriter(tmp_path / "v.webm", 25) as writer:
        writer.write(frame)
        writer.write(frame[:16])
    with pytest.raises(OutputError, match="at least one frame"), VideoWriter(tmp_path / "v.webm", 25):
        pass
    assert not list(tmp_path.iterdir())


def test_a_video_that_opencv_cannot_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="WebM"):
        VideoWriter(tmp_path / "v.mp4", 25)
    with pytest.raises(OutputError, match="not a frame rate"):
        VideoWriter(tmp_path / "v.webm", 0)
    monkeypatch.setattr(cv2.VideoWriter, "fourcc", lambda *_: 0x21212121)
    monkeypatch.setattr(cv2, "CAP_FFMPEG", cv2.CAP_GSTREAMER)  # not in the wheels
    with pytest.raises(OutputError, match="cannot write"), VideoWriter(tmp_path / "v.webm", 25) as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_a_video_that_was_not_written_whole_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="1 of 3 frames"), VideoWriter(tmp_path / "v.webm", 25) as writer:
        for _ in range(2):
            writer.write(np.zeros((32, 32, 3), np.uint8))
        writer._written = 3  # OpenCV drops a frame without a word
    assert not list(tmp_path.iterdir())


def test_a_bad_video_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        VideoReader(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(ImageError, match=r"text\.mp4: damaged"):
        VideoReader(tmp_path / "text.mp4")
