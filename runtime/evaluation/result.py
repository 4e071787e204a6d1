"""What an evaluation found: scores, verdict, and what a reader must know to trust them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.evaluation.gate import Verdict
from denseport.runtime.evaluation.metrics import Scores
from denseport.runtime.evaluation.state import Measurement

__all__ = ["Evaluation"]


@dataclass(frozen=True)
class Evaluation(Scores):
    """What `evaluate` found: mIoU, mAcc, aAcc in percent and ``per_class``, as `Scores` has them, and the verdict."""

    artifact: str
    session: str  # what ran it, in words
    protocol: Protocol
    reduce_zero_label: bool  # masks count classes from 1, and 0 is ignored
    measurement: Measurement  # the counts, image by image
    agreement: float | None  # share of pixels with FP32's class, 0..1; None: FP32 was not run beside it
    gate: Verdict | None  # `passed`, `reasons`; None: nothing was to be judged
    warnings: tuple[str, ...]  # what a reader must know to trust the figures
    explanation: dict[str, Any] | None = None  # which step lost what, and as ``lines`` of text; None: not asked for
    report: Path | None = None  # the page; None: not asked for

    def to_dict(self) -> dict[str, Any]:
        """What ``denseport eval --json`` prints."""
        found, seconds = self.measurement, max(self.measurement.seconds, 1e-9)  # 0: nothing was left to measure
        result = {
            "artifact": self.artifact,
            "session": self.session,
            "protocol": {"name": self.protocol.name, "description": self.protocol.description},
            "images": found.images,
            "reduce_zero_label": self.reduce_zero_label,
            **super().to_dict(),
            "agreement": self.agreement,
            "gate": self.gate.to_dict() if self.gate is not None else None,
            "warnings": list(self.warnings),
            "seconds": round(found.seconds, 3),
            "images_per_second": round(found.measured / seconds, 3),
            "session_share": round(found.session_seconds / seconds, 4),
        }
        result |= {} if self.explanation is None else {"explanation": self.explanation}
        return result | ({} if self.report is None else {"report": str(self.report)})
