"""Build engines of a full-size model with random weights and print what it takes.

::

    python scripts/bench/engine.py dpt_vit-b16_160k --profile reference --engine tensorrt_rtx

The host memory is this process's peak during the build, without the export.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", help="denseport models lists them")
    parser.add_argument("--profile", default="reference")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--engine", default="tensorrt_rtx")
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument(
        "--fused", action="store_true", help="fuse the graph for the plugin; RTX runs the functions' bodies"
    )
    parser.add_argument("--onnx", type=Path, help="build this file instead of exporting the preset")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.onnx
        if model is None:
            model = Path(folder) / "model.onnx"
            # Another process, so that torch and its copies of the weights are not in the figure.
            subprocess.run([sys.executable, "-c", EXPORT, arguments.preset, str(model)], check=True)
        if arguments.precision != "fp32":
            typed = Path(folder) / f"{arguments.precision}.onnx"
            subprocess.run([sys.executable, "-c", TYPE, str(model), str(typed), arguments.precision], check=True)
            model = typed
        if arguments.fused:
            fused = Path(folder) / "fused.onnx"
            subprocess.run([sys.executable, "-c", FUSE, str(model), str(fused)], check=True)
            model = fused
        build(model, Path(folder) / "model.engine", arguments)


EXPORT = """
import sys
from pathlib import Path
import torch
from denseport.export.models.segmentor import build
from denseport.export.entrance.torch_to_onnx import export_onnx
from denseport.export.models.presets import PRESETS
torch.manual_seed(0)
export_onnx(build(PRESETS[sys.argv[1]].spec), Path(sys.argv[2]))
"""

TYPE = """
import sys
from pathlib import Path
from denseport.export.graph.model import read_model, save_model
from denseport.export.graph.precision import set_types
model = read_model(Path(sys.argv[1]))
set_types(model, sys.argv[3])
save_model(model, Path(sys.argv[2]))
"""

FUSE = """
import sys
from pathlib import Path
from denseport.export.graph.fusion import fuse
from denseport.export.graph.model import read_model, save_model
model = read_model(Path(sys.argv[1]))
fuse(model)
save_model(model, Path(sys.argv[2]))
"""


def build(model: Path, engine: Path, arguments: argparse.Namespace) -> None:
    from denseport.export.engine.build import EngineOptions, build_engine
    from denseport.export.engine.profile import named_profiles
    from denseport.runtime.system.progress import Terminal

    options = EngineOptions(
        arguments.engine, named_profiles(arguments.profile, arguments.engine), targets=tuple(arguments.target)
    )
    with Terminal().phase(arguments.preset) as progress:
        record = build_engine(model, engine, options, progress=progress)
    figures = {
        "preset": arguments.preset,
        "precision": arguments.precision,
        "profiles": [str(profile) for profile in record.profiles],
        "built": record.built_for,
        "seconds": record.seconds,
        "peak_host_GB": record.peak_host_bytes and round(record.peak_host_bytes / 1e9, 2),
        "onnx_MB": round(model.stat().st_size / 1e6, 1),
        "engine_MB": round(engine.stat().st_size / 1e6, 1),
        "types_asked": record.types_asked,
        "plugin": record.plugin,
        "fused": record.fused,
        "log": record.log,
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
