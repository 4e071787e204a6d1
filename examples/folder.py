"""Segment every image of a folder: masks beside a table of what covers how much.

    python examples/folder.py BUNDLE FOLDER -o OUT

Reading, the network, post-processing and writing overlap; an image that cannot be read ends the run with its name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from denseport.runtime import Segmenter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    images = sorted(path for path in arguments.folder.iterdir() if path.suffix in (".jpg", ".png"))

    with Segmenter(arguments.bundle) as segment:
        # The stream keeps the order, and reads ahead only as far as its short queues have room.
        for path, result in zip(images, segment.stream(images, scores=True), strict=True):
            result.save(arguments.output / f"{path.stem}.png")
            top = ", ".join(f"{name} {share:.0%}" for name, share in list(result.shares().items())[:3])
            print(f"{path.name}: {top}; mean score {result.scores.mean():.2f}; network {result.timings.infer:.0f} ms")


if __name__ == "__main__":
    main()
