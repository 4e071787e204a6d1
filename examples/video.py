"""Segment a video, or a webcam, and show or write the overlay with steadier masks.

    python examples/video.py BUNDLE INPUT.webm -o OVERLAY.webm
    python examples/video.py BUNDLE 0

The second shows camera 0 in a window, for which OpenCV must be the wheel opencv-python, not the headless one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from denseport.runtime import Segmenter
from denseport.runtime.media.videos import VideoWriter


def frames_of(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        more, frame = capture.read()
        if not more:
            return
        yield frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("input", help="a video, or the number of a camera")
    parser.add_argument("-o", "--output", type=Path, help="a .webm file; default: a window")
    arguments = parser.parse_args()
    capture = cv2.VideoCapture(int(arguments.input) if arguments.input.isdigit() else arguments.input)

    # Depth 1 keeps a camera's delay short; smoothing averages each frame with those before it, up to a scene cut.
    with (
        Segmenter(arguments.bundle) as segment,
        closing(segment.stream(frames_of(capture), depth=1, smoothing=0.6)) as results,
    ):
        painted = (result.overlay() for result in results)
        if arguments.output:
            with VideoWriter(arguments.output, capture.get(cv2.CAP_PROP_FPS) or 25.0) as writer:
                for image in painted:
                    writer.write(image)
            return
        for image in painted:
            cv2.imshow("denseport: q ends", image)
            if cv2.waitKey(1) == ord("q"):
                break


if __name__ == "__main__":
    main()
