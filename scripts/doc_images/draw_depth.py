"""Draw docs/images/depth.png: rendered images, their exact depths, and those of the toy network in tests/assets.

denseport export tests/assets/depth/network -o out/depth
python scripts/doc_images/draw_depth.py out/depth
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from denseport.runtime import DepthEstimator
from denseport.runtime.media.depth_map import coloured, with_colour_bar

REPO = Path(__file__).parents[2]
DATA = REPO / "tests/assets/depth"
SPAN = (0.0, 20.0)  # metres; what the files do not measure is farther


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=REPO / "docs/images/depth.png")
    parser.add_argument("--names", nargs="+", default=["0001", "0003"])
    arguments = parser.parse_args()
    rows = []
    with DepthEstimator(arguments.bundle) as estimate:
        for name in arguments.names:
            found = estimate(DATA / f"images/{name}.jpg")
            stored = cv2.imread(str(DATA / f"depths/{name}.png"), cv2.IMREAD_UNCHANGED)
            truth = np.where(stored > 0, stored / 1000, SPAN[1]).astype(np.float32)
            maps = np.hstack([coloured(depth, SPAN, near_is_large=False) for depth in (truth, found.depth)])
            rows.append(with_colour_bar(np.hstack([found.image, maps]), SPAN, found.unit, near_is_large=False))
    cv2.imwrite(str(arguments.output), np.vstack(rows), [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
