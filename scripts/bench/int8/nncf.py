"""NNCF's INT8 of a bundle's network beside Denseport's artifacts: accuracy on a labelled set, speed in turns.

    python scripts/bench/int8/nncf.py BUNDLE --images DIR --data ROOT [--list FILE] [--artifacts NAME …]

NNCF is installed in an environment of its own (``--environment``). It calibrates on the network inputs that Denseport
makes of the images of DIR (``--limit`` 32). Its model then runs on OpenVINO, with the float part in FP32 and, where the
processor has it, in BF16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

from denseport.runtime.backends.openvino import OpenVinoSession
from denseport.runtime.benchmark.race import race, speed_ratio
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.evaluation.measure import measure_dataset
from denseport.runtime.pipeline.network_input import NetworkInputs, evenly_spaced, sample_evenly
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.cpus import has_bf16, usable_cpus

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from processes import environment

PACKAGES = ("nncf==3.4.0", "openvino==2026.4.1")
QUANTIZE = """
import sys
from pathlib import Path
import nncf, numpy as np, openvino
model, arrays, preset, target = sys.argv[1:5]
files = sorted(Path(arrays).glob("*.npy"))
data = nncf.Dataset(files, lambda file: {"image": np.load(file)})
kind = {"transformer": nncf.ModelType.TRANSFORMER, "ptq": None}[preset]
core = openvino.Core()
quantized = nncf.quantize(core.read_model(model), data, subset_size=len(files), model_type=kind)
openvino.save_model(quantized, target, compress_to_fp16=False)
"""


def quantized(python: Path, bundle: Bundle, inputs: NetworkInputs, preset: str, folder: Path) -> Path:
    """NNCF's model of the bundle's network, calibrated on these inputs."""
    arrays, target = folder / "inputs", folder / "nncf.xml"
    arrays.mkdir()
    for number, image in enumerate(inputs):
        np.save(arrays / f"{number:04}.npy", image)
    source = bundle.verified(bundle.manifest.source)
    subprocess.run([python, "-c", QUANTIZE, source, arrays, preset, target], check=True, stdout=sys.stderr)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", nargs="+", required=True, metavar="DIR", help="to calibrate with")
    parser.add_argument(
        "--limit", type=int, default=32, metavar="N", help="images to calibrate with; default: %(default)s"
    )
    parser.add_argument(
        "--data", type=Path, metavar="ROOT", help="labelled set to measure mIoU on; default: speed only"
    )
    parser.add_argument("--list", type=Path, metavar="FILE", help="names of the images of the set to measure on")
    parser.add_argument(
        "--artifacts", nargs="+", default=["model.onnx"], metavar="NAME", help="the first is 1.00 times"
    )
    parser.add_argument("--preset", choices=("transformer", "ptq"), default="transformer", help="ptq: NNCF's default")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--environment", type=Path, default=Path("out/bench/nncf-env"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    bundle = Bundle(arguments.bundle)
    inputs = NetworkInputs.of_bundle(sample_evenly(arguments.images, arguments.limit), bundle.manifest)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = quantized(environment(arguments.environment, PACKAGES), bundle, inputs, arguments.preset, folder)
        segmenters = {
            name: stack.enter_context(Segmenter(bundle, artifact=name, threads=arguments.threads))
            for name in arguments.artifacts
        }
        for precision in ("fp32", "bf16") if has_bf16() else ("fp32",):
            session = OpenVinoSession(model, precision=precision, threads=arguments.threads)
            segmenters[f"NNCF, rest in {precision}"] = stack.enter_context(Segmenter(bundle, session=session))
        seconds = race({name: each.session for name, each in segmenters.items()}, evenly_spaced(inputs, 4))
        first = seconds[arguments.artifacts[0]]
        rows = {name: {"seconds": median(taken), "times": speed_ratio(first, taken)} for name, taken in seconds.items()}
        if arguments.data:
            dataset = open_dataset(arguments.data, list_file=arguments.list, manifest=bundle.manifest)
            for name, segmenter in segmenters.items():
                scores = measure_dataset(dataset, segmenter, workers=1).scores(segmenter.manifest.classes)
                rows[name]["mIoU"] = scores.mIoU
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    for name, row in rows.items():
        accuracy = f"  mIoU {row['mIoU']:.2f}" if "mIoU" in row else ""
        print(f"{name:24} {1000 * row['seconds']:8.1f} ms  {row['times']:5.2f} times{accuracy}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
