"""What an engine was built for, and whether that is what is here.

An engine is native code for one TensorRT release, one kind of GPU and one range of input sizes. TensorRT reports a
mismatch badly or not at all, so the engine's record in the manifest is compared before the engine is opened.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from denseport.runtime.bundle.decode import decode_dataclass
from denseport.runtime.errors import InputError
from denseport.runtime.system.text import count

__all__ = [
    "PORTABLE_RTX",
    "TITLES",
    "BuildRecord",
    "Profile",
    "Shape",
    "built_words",
    "find_profile",
    "mismatch",
    "sm_name",
]

TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
# What TensorRT-RTX builds for unless told otherwise: "8.0, 8.6, 8.9, 12.0, and later" (its guide, "CPU-Only AOT").
PORTABLE_RTX = ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Profile:
    """The input shapes (N, 3, H, W) that an engine accepts, and the one that it is tuned for."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def __post_init__(self) -> None:
        for low, best, high in zip(self.minimum, self.optimum, self.maximum, strict=True):
            if not 1 <= low <= best <= high:
                raise ValueError(
                    f"profile {self}: each size must be positive, and grow from the minimum over the optimum to the "
                    "maximum"
                )

    @property
    def fixed(self) -> bool:
        """Whether exactly one shape is allowed."""
        return self.minimum == self.maximum

    def __contains__(self, shape: object) -> bool:
        if not isinstance(shape, tuple) or len(shape) != len(self.minimum):
            return False
        return all(low <= n <= high for low, n, high in zip(self.minimum, shape, self.maximum, strict=True))

    def __str__(self) -> str:
        axes = [str(a) if a == b else f"{a}..{b}" for a, b in zip(self.minimum, self.maximum, strict=True)]
        return f"({', '.join(axes)})"


@dataclass(frozen=True)
class BuildRecord:
    """How an engine was built; `to_dict` is the artifact's record in the manifest."""

    flavour: str  # "tensorrt" or "tensorrt_rtx"
    version: str  # of TensorRT, whole
    cuda: str | None  # major version of CUDA that this TensorRT package is made for
    driver: str | None  # newest CUDA version of the driver here; None without a driver
    gpu: str | None  # name of the GPU that it was built on; None: built without one
    compute_capability: str | None  # of that GPU, "sm_86"
    targets: tuple[str, ...]  # compute capabilities it runs on; empty: that of the GPU it was built on
    version_compatible: bool  # also opens in later releases
    hardware_compatibility: str  # "none", "same_compute_capability" or "ampere_plus"
    profiles: tuple[Profile, ...]
    folded: bool  # everything that depends on the size was computed before the build
    optimization_level: int
    workspace: int | None  # bytes of scratch memory a layer may use; None: all the GPU has
    timing_cache: str  # its file, or why there is none
    types_asked: dict[str, int]  # nodes of the ONNX graph by the type that they compute in
    types_built: dict[str, int] | None  # layers of the engine by type, from TensorRT's inspector
    types_built_note: str | None  # why they are not known
    onnx_sha256: str  # of the file that was given
    engine_sha256: str
    seconds: float  # parsing, folding and building
    peak_host_bytes: int | None  # of this process during the build; None where the kernel does not say
    log: tuple[str, ...]  # TensorRT's warnings and errors
    output: str = "logits"  # what the engine gives: "logits" or "mask"
    plugin: str = "off"  # whether the project's kernels are in it: on, off or inlined, and why
    fused: dict[str, int] = field(default_factory=dict)  # nodes of the graph by the kernel that they call

    def __post_init__(self) -> None:
        if self.flavour not in TITLES:
            raise ValueError(f"flavour {self.flavour!r} is not one of {', '.join(TITLES)}")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> BuildRecord:
        """Read the record of the artifact ``where``, which may hold measurements too (audit, accuracy, speed).

        Raises:
            BundleError: a field is missing or mistyped.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        return decode_dataclass(cls, {key: value for key, value in data.items() if key in known}, where, "record")

    @property
    def built_for(self) -> str:
        """Version and GPU, for people: "TensorRT 11.4 for sm_86"."""
        if self.hardware_compatibility == "ampere_plus":
            gpus = "sm_80 and later"
        else:
            gpus = ", ".join(self.targets) or self.compute_capability or "an unknown GPU"
        return f"{TITLES[self.flavour]} {self.version} for {gpus}"


def built_words(types: dict[str, int] | None, note: str | None) -> str:
    """What an engine computes in, for people; arguments: `BuildRecord.types_built` and its note."""
    if types is None:
        return f"types built: unknown ({note})"
    return "types built: " + ", ".join(f"{count(number, 'layer')} {kind}" for kind, number in types.items())


def sm_name(capability: tuple[int, int]) -> str:
    """(8, 6) to "sm_86"."""
    return f"sm_{capability[0]}{capability[1]}"


def mismatch(record: BuildRecord, version: str, capability: tuple[int, int]) -> str | None:
    """Why an engine does not run on this TensorRT and GPU, as one clause; None if it does.

    Args:
        version: of the installed TensorRT of the record's flavour.
        capability: major and minor compute capability of the GPU here.
    """
    if _version_fits(record, version) and _gpu_fits(record, capability):
        return None
    return f"built with {record.built_for}; here is {version} on {sm_name(capability)}"


def _version_fits(record: BuildRecord, version: str) -> bool:
    if record.version == version or not record.version_compatible:
        return record.version == version
    built, here = _numbers(record.version), _numbers(version)
    # Across majors only 10 to 11 is supported (support matrix of TensorRT 11.4).
    return here >= built and (here[0] == built[0] or (built[0], here[0]) == (10, 11))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)) or (0,)


def _gpu_fits(record: BuildRecord, capability: tuple[int, int]) -> bool:
    if record.hardware_compatibility == "ampere_plus":
        return capability >= (8, 0)
    if record.targets:
        return sm_name(capability) in record.targets
    return record.compute_capability == sm_name(capability)


def find_profile(profiles: tuple[Profile, ...], shape: tuple[int, ...]) -> int:
    """Index of the first profile that allows an input shape.

    Raises:
        InputError: none does; the message states what is allowed.
    """
    for index, profile in enumerate(profiles):
        if shape in profile:
            return index
    allowed = " or ".join(map(str, profiles))
    height, width = profiles[0].optimum[2:]
    raise InputError(
        f"an input of {shape} is outside of what the engine was built for: (N, C, H, W) in {allowed}",
        f"Resize images (--protocol fixed:{width}x{height}), or build an engine for this size: "
        "denseport build BUNDLE --min … --opt … --max …",
    )
