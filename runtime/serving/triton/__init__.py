"""NVIDIA Triton: model repositories made from bundles, and what runs inside of the server.

Whatever runs the network, a served model has the same two tensors, so a client need not know.
"""

from __future__ import annotations

__all__ = ["CLASSES", "DEPTH", "ENCODED", "IMAGE", "INSTANCES", "MASK", "MEANING", "OUTPUT"]

IMAGE = "image"  # in: (N, H, W, 3) uint8 BGR, as OpenCV has images; the network's own input has this name too
MASK = "mask"  # out: (N, H, W) uint8 class indices, uint16 beyond 256 classes
DEPTH = "depth"  # out, of a depth bundle in its place: (N, H, W) float32, in the bundle's unit
ENCODED = "encoded"  # in, of the ensemble: (1, length) uint8, the bytes of an image file
CLASSES = "classes"  # a parameter of the model: the names of the classes as a JSON list
MEANING = "meaning"  # another: what depths mean, the manifest's `depth` as JSON; null of masks
OUTPUT = "output"  # another: the name of what it gives, `MASK` or `DEPTH`
INSTANCES = "instances"  # another: how many processes answer
