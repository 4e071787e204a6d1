"""``denseport eval`` on a depth bundle: its options, and what it prints."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from denseport.runtime.cli.arguments import path, real, refuse_given
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.evaluation.depth.report import DepthEvaluation

__all__ = ["add_depth_options", "check_task", "evaluate_depths", "workers"]

# Options of one task.
OF_DEPTH = ("depths", "depth_suffix", "depth_scale", "min_depth", "max_depth", "crop")
OF_SEGMENTATION = (
    *("masks", "split", "mask_suffix", "reduce_zero_label", "label_map", "ignore_index"),
    *("agreement", "state", "shard", "merge", "ray", "checkpoint"),
    *("max_boundary_drop", "max_class_drop", "max_ece"),
    *("strict", "resume", "explain", "boundaries", "ece", "fit_temperature"),
)


def add_depth_options(group: argparse._ArgumentGroup) -> None:
    """Those that say how measured depths are read."""
    words = "folder of depths (.png of 16 bits, .npy of metres); --data is then the folder of images"
    group.add_argument("--depths", metavar="DIR", type=path, help=words)
    group.add_argument("--depth-suffix", metavar="END", help="how names of depths end, such as _depth.npy")
    words = "PNG values per metre; default: the layout's (NYUv2 1000, KITTI 256)"
    group.add_argument("--depth-scale", type=real(above=0), metavar="N", help=words)
    group.add_argument("--min-depth", type=real(above=0), metavar="M", help="metres from which depths count; 0.001")
    words = "metres up to which depths count; default: the layout's (NYUv2 10, KITTI 80), else the network's limit"
    group.add_argument("--max-depth", type=real(above=0), metavar="M", help=words)
    words = "pixels that count: Garg's or Eigen's of KITTI, or of NYUv2; default: all"
    group.add_argument("--crop", choices=("garg", "eigen", "nyu"), help=words)


def check_task(arguments: argparse.Namespace, task: str) -> None:
    """Refuse the options of the other task.

    Raises:
        InputError: it names one.
    """
    names = OF_SEGMENTATION if task == "depth" else OF_DEPTH
    refuse_given(arguments, names, f"{{}} is not for a network of {task}", "Leave it out.")


def workers(arguments: argparse.Namespace) -> dict[str, Any]:
    """``--workers`` where it is given, so that what takes none can refuse it."""
    return {} if arguments.workers is None else {"workers": arguments.workers}


def evaluate_depths(arguments: argparse.Namespace, bundle: Bundle) -> int:
    """Measure, judge and print; the exit code."""
    from denseport.runtime.evaluation.depth.dataset import DepthReading
    from denseport.runtime.evaluation.depth.evaluate import evaluate_depth
    from denseport.runtime.evaluation.gate import Gate
    from denseport.runtime.system.progress import Terminal

    names = ("artifact", "protocol", "depths", "list_file", "image_suffix", "depth_suffix", "limit", "threads")
    found = evaluate_depth(
        bundle,
        arguments.data,
        gate=None if arguments.gate is None else Gate(arguments.gate, arguments.budget),
        settings=DepthReading(arguments.depth_scale, arguments.min_depth, arguments.max_depth, arguments.crop),
        report=arguments.report,
        record=arguments.record,
        progress=Terminal(),
        **{name: getattr(arguments, name) for name in names},
        **workers(arguments),
    )
    print(json.dumps(found.to_dict(), indent=1) if arguments.json else "\n".join(_lines(found)))
    return 0 if found.gate is None or found.gate.passed else 1


def _lines(found: DepthEvaluation) -> Iterator[str]:
    rows = [("", found.metrics), *([("FP32", found.fp32)] if found.fp32 is not None else [])]
    yield f"{'':6}" + "".join(f"{name:>9}" for name in found.metrics)
    for title, row in rows:
        yield f"{title:6}" + "".join(f"{value:9.4f}" for value in row.values())
    yield ""
    yield found.session
    reading, pixels = found.reading, f"{int(found.measurement.pixels.sum()):,} pixels"
    images = count(found.measurement.images, "image")
    yield f"protocol {found.protocol.name} ({found.protocol.description}), {images}, {pixels}"
    yield f"data: {found.data}"
    crop = f"the crop {reading.crop}" if reading.crop else "no crop"
    aligned = "; each image aligned by least squares" if found.aligned else ""
    yield f"depths from {reading.least:g} to {reading.most:g} m, {crop}{aligned}"
    yield from (f"warning: {text}" for text in found.warnings)
    if found.report is not None:
        yield f"report: {found.report}"
    if (gate := found.gate) is not None:
        yield f"{'PASS' if gate.passed else 'FAIL'}: against {gate.compared_with}, AbsRel {-gate.delta:+.2f} %"
        if gate.interval is not None:
            low, high = gate.interval
            yield f"  95 % confidence: {-high:+.2f} to {-low:+.2f} %; budget {gate.budget:g} %"
        yield from (f"  {text}" for text in (*gate.reasons, *gate.notes))
