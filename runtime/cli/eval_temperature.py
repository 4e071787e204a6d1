"""``denseport eval --fit-temperature``: its options, and what it prints."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from denseport.runtime.cli.arguments import refuse_given
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.runtime.bundle.bundle import Bundle

__all__ = ["fit_and_print"]

# Options that say what is measured or judged, and how: nothing is.
MEASURING = (
    *("gate", "state", "shard", "merge", "ray", "report", "checkpoint", "workers"),
    *("resume", "explain", "record", "boundaries", "ece"),
)


def fit_and_print(arguments: argparse.Namespace, bundle: Bundle, data: dict[str, Any]) -> int:
    """Fit the temperature, keep it and print it; the exit code.

    Raises:
        InputError: an option that has no meaning here.
    """
    from denseport.runtime.evaluation.quality.temperature import fit_temperature
    from denseport.runtime.system.progress import Terminal

    what = "{} is for measuring, and --fit-temperature does not measure"
    refuse_given(arguments, MEASURING, what, "Leave one of them out.")
    work = {name: getattr(arguments, name) for name in ("artifact", "protocol", "threads")}
    found = fit_temperature(bundle, arguments.data, progress=Terminal(), **work, **data)
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=1))
        return 0
    print(f"temperature {found.temperature:.4f}, kept in the bundle")
    images, pixels = count(found.images, "image"), f"{found.pixels:,} pixels"
    print(f"fitted on {pixels} of {images}, protocol {found.protocol}; on these pixels:")
    print(f"  negative log-likelihood {found.nll[0]:.4f} before, {found.nll[1]:.4f} after")
    print(f"  calibration error (ECE) {found.ece[0]:.2f} % before, {found.ece[1]:.2f} % after")
    return 0
