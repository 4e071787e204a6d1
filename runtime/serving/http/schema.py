"""The other JSON that the server sends, as types: FastAPI makes the OpenAPI description of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from denseport.runtime.serving.http.limits import MAX_SIDE
from denseport.runtime.serving.http.service import Service

__all__ = ["ArtifactInfo", "ClassInfo", "Failure", "ModelInfo", "State", "describe"]


@dataclass(frozen=True)
class Failure:
    """The form of every error."""

    error: str  # what is wrong
    remedy: str | None  # what mends it


@dataclass(frozen=True)
class State:
    """Whether the server lives, or takes images."""

    status: str


@dataclass(frozen=True)
class ClassInfo:
    """A class that the model tells apart."""

    name: str
    colour: str  # "#rrggbb"


@dataclass(frozen=True)
class ArtifactInfo:
    """One of the bundle's artifacts, and what was measured on it."""

    name: str
    precision: str
    kind: str  # "onnx" or "engine"
    runs_here: bool
    why_unsupported: str | None  # why it does not run here
    mIoU: float | None  # percent, of the last recorded evaluation; None of depth
    accuracy: dict[str, Any] | None  # that evaluation: images, protocol, gate, date
    agreement: float | None  # percent of the pixels that had FP32's class when it was audited
    milliseconds: dict[str, float] | None  # mean by stage since this server started


@dataclass(frozen=True)
class ModelInfo:
    """What is served, and what is taken."""

    name: str
    architecture: str
    parameters: int
    task: str  # "segmentation" or "depth"
    depth: dict[str, Any] | None  # of depth: its unit, its direction, its limit
    classes: list[ClassInfo]
    artifacts: list[ArtifactInfo]
    default_artifact: str
    running: str  # the default artifact, and on what
    formats: list[str]
    max_bytes: int  # of a request
    max_pixels: int  # of a request's images
    max_images: int  # of a request
    max_side: int


def describe(service: Service) -> ModelInfo:
    """What ``/v1/model`` says."""
    manifest, limits = service.manifest, service.limits
    colours = ["#" + bytes(colour).hex() for colour in manifest.palette]
    return ModelInfo(
        name=manifest.name,
        architecture=manifest.architecture,
        parameters=manifest.parameters,
        task=manifest.task,
        depth=None if manifest.depth is None else dataclasses.asdict(manifest.depth),
        classes=[ClassInfo(name.strip(), colour) for name, colour in zip(manifest.classes, colours, strict=True)],
        artifacts=[_artifact(service, name) for name in manifest.artifacts],
        default_artifact=service.default,
        running=service.description,
        formats=[str(each) for each in service.answers.formats],
        max_bytes=limits.max_bytes,
        max_pixels=limits.max_pixels,
        max_images=limits.max_images,
        max_side=MAX_SIDE,
    )


def _artifact(service: Service, name: str) -> ArtifactInfo:
    artifact, reason = service.manifest.artifacts[name], service.why_unsupported[name]
    accuracy, audit = artifact.record.get("accuracy"), artifact.record.get("audit")
    return ArtifactInfo(
        name=name,
        precision=artifact.precision,
        kind=artifact.kind,
        runs_here=not reason,
        why_unsupported=reason or None,
        mIoU=None if accuracy is None else accuracy.get("mIoU"),
        accuracy=accuracy,
        agreement=None if audit is None else 100 * audit["agreement"],
        milliseconds=service.mean_times(name),
    )
