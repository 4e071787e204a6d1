"""Build records of engines that nobody built."""

from __future__ import annotations

import dataclasses
from typing import Any

from denseport.runtime.bundle.engine_record import BuildRecord, Profile

__all__ = ["build_record"]

_RECORD = BuildRecord(
    flavour="tensorrt",
    version="11.4.0.10",
    cuda="13",
    driver="13.0",
    gpu="NVIDIA A10",
    compute_capability="sm_86",
    targets=(),
    version_compatible=False,
    hardware_compatibility="none",
    profiles=(Profile((1, 3, 512, 512), (1, 3, 512, 683), (1, 3, 512, 2048)),),
    folded=False,
    optimization_level=3,
    workspace=None,
    timing_cache="none",
    types_asked={"fp32": 10},
    types_built=None,
    types_built_note="no engine at all",
    onnx_sha256="0",
    engine_sha256="1",
    seconds=1.5,
    peak_host_bytes=None,
    log=("[WARNING] w",),
)


def build_record(**fields: Any) -> BuildRecord:
    """The record of an engine of the enterprise TensorRT for a single kind of GPU, but for ``fields``."""
    return dataclasses.replace(_RECORD, **fields)
