"""What TensorRT's parser and builder complain about, in words that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from denseport.export.errors import BuildError
from denseport.runtime.backends.tensorrt_library import Library, LogLine
from denseport.runtime.bundle.engine_record import TITLES
from denseport.runtime.errors import DenseportError, MachineError

__all__ = ["builder_error", "is_notable", "parser_error"]

# The remedy of each complaint of the parser; the first that is found counts.
PARSER_REMEDIES = (
    ("Plugin not found", "TensorRT does not know this operator: replace it in the model, or register its plugin."),
    ("must have same input types", "Its inputs differ in type: the graph needs a Cast, or another precision policy."),
    ("ntialiasing is not supported", "Export the resize without antialias."),
    ("Failed to parse the ONNX model", "The file is not an ONNX model: export or import it again."),
    ("", "This TensorRT cannot run the operator: rewrite that layer, or try a newer release."),
)
# What the machine lacks if the builder logs this, and the remedy; the first that is found counts.
BUILDER_REMEDIES = (
    (
        "within workspace limit|insufficient workspace|try increasing the workspace",
        "ran out of memory: no kernel fits into the workspace{limit}",
        "Allow a larger workspace, or build for smaller sizes.",
    ),
    (
        "OutOfMemory|out of memory|insufficient memory|Requested amount of GPU memory",
        "ran out of memory",
        "Free memory (of the machine and of the GPU), allow a smaller workspace, or build for smaller sizes.",
    ),
    (
        "could not find any implementation",  # how 10.x reports either (NVIDIA/TensorRT#4258)
        "found no kernel for a layer, which is how it reports too little memory",
        "Free memory of the GPU, allow a larger workspace, or build for smaller sizes.",
    ),
    (
        "cudaError 35|CUDA initialization failure|no CUDA-capable device",
        "builds on the GPU that the engine is for, and finds none here",
        "Build on that machine, or use --engine tensorrt_rtx, which needs no GPU to build.",
    ),
)
# Warnings of a build that succeeds, but could be better: kernels left out for want of memory, values lost in FP16.
MENDABLE = re.compile(r"workspace|memory|overflow|converted to FP16", re.I)
ECHO = re.compile(r"catchCudaError|ScopedCudaStream")  # without a driver each error brings this one along


def parser_error(library: Library, parser: Any, where: str) -> BuildError:
    """Every error of the parser: the node (named for the model's layer), the operator, the reason and the remedy."""
    lines, remedies = [f"{where}: {TITLES[library.flavour]} {library.version} cannot read the graph:"], set()
    for error in (parser.get_error(i) for i in range(parser.num_errors)):
        node = f"{error.node_name()} ({error.node_operator()})" if error.node_operator() else "the file"
        lines.append(f"{node}: {_reason(error)}")
        remedies.add(next(remedy for words, remedy in PARSER_REMEDIES if words in error.desc()))
    return BuildError("\n  ".join(lines), "\n  ".join(sorted(remedies)) or None)


def _reason(error: Any) -> str:
    """The description without C++'s condition, the node's repetition and the missing driver's echo."""
    text = [line for line in str(error.desc()).splitlines() if not ECHO.search(line) and "Invalid Node" not in line]
    reason = " ".join(text)
    if quoted := re.search(r'"([^"]+)"\s*$', reason):
        return quoted[1]
    return reason if reason and reason != "false" else f"not supported ({error.code().name})"


def is_notable(line: str) -> bool:
    """Whether a user should read this line of a build's log: an error, or a warning that can be acted on."""
    return not line.startswith("[WARNING]") or MENDABLE.search(line) is not None


def builder_error(library: Library, lines: Iterable[LogLine], where: str, workspace: int | None) -> DenseportError:
    """Why the builder gave no engine, from what it logged."""
    errors = [line.text for line in lines if "ERROR" in line.severity]
    said = "\n  ".join([text for text in errors if not ECHO.search(text)] or errors or ["it gave no reason"])
    who = f"{where}: {TITLES[library.flavour]} {library.version}"
    for pattern, meaning, remedy in BUILDER_REMEDIES:
        if re.search(pattern, said, re.IGNORECASE):
            meaning = meaning.format(limit=f" of {workspace / 2**20:,.0f} MiB" if workspace else "")
            return MachineError(f"{who} {meaning}:\n  {said}", remedy)
    turing = "Build from a 16-bit graph for sm_75: --precision fp16" if "for Turing (SM75)" in said else None
    return BuildError(f"{who} built no engine:\n  {said}", turing)
