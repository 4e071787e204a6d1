"""Images of rooms and open ground that were never anywhere, with the exact depth of each pixel.

    python scripts/depth_sample/render.py DIR --count 200 [--seed 1000000] [--size 320x240]

writes DIR/images/N.jpg and DIR/depths/N.png: 16 bits, millimetres, 0 where nothing is within 20 m. A scene follows
from its seed alone, at any size.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from shapes import PATTERNS, Box, Floats, Plane, Shape, Sphere, Surface, dot

__all__ = ["MAX_DEPTH", "Scene", "draw_scene", "render", "write"]

MAX_DEPTH = 20.0  # metres; what is farther is not measured
HALF_VIEW = np.tan(np.radians(32))  # half the width of what is seen, at 1 m
FILL = 0.45  # of the light that has no direction


@dataclass(frozen=True)
class Scene:
    """What there is to see. The camera is 1.5 m above the origin, as a rule, and looks ahead and 6 degrees down."""

    shapes: tuple[Shape, ...]
    height: float  # of the camera, metres
    pitch: float  # down, radians
    sun: Floats  # (3, 1): the direction to it, of length 1
    sky: Floats  # (3, 1) RGB, 0..1; the fog's colour too
    fog: float  # share that a metre adds, about
    noise: float  # standard deviation, grey levels


def draw_scene(seed: int) -> Scene:
    """Scene number ``seed``: a room or open ground, with 3 to 9 things on the floor."""
    random = np.random.default_rng(seed)
    indoors = random.random() < 0.5
    things = [_thing(random) for _ in range(random.integers(3, 10))]
    sun = random.normal((0, 1.2, -0.3), 0.5)
    return Scene(
        shapes=(_plane(random, (0, 1, 0), 0.0), *(_room(random) if indoors else _houses(random)), *things),
        height=random.uniform(1.4, 1.6),
        pitch=float(np.radians(random.uniform(4, 8))),
        sun=_vector(sun / np.linalg.norm(sun)),
        sky=_vector(random.uniform((0.5, 0.6, 0.7), (0.9, 0.95, 1.0))),
        fog=float(random.choice([0, random.uniform(0.01, 0.07)])),
        noise=random.uniform(1, 5),
    )


def _room(random: np.random.Generator) -> list[Shape]:
    left, right, back = random.uniform(2, 6), random.uniform(2, 6), random.uniform(5, 18)
    walls = [_plane(random, (1, 0, 0), -left), _plane(random, (-1, 0, 0), -right), _plane(random, (0, 0, -1), -back)]
    return [*walls, _plane(random, (0, -1, 0), -random.uniform(2.4, 4))]


def _houses(random: np.random.Generator) -> list[Shape]:
    found: list[Shape] = []
    for _ in range(random.integers(0, 5)):
        half = random.uniform((1, 1, 1), (4, 4, 4))
        place = random.uniform(-12, 12), half[1], random.uniform(10, 24)
        found.append(Box(_vector(place), _vector(half), random.uniform(-0.6, 0.6), _surface(random)))
    return found


def _thing(random: np.random.Generator) -> Shape:
    """A box, a pillar or a ball, on the floor and within what is seen."""
    z = random.uniform(1.8, 4) if random.random() < 0.3 else random.uniform(3, 14)
    x = random.uniform(-1, 1) * z * HALF_VIEW
    kind = random.choice(["box", "pillar", "ball"], p=[0.5, 0.2, 0.3])
    if kind == "ball":
        radius = random.uniform(0.15, 0.8)
        return Sphere(_vector((x, radius, z)), radius, _surface(random))
    half = random.uniform((0.15, 0.15, 0.15), (0.8, 0.9, 0.8))
    if kind == "pillar":
        half = random.uniform((0.06, 0.8, 0.06), (0.2, 1.6, 0.2))
    return Box(_vector((x, half[1], z)), _vector(half), random.uniform(-np.pi, np.pi), _surface(random))


def _plane(random: np.random.Generator, normal: tuple[int, int, int], offset: float) -> Plane:
    return Plane(_vector(normal), offset, _surface(random))


def _surface(random: np.random.Generator) -> Surface:
    first = random.uniform(0.1, 0.95, 3)
    second = np.clip(first + random.normal(0, 0.3, 3), 0.05, 1)
    ways = random.normal(0, 1, (4, 3))
    ways *= random.uniform(1.5, 8, (4, 1)) / np.linalg.norm(ways, axis=1, keepdims=True)
    waves = np.hstack([ways, random.uniform(0, 2 * np.pi, (4, 1))]).astype(np.float32)
    pattern = random.choice(PATTERNS, p=[0.25, 0.2, 0.2, 0.35])
    return Surface(np.array([first, second], np.float32), str(pattern), random.uniform(0.12, 0.6), waves)


def _vector(values: Sequence[float] | NDArray[np.float64]) -> Floats:
    """(3, 1)."""
    return np.array(values, np.float32)[:, None]


def render(seed: int, width: int, height: int) -> tuple[NDArray[np.uint8], Floats]:
    """Scene number ``seed``.

    Returns:
        image: (height, width, 3) RGB uint8.
        depth: (height, width) metres along the viewing direction, infinite in the sky.
    """
    scene = draw_scene(seed)
    rays, origin = _rays(scene, width, height), _vector((0, scene.height, 0))
    hits = np.stack([shape.hit(origin, rays) for shape in scene.shapes])
    seen, depth = hits.argmin(0), hits.min(0)
    colour = np.repeat(scene.sky, rays.shape[1], axis=1)
    for number, shape in enumerate(scene.shapes):
        at = np.flatnonzero((seen == number) & np.isfinite(depth))
        if len(at):
            colour[:, at] = _lit(scene, shape, origin + rays[:, at] * depth[at])
    clear = np.exp(np.float32(-scene.fog) * np.minimum(depth, np.float32(1e3)))
    colour = scene.sky + clear * (colour - scene.sky)
    noise = np.random.default_rng((seed, width, height)).standard_normal(colour.shape, np.float32)
    image = np.clip(np.rint(255 * colour + np.float32(scene.noise) * noise), 0, 255).astype(np.uint8)
    return image.T.reshape(height, width, 3), depth.reshape(height, width)


def _rays(scene: Scene, width: int, height: int) -> Floats:
    """(3, P): through each pixel's centre, as long as to go 1 m ahead, so that multiples are depths."""
    step = 2 * HALF_VIEW / width
    x = (np.arange(width) + 0.5 - width / 2) * step
    y = -(np.arange(height) + 0.5 - height / 2) * step
    across, up = (each.ravel() for each in np.meshgrid(x, y))
    cos, sin = np.cos(scene.pitch), np.sin(scene.pitch)
    return np.array([across, up * cos - sin, up * sin + cos], np.float32)


