"""NVIDIA Triton: model repositories made from bundles, and what runs inside of the server.

Whatever runs the network, a served model has the same two tensors, so a client need not know.
"""

from __future__ import annotations

__all__ = ["CLASSES", "ENCODED", "IMAGE", "INSTANCES", "LOGITS", "MASK"]

IMAGE = "image"  # in: (N, H, W, 3) uint8 BGR, as OpenCV has images; the network's own input has this name too
MASK = "mask"  # out: (N, H, W) uint8 class indices, uint16 beyond 256 classes
ENCODED = "encoded"  # in, of the ensemble: (1, length) uint8, the bytes of an image file
LOGITS = "logits"  # out, of a network on its own
CLASSES = "classes"  # a parameter of the model: the names of the classes as a JSON list
INSTANCES = "instances"  # another: how many processes answer
