"""Draw the image that the page offers to try: a street that never was, so it is anybody's to use.

    python scripts/doc_images/draw_sample.py [-o runtime/serving/http/static/sample.jpg]

The same bytes at each run with the same OpenCV.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, FINER = 1200, 800, 2
VANISHING = (640, 380)  # where parallel lines meet, px
Colour = tuple[int, int, int]  # BGR


class Canvas:
    """An image drawn twice as large as it is kept, which smooths its edges."""

    def __init__(self, seed: int) -> None:
        self.pixels = np.zeros((HEIGHT * FINER, WIDTH * FINER, 3), np.uint8)
        self.random = np.random.default_rng(seed)

    def shape(self, points: list[tuple[float, float]], colour: Colour, grain: float = 5.0) -> None:
        """Fill a polygon with a colour and some grain."""
        corners = np.round(np.array(points) * FINER).astype(np.int32)
        left, top = corners.min(axis=0).clip(0)
        right, bottom = (corners.max(axis=0) + 1).clip(0, (WIDTH * FINER, HEIGHT * FINER))
        if right <= left or bottom <= top:
            return
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [corners - (left, top)], 255)
        at = mask > 0
        noise = self.random.normal(0, grain, (int(at.sum()), 1))
        self.pixels[top:bottom, left:right][at] = np.clip(np.array(colour) + noise, 0, 255)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, grain: float = 4.0) -> None:
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour, grain)

    def disc(self, x: float, y: float, radius: float, colour: Colour, grain: float = 5.0) -> None:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        self.shape([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles], colour, grain)

    def kept(self) -> NDArray[np.uint8]:
        small = cv2.resize(self.pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.GaussianBlur(small, (3, 3), 0.6), np.uint8)


def towards(x: float, y: float, share: float) -> tuple[float, float]:
    """The point on the way from (x, y) to the vanishing point."""
    return x + (VANISHING[0] - x) * share, y + (VANISHING[1] - y) * share


def sky(canvas: Canvas) -> None:
    rows = np.linspace(0, 1, HEIGHT * FINER)[:, None, None]
    canvas.pixels[:] = np.clip((1 - rows) * (214, 168, 118) + rows * (250, 238, 226), 0, 255)
    clouds = canvas.random.normal(0, 1, (12, 18)).astype(np.float32)
    soft = cv2.resize(clouds, (WIDTH * FINER, HEIGHT * FINER), interpolation=cv2.INTER_CUBIC)
    share = np.clip(soft - 0.2, 0, 1)[..., None] * 0.55
    canvas.pixels[:] = canvas.pixels * (1 - share) + 250 * share


def ground(canvas: Canvas) -> None:
    strip(canvas, -700, 1900, 0, 0.97, (150, 158, 164))
    strip(canvas, -60, 1190, 0, 0.97, (92, 90, 88))
    strip(canvas, -90, -60, 0, 0.97, (182, 186, 190))  # kerbs
    strip(canvas, 1190, 1222, 0, 0.97, (182, 186, 190))
    for number in range(9):  # dashes, shorter with distance
        strip(canvas, 545, 563, 1 - 0.72**number, 1 - 0.72 ** (number + 0.45), (222, 228, 230))


def strip(canvas: Canvas, left: float, right: float, start: float, end: float, colour: Colour) -> None:
    """Part of the ground between two lines to the vanishing point, that start at the lower edge."""
    near, far = [towards(x, HEIGHT, start) for x in (left, right)], [towards(x, HEIGHT, end) for x in (right, left)]
    canvas.shape(near + far, colour, 6)


def facade(canvas: Canvas, side: int, start: float, end: float, top: float, colour: Colour) -> None:
    """A house along the street: ``side`` is the x of its wall's foot, ``start`` and ``end`` how far it is."""
    foot, roof = HEIGHT - 40, top
    wall = [towards(side, foot, start), towards(side, foot, end), towards(side, roof, end), towards(side, roof, start)]
    canvas.shape(wall, colour, 6)
    floors, columns = 5, max(2, round(14 * (end - start)))
    glass = (98, 84, 70)
    for floor in range(floors):
        for column in range(columns):
            u0 = start + (end - start) * (column + 0.25) / columns
            u1 = start + (end - start) * (column + 0.72) / columns
            y0 = roof + (foot - roof) * (floor + 0.22) / floors
            y1 = roof + (foot - roof) * (floor + 0.74) / floors
            pane = [towards(side, y0, u0), towards(side, y0, u1), towards(side, y1, u1), towards(side, y1, u0)]
            canvas.shape(pane, glass, 9)


