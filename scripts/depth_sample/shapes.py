"""Planes, boxes and spheres that rays hit, and the patterns on them.

World coordinates are metres: x right, y up, z ahead of the camera. Points and rays are (3, P) float32; a ray is any
length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PATTERNS", "Box", "Floats", "Plane", "Shape", "Sphere", "Surface", "dot"]

Floats = NDArray[np.float32]
NEAREST = np.float32(1e-3)  # what is hit nearer than this is where the ray begins
PATTERNS = ("plain", "checker", "stripes", "waves")


def dot(a: Floats, b: Floats) -> Floats:
    """Products of vectors (3, P) and (3, P) or (3, 1): (P,)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@dataclass(frozen=True)
class Surface:
    """Two colours in a pattern through space."""

    colours: Floats  # (2, 3) RGB, 0..1
    pattern: str  # one of `PATTERNS`
    cell: float  # side of a square, width of a stripe
    waves: Floats  # (W, 4): radians a metre along x, y and z, and a phase, of each wave

    def colour(self, points: Floats) -> Floats:
        """(3, P)."""
        first, second = self.colours[:, :, None]
        if self.pattern == "plain":
            return np.broadcast_to(first, points.shape)
        if self.pattern == "waves":
            share = np.float32(0.5) + np.float32(0.5) * np.sin(self.waves[:, :3] @ points + self.waves[:, 3:]).mean(0)
        else:
            cells = np.floor(points / np.float32(self.cell) + np.float32(0.37))
            share = (cells[0] + cells[2] + (cells[1] if self.pattern == "checker" else 0)) % 2
        return first + share * (second - first)


@dataclass(frozen=True)
class Plane:
    """All points p with normal . p = offset."""

    normal: Floats  # (3, 1), of length 1
    offset: float
    surface: Surface

    def hit(self, origin: Floats, rays: Floats) -> Floats:
        """How many times each ray goes from ``origin`` to the surface: (P,), infinite where it never does."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (np.float32(self.offset) - dot(origin, self.normal)) / dot(rays, self.normal)
        return np.where(found > NEAREST, found, np.float32(np.inf))

    def normals(self, points: Floats) -> Floats:
        """Outward, of length 1, at points of the surface: (3, P)."""
        return np.broadcast_to(self.normal, points.shape)

    def local(self, points: Floats) -> Floats:
        """Where the pattern has these points."""
        return points


@dataclass(frozen=True)
class Sphere:
    """A ball."""

    centre: Floats  # (3, 1)
    radius: float
    surface: Surface

    def hit(self, origin: Floats, rays: Floats) -> Floats:
        """As of `Plane`."""
        apart = origin - self.centre
        a, b = dot(rays, rays), dot(rays, apart)
        inside = b * b - a * (dot(apart, apart) - np.float32(self.radius**2))
        found = (-b - np.sqrt(np.maximum(inside, 0))) / a
        return np.where((inside > 0) & (found > NEAREST), found, np.float32(np.inf))

    def normals(self, points: Floats) -> Floats:
        """As of `Plane`."""
        return (points - self.centre) / np.float32(self.radius)

    def local(self, points: Floats) -> Floats:
        """As of `Plane`."""
        return points - self.centre


@dataclass(frozen=True)
class Box:
    """Upright, turned about its vertical axis."""

    centre: Floats  # (3, 1)
    half: Floats  # (3, 1), half its sides
    angle: float  # radians
    surface: Surface

    def hit(self, origin: Floats, rays: Floats) -> Floats:
        """As of `Plane`."""
        start, way = self.local(origin), self._turned(rays, self.angle)
        way[way == 0] = 1e-30  # a ray along a face is within its two planes all the way, or never
        middle, reach = -start / way, self.half / np.abs(way)
        near, far = (middle - reach).max(0), (middle + reach).min(0)
        return np.where((near <= far) & (near > NEAREST), near, np.float32(np.inf))

    def normals(self, points: Floats) -> Floats:
        """As of `Plane`."""
        own = self.local(points) / self.half
        face, along = np.abs(own).argmax(0), np.arange(own.shape[1])
        found = np.zeros_like(own)
        found[face, along] = np.sign(own[face, along])
        return self._turned(found, -self.angle)

    def local(self, points: Floats) -> Floats:
        """As of `Plane`."""
        return self._turned(points - self.centre, self.angle)

    @staticmethod
    def _turned(vectors: Floats, angle: float) -> Floats:
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x, y, z = vectors
        return np.stack([cos * x + sin * z, y, cos * z - sin * x])


Shape = Plane | Sphere | Box
