"""Whether anything on record compares an artifact with FP32 or with labels, and the command that does."""

from __future__ import annotations

from denseport.runtime.bundle.engine_record import BuildRecord
from denseport.runtime.bundle.manifest import FP32, Artifact

__all__ = ["comparing_command", "is_compared"]

# Entries of a record: of `denseport export`, `build`, `eval --record` and `calibrate`.
COMPARISONS = ("max_difference", "audit", "accuracy", "verdict")


def is_compared(artifact: Artifact) -> bool:
    """Whether an artifact's record tells how far it is from FP32, or what it is worth on labelled images."""
    return any(artifact.record.get(key) is not None for key in COMPARISONS)


def comparing_command(name: str, artifact: Artifact) -> str:
    """The command, for people, that would compare an artifact.

    Raises:
        BundleError: an engine's record is damaged.
    """
    return _for_engine(name, artifact) if artifact.kind == "engine" else _for_graph(name, artifact)


def _for_graph(name: str, artifact: Artifact) -> str:
    record, precision = artifact.record, artifact.precision
    if "calibration" in record:
        return f"denseport calibrate BUNDLE --measure {name} --images IMAGES"
    options = ["--float-precision fp16"] * name.startswith(f"{precision}.fp16.")
    options += ["--output mask"] * (record.get("output") == "mask")
    options += ["--plugin on"] * ("fusion" in record)
    return " ".join(["denseport build BUNDLE --precision", precision, *options, "--images IMAGES"])


def _for_engine(name: str, artifact: Artifact) -> str:
    record = BuildRecord.from_dict(artifact.record, name)
    if record.output == "mask":
        return "building it where it runs, with --images IMAGES"
    height, width = record.profiles[0].optimum[2:]
    protocol = f" --protocol fixed:{height}x{width}" * record.profiles[0].fixed
    return f"denseport eval BUNDLE --artifact {name} --data ROOT{protocol} --gate {FP32} --record (where it runs)"