def tree(canvas: Canvas, x: float, foot: float, size: float) -> None:
    trunk = 0.05 * size
    canvas.shape(
        [(x - trunk, foot), (x - trunk / 2, foot - size), (x + trunk / 2, foot - size), (x + trunk, foot)], (48, 62, 78)
    )
    for _ in range(260):
        angle, reach = canvas.random.uniform(0, 2 * np.pi), np.sqrt(canvas.random.uniform()) * 0.5 * size
        shade = canvas.random.integers(-22, 26)
        canvas.disc(
            x + reach * np.cos(angle), foot - 1.15 * size + 0.9 * reach * np.sin(angle),
            canvas.random.uniform(0.03, 0.075) * size, (44 + shade // 2, 96 + shade, 70 + shade), 8,
        )  # fmt: skip


def car(canvas: Canvas, x: float, foot: float, width: float, colour: Colour) -> None:
    """A car from behind; its parts are in widths of the car, from the middle and up from the foot."""

    def part(left: float, top: float, right: float, bottom: float, paint: Colour) -> None:
        canvas.box(x + left * width, foot - top * width, x + right * width, foot - bottom * width, paint)

    def slope(low: float, high: float, bottom: float, top: float, paint: Colour) -> None:
        corners = [(-low, bottom), (-high, top), (high, top), (low, bottom)]
        canvas.shape([(x + u * width, foot - v * width) for u, v in corners], paint, 4)

    part(-0.52, 0.0, 0.52, -0.06, (44, 44, 44))  # shadow
    part(-0.46, 0.16, -0.26, -0.03, (26, 26, 26))
    part(0.26, 0.16, 0.46, -0.03, (26, 26, 26))
    part(-0.5, 0.42, 0.5, 0.08, colour)
    slope(0.5, 0.4, 0.42, 0.48, colour)
    slope(0.4, 0.3, 0.47, 0.78, colour)
    slope(0.32, 0.25, 0.48, 0.72, (92, 80, 68))  # window
    part(-0.48, 0.4, -0.36, 0.3, (48, 44, 196))  # lamps
    part(0.36, 0.4, 0.48, 0.3, (48, 44, 196))
    part(-0.13, 0.26, 0.13, 0.19, (224, 230, 230))


def person(canvas: Canvas, x: float, foot: float, tall: float, coat: Colour) -> None:
    for leg in (-0.055, 0.055):
        canvas.box(x + (leg - 0.045) * tall, foot - 0.5 * tall, x + (leg + 0.045) * tall, foot, (74, 58, 52))
    canvas.box(x - 0.125 * tall, foot - 0.8 * tall, x + 0.125 * tall, foot - 0.42 * tall, coat)
    canvas.disc(x, foot - 0.9 * tall, 0.075 * tall, (132, 158, 196))


def draw() -> NDArray[np.uint8]:
    """(HEIGHT, WIDTH, 3) BGR uint8."""
    canvas = Canvas(seed=7)
    sky(canvas)
    ground(canvas)
    for side, start, end, top, colour in (
        (-420, 0.72, 0.93, -300, (150, 166, 178)),
        (-420, 0.5, 0.72, -640, (128, 150, 186)),
        (-420, 0.1, 0.5, -420, (176, 190, 200)),
        (1560, 0.7, 0.93, -420, (140, 150, 160)),
        (1560, 0.46, 0.7, -260, (168, 184, 206)),
        (1560, 0.08, 0.46, -560, (124, 138, 158)),
    ):
        facade(canvas, side, start, end, top, colour)
    tree(canvas, 452, 462, 116)
    tree(canvas, 846, 468, 130)
    tree(canvas, 984, 560, 260)
    tree(canvas, 240, 590, 300)
    car(canvas, 596, 452, 62, (150, 150, 152))
    car(canvas, 690, 486, 104, (96, 60, 40))
    car(canvas, 806, 640, 232, (58, 52, 150))
    person(canvas, 1090, 640, 206, (80, 70, 58))
    person(canvas, 376, 540, 104, (60, 62, 140))
    return canvas.kept()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("runtime/serving/http/static/sample.jpg"))
    arguments = parser.parse_args()
    cv2.imwrite(str(arguments.output), draw(), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
