"""Videos, in and out, frame by frame: (H, W, 3), BGR, uint8."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import ImageError, OutputError
from denseport.runtime.media.images import reading
from denseport.runtime.system.files import new_file, writing

__all__ = ["VideoReader", "VideoWriter"]


class VideoReader:
    """The frames of a video, (H, W, 3) BGR uint8 each, in order and once. A rotation tag is applied.

    Attributes:
        fps: frames a second; 0.0 when the file does not say.
        frames: number of frames that the file claims; 0 when it does not say.
        read: number of frames read so far; less than ``frames`` at the end means a damaged file.

    Raises:
        ImageError: the file is missing or cannot be decoded; or, when iterated, it has no frame.
    """

    def __init__(self, path: Path) -> None:
        with reading(path), path.open("rb"):
            pass  # OpenCV gives no reason for what it cannot open
        # Absolute, lest FFmpeg take a name such as "concat:a" for a protocol.
        self._capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise ImageError(
                f"{path}: damaged, or not a video that OpenCV {cv2.__version__} can decode",
                "Convert it, for example with: ffmpeg -i INPUT -c:v libvpx-vp9 OUTPUT.webm",
            )
        self._path = path
        self.fps = self._number(cv2.CAP_PROP_FPS)
        self.frames = int(self._number(cv2.CAP_PROP_FRAME_COUNT))
        self.read = 0

    def _number(self, key: int) -> float:
        value = self._capture.get(key)
        return value if math.isfinite(value) and value > 0 else 0.0  # FFmpeg: -1, nan or int64's least

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        while True:
            more, frame = self._capture.read()
            if not more:
                break
            self.read += 1
            yield np.asarray(frame, np.uint8)
        if not self.read:
            raise ImageError(f"{self._path}: no frame can be decoded", "Check that the video plays.")


class VideoWriter:
    """Writes a VP9 video (.webm), the one modern codec that OpenCV's wheels write on every platform.

    The first frame sets the size; an odd width or height grows by one pixel, since the codec halves both for colour
    (OpenCV would cut the pixel off). The file appears under its name when the ``with`` block ends without an error.

    Args:
        path: the file, ending in .webm.
        fps: frames a second, above 0.

    Raises:
        OutputError: another suffix, a bad frame rate, a codec that OpenCV lacks, a place that cannot be
            written or, at the end of the block, a video that is not whole (OpenCV hides a full disk).
    """

    def __init__(self, path: Path, fps: float) -> None:
        if path.suffix.lower() != ".webm":
            raise OutputError(f"{path}: videos are written as WebM (VP9)", "End the name in .webm.")
        if not (math.isfinite(fps) and fps > 0):
            raise OutputError(f"{path}: {fps} is not a frame rate", "Give frames a second, such as 25.")
        self._path, self._fps = path, fps
        self._file = new_file(path)
        self._writer: cv2.VideoWriter | None = None
        self._shape: tuple[int, ...] = ()
        self._written = 0

    def __enter__(self) -> VideoWriter:
        self._temporary = self._file.__enter__()
        return self

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Adds a frame, (H, W, 3) BGR uint8, of the first one's size (ValueError otherwise)."""
        if self._writer is None:
            self._shape = frame.shape
            self._writer = self._open(frame.shape[0], frame.shape[1])
        if frame.shape != self._shape:
            raise ValueError(f"a frame of {frame.shape} in a video of {self._shape}")
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
        self._writer.write(frame)
        self._written += 1

    def _open(self, height: int, width: int) -> cv2.VideoWriter:
        size = (width + width % 2, height + height % 2)
        codec = cv2.VideoWriter.fourcc(*"VP90")
        writer = cv2.VideoWriter(str(self._temporary.absolute()), cv2.CAP_FFMPEG, codec, self._fps, size)
        if not writer.isOpened():
            # OpenCV gives no reason; an ordinary file in its place tells a bad place from a missing codec.
            with writing(self._path):
                self._temporary.write_bytes(b"")
            raise OutputError(
                f"{self._path}: OpenCV {cv2.__version__} cannot write a VP9 video of {width} x {height}",
                "Install the opencv-python-headless wheel, which has FFmpeg; or write images instead.",
            )
        return writer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if error is None:
            try:
                self._check()
            except OutputError as err:
                self._file.__exit__(type(err), err, err.__traceback__)
                raise
        self._file.__exit__(kind, error, trace)

    def _check(self) -> None:
        """FFmpeg writes the duration last, so that the frame count tells whether all of it is there."""
        if not self._written:
            raise OutputError(f"{self._path}: a video needs at least one frame", "Check that the source gives frames.")
        try:
            with VideoReader(self._temporary) as video:
                missing = self._written - video.frames
        except ImageError as err:
            raise OutputError(f"{self._path}: OpenCV wrote no video", "Check the room on the disk.") from err
        # WebM counts in milliseconds: above 1000 frames a second the count is not exact.
        if abs(missing) > self._fps / 1000:
            raise OutputError(
                f"{self._path}: {missing} of {self._written} frames are missing", "Check the disk's room."
            )
