"""What a caller asks a segmenter for, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError
from denseport.runtime.system.arguments import whole

__all__ = ["MASK_ONLY", "RequestedOutputs", "Segmentation", "Timings"]


@dataclass(frozen=True)
class RequestedOutputs:
    """What a caller wants beside the mask."""

    scores: bool = False  # the probability of each pixel's class
    top_k: int = 0  # so many likeliest classes and their probabilities

    def check(self, classes: int, has_scores: bool = True) -> None:
        """Raises InputError for more classes than there are, no number of them, or scores where there are none."""
        whole("top_k", self.top_k, 0, classes)
        if not has_scores and self != MASK_ONLY:
            what = "the network tells the class of a pixel, not how likely it is: there are no scores"
            raise InputError(what, "Ask for the mask alone.")


MASK_ONLY = RequestedOutputs()


@dataclass(frozen=True)
class Timings:
    """Wall time that one image spent in each stage, milliseconds; waiting between stages is not counted."""

    decode: float = 0.0  # reading and decoding a file; 0 for an array
    preprocess: float = 0.0  # resize, normalise; 0 where the GPU does it, within `infer`
    infer: float = 0.0  # the session; of a batch: its time divided by its images
    postprocess: float = 0.0  # logits to mask and scores, at the image's own size

    @property
    def total(self) -> float:
        """The stages' sum, milliseconds."""
        return self.decode + self.preprocess + self.infer + self.postprocess


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result for one image, or for the region of it that was asked for."""

    mask: NDArray[np.unsignedinteger[Any]]  # (H, W), class index of each pixel, at the image's own size
    artifact: str  # the artifact that ran
    image: NDArray[np.uint8] = field(repr=False)  # (H, W, 3) BGR, what was segmented: the caller's array, or decoded
    timings: Timings = field(default_factory=Timings)
    scores: NDArray[np.float32] | None = None  # (H, W), probability of each pixel's class, if asked for
    top_classes: NDArray[np.unsignedinteger[Any]] | None = None  # (k, H, W), the likeliest first, if asked for
    top_scores: NDArray[np.float32] | None = None  # (k, H, W), their probabilities
