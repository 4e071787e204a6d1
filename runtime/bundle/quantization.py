"""What a quantized artifact was found to be worth on one kind of machine.

`denseport calibrate` writes it into the artifact's record under ``verdict``; `denseport.runtime.selection` reads it
there. Whether INT8 is faster is a property of the machine, so a verdict holds for machines of its kind only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from denseport.runtime.bundle.artifact import Artifact
from denseport.runtime.bundle.decode import decode_dataclass
from denseport.runtime.system.machine import Machine

__all__ = ["QuantizationVerdict", "kind_of"]

KEY = "verdict"


@dataclass(frozen=True)
class QuantizationVerdict:
    """Speed and accuracy of an artifact beside FP32, and what follows from them."""

    machine: str  # `kind_of` it
    cpus: int  # that the measuring process could use
    session: str  # what ran it: library, provider, threads
    seconds: dict[str, float]  # of the network for an image, median; by artifact, this one and its rivals
    speed_ratio: float  # FP32's seconds / this one's: the median of the rounds' ratios
    agreement: float  # share of pixels with FP32's class, 0..1
    miou: float | None  # percent, on labelled images; None: there were none
    fp32_miou: float | None  # percent, on the same ones
    labelled: int  # how many
    within_budget: bool  # the accuracy
    accepted: bool  # within the budget, and faster than FP32
    reason: str  # of that, in words
    versions: str
    date: str

    def record(self) -> dict[str, Any]:
        """The entry for the artifact's record."""
        return {KEY: dataclasses.asdict(self)}

    @classmethod
    def of(cls, artifact: Artifact, where: str) -> QuantizationVerdict | None:
        """The verdict in an artifact's record; None where nothing was measured.

        Args:
            where: the artifact's name, for messages.

        Raises:
            BundleError: a field is missing, unknown or mistyped.
        """
        data = artifact.record.get(KEY)
        return None if data is None else decode_dataclass(cls, data, where, KEY)


def kind_of(machine: Machine, *, on_gpu: bool) -> str:
    """The name of what computes: machines that share it are of one kind."""
    return machine.gpus[0].name if on_gpu else machine.processor
