"""A bundle of a published model with random weights: as fast as the trained one, and what it gives means nothing.

    python scripts/bench/random_bundle.py BUNDLE [--preset dpt_vit-b16_160k] [--checkpoint FILE.pth]

Used by the bench_*.py, whose ``--preset`` it is.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path


def random_bundle(preset: str, bundle: Path, checkpoint: Path | None = None) -> Path:
    """Export it to ``bundle``, in a process of its own: torch and its copies of the weights are in nobody's figures.

    Args:
        checkpoint: where the weights are kept; default: nowhere.
    """
    kept = [] if checkpoint is None else ["--checkpoint", checkpoint]
    subprocess.run([sys.executable, __file__, bundle, "--preset", preset, *kept], check=True)
    return bundle


def export(preset: str, bundle: Path, checkpoint: Path) -> None:
    """The same, in this process."""
    import torch

    from denseport.export.bundle import export_bundle
    from denseport.export.checkpoint.huggingface.family import renamed
    from denseport.export.checkpoint.networks.original import LAYOUTS
    from denseport.export.models.presets import published
    from denseport.export.models.segmentor import build

    torch.manual_seed(0)
    model = build(published()[preset].spec)
    weights = model.state_dict()
    if model.spec.task == "depth":  # in the names of its authors' files, which say how the rest is computed
        layout = next(each for each in LAYOUTS if each.head["type"] == model.spec.head.kind)
        names = inverse(layout.names)
        weights = {renamed(key, names): value for key, value in weights.items()}
        last = next(reversed(weights))
        weights[last] = weights[last] + 1  # depths above zero, so that no ReLU hides what differs
    torch.save({"state_dict": weights} if model.spec.task == "segmentation" else weights, checkpoint)
    export_bundle(checkpoint, bundle, preset=preset)


def inverse(names: Mapping[str, str]) -> dict[str, str]:
    r"""What undoes the names of a `Layout`: ``a\.(\d+)\.b`` to ``c.\1.d`` becomes ``c\.(\d+)\.d`` to ``a.\1.b``."""
    found: dict[str, str] = {}
    for pattern, name in names.items():
        groups = re.findall(r"\([^)]*\)", pattern)
        for number, group in enumerate(groups, start=1):
            pattern = pattern.replace(group, rf"\{number}", 1)
        back = re.sub(r"\\\\(\d)", lambda match, own=groups: own[int(match[1]) - 1], re.escape(name))
        found[back] = pattern.replace(r"\.", ".").rstrip("$")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder to make")
    parser.add_argument("--preset", default="dpt_vit-b16_160k", help="denseport models lists them")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE.pth", help="keep the weights there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        export(arguments.preset, arguments.bundle, arguments.checkpoint or Path(folder) / "random.pth")


if __name__ == "__main__":
    main()