def _lit(scene: Scene, shape: Shape, points: Floats) -> Floats:
    """(3, P): the surface's colour in what light reaches it past the other things."""
    normals = shape.normals(points)
    facing = np.maximum(dot(normals, scene.sun), 0)
    lit = np.flatnonzero(facing)
    start = points[:, lit]
    for other in scene.shapes:
        if len(lit) and not isinstance(other, Plane) and other is not shape:
            facing[lit[np.isfinite(other.hit(start, scene.sun))]] = 0
    return shape.surface.colour(shape.local(points)) * (np.float32(FILL) + np.float32(1 - FILL) * facing)


def write(folder: Path, seed: int, name: str, width: int, height: int) -> None:
    """An image and its depths, in the layout that ``denseport eval`` reads."""
    image, depth = render(seed, width, height)
    millimetres = np.where(depth <= MAX_DEPTH, np.round(1000 * np.minimum(depth, MAX_DEPTH)), 0).astype(np.uint16)
    for file, pixels, settings in (
        (f"images/{name}.jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]),
        (f"depths/{name}.png", millimetres, [cv2.IMWRITE_PNG_COMPRESSION, 9]),
    ):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), pixels, settings):
            raise OSError(f"{path}: cannot be written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first; training takes those from 0")
    parser.add_argument("--size", default="320x240", help="width x height")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    for number in range(arguments.count):
        write(arguments.folder, arguments.seed + number, f"{number:04d}", width, height)


if __name__ == "__main__":
    main()
