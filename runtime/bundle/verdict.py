"""What an artifact was found to be worth on one kind of machine.

`denseport calibrate` and `denseport build --for-this-machine` write it into the artifact's record under ``verdict``;
`denseport.runtime.selection` reads it. Whether INT8, BF16 or another library is faster depends on the machine, so a
verdict holds for machines of its kind only.
"""

from __future__ import annotations

from dataclasses import dataclass

from denseport.runtime.bundle.artifact import Artifact
from denseport.runtime.bundle.decode import decode_dataclass
from denseport.runtime.system.machine import Machine

__all__ = ["MachineVerdict", "kind_of"]


@dataclass(frozen=True)
class MachineVerdict:
    """Speed and accuracy of an artifact beside FP32, and what follows from them."""

    machine: str  # as `kind_of` names it
    cpus: int  # that the measuring process could use
    session: str  # what ran it: library, provider, threads
    seconds: dict[str, float]  # of the network for an image, median; by artifact, the compared ones included
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

    @property
    def words(self) -> str:
        """Whether it may be used without being asked for, where, and why; a faster artifact goes before it."""
        return f"{'may be' if self.accepted else 'not'} used by itself on {self.machine}: {self.reason}"

    @classmethod
    def of(cls, artifact: Artifact, where: str) -> MachineVerdict | None:
        """The verdict in an artifact's record; None where nothing was measured.

        Args:
            where: the artifact's name, for messages.

        Raises:
            BundleError: a field is missing, unknown or mistyped.
        """
        data = artifact.record.get("verdict")
        return None if data is None else decode_dataclass(cls, data, where, "verdict")


def kind_of(machine: Machine, *, on_gpu: bool) -> str:
    """The name of what computes: machines that share it are of one kind."""
    return machine.gpus[0].name if on_gpu else machine.processor
