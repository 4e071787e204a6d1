"""``denseport calibrate``: an INT8 artifact that keeps its accuracy, and what it is worth on this machine."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from denseport.calibration.calibrate import CalibrationRecord
    from denseport.calibration.images import CalibrationImages
    from denseport.runtime.bundle import Bundle
    from denseport.runtime.dataset import Dataset
    from denseport.runtime.trial import Trial

NEEDED = ("onnx", "onnx_ir", "onnxruntime")  # looked for first, since the work takes a while
HELP = "quantize to INT8 within a budget, and measure whether it is worth it here"
TIMED = 4  # pictures that the networks are timed with


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument(
        "--images",
        metavar="DIR",
        nargs="+",
        required=True,
        help="pictures like the application's, without labels: folders, files or globs",
    )
    pictures.add_argument(
        "--limit", type=int, default=256, metavar="N", help="pictures to take, spread evenly; default: %(default)s"
    )
    _add_data(parser.add_argument_group("labelled pictures"))
    how = parser.add_argument_group("quantization")
    how.add_argument(
        "--method",
        choices=("minmax", "percentile", "entropy", "mse"),
        default="minmax",
        help="how a tensor's range is chosen; default: %(default)s, which measured best on ViTs",
    )
    how.add_argument(
        "--budget", type=float, metavar="POINTS", help="mIoU that may be lost; needs --data; default with it: 0.5"
    )
    how.add_argument(
        "--agreement",
        type=float,
        metavar="SHARE",
        help="least share of pixels with FP32's class; default: 0.97, with --data 0.9",
    )
    how.add_argument(
        "--float", metavar="LAYER", nargs="+", default=[], help="layers, with all below them, that stay float"
    )
    how.add_argument(
        "--keep-attention-float", action="store_true", help="leave attention's products; default: the search decides"
    )
    how.add_argument(
        "--smooth", choices=("auto", "off"), default="auto", help="migrate LayerNorms' outliers; default: %(default)s"
    )
    how.add_argument(
        "--effort", choices=("low", "medium", "high"), default="medium", help="of the search; default: %(default)s"
    )
    work = parser.add_argument_group("running")
    work.add_argument("--threads", type=int, metavar="N", help="CPU threads of the network; default: all")
    work.add_argument(
        "--work", metavar="DIR", type=Path, help="keep statistics there, for further runs; default: a cache"
    )
    work.add_argument("--resume", action="store_true", help="go on with an interrupted run on the same pictures")
    result = parser.add_argument_group("result")
    result.add_argument("--report", metavar="FILE", type=Path, help="write a self-contained HTML page")
    result.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_data(data: argparse._ArgumentGroup) -> None:
    data.add_argument(
        "--data",
        metavar="ROOT",
        type=Path,
        help="ADE20K folder (or one of pictures) to measure mIoU on; never the set that the artifact is gated with",
    )
    data.add_argument("--masks", metavar="DIR", type=Path, help="folder of masks; --data is then the pictures'")
    data.add_argument("--split", default="training", help="of the ADE20K layout; default: %(default)s")
    data.add_argument(
        "--data-limit", type=int, default=64, metavar="N", help="pictures to take, spread evenly; default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.errors import MachineError

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MachineError(f"not installed: {', '.join(missing)}", "pip install 'denseport[calibration]'")
    from denseport.calibration.calibrate import calibrate
    from denseport.calibration.images import CalibrationImages
    from denseport.calibration.options import CalibrationOptions, budget_of
    from denseport.runtime.bundle import Bundle
    from denseport.runtime.feed import spread
    from denseport.runtime.protocol import parse_protocol

    _check(arguments)
    bundle = Bundle(arguments.bundle)
    labelled = _dataset(arguments, bundle)
    budget = budget_of(arguments.budget, arguments.agreement, labelled)
    pictures = spread(arguments.images, arguments.limit)
    images = CalibrationImages(pictures, parse_protocol("reference", bundle.manifest))
    progress = _Terminal()
    with _work_folder(arguments, bundle, pictures) as work:
        options = CalibrationOptions(
            budget=budget,
            method=arguments.method,
            effort=arguments.effort,
            smooth=arguments.smooth == "auto",
            float_layers=tuple(arguments.float),
            attention_float=arguments.keep_attention_float,
            work=work,
            threads=arguments.threads,
        )
        record = calibrate(bundle, images, options, labelled, progress=progress)
    trial = _try(bundle, record, images, labelled, progress) if record.artifact else None
    result = _result(bundle, record, trial)
    if arguments.report is not None:
        from denseport.calibration.report import write_report

        result["report"] = str(write_report(arguments.report, bundle.manifest, record, trial))
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(_lines(result, record, trial)))
    return 0 if result["within_budget"] else 1


def _check(arguments: argparse.Namespace) -> None:
    from denseport.runtime.errors import InputError

    for name in ("limit", "data_limit", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value} is below 1")
    if arguments.masks is not None and arguments.data is None:
        raise InputError("--masks belongs to --data", "Name the folder of their pictures with --data.")
    if arguments.report is not None and arguments.report.is_dir():
        raise InputError(f"--report {arguments.report}: is a folder", "Name a file, such as int8.html.")


def _dataset(arguments: argparse.Namespace, bundle: Bundle) -> Dataset | None:
    from dataclasses import replace

    from denseport.calibration.calibrate import thinned
    from denseport.runtime.dataset import open_dataset

    if arguments.data is None:
        return None
    dataset = open_dataset(
        arguments.data,
        masks=arguments.masks,
        split=arguments.split,
        reduce_zero_label=bundle.manifest.reduce_zero_label,
    )
    return replace(dataset, samples=tuple(thinned(dataset.samples, arguments.data_limit)))


@contextmanager
def _work_folder(arguments: argparse.Namespace, bundle: Bundle, pictures: list[Path]) -> Iterator[Path]:
    """The folder for statistics: the one that was named, which stays, or one in the cache until the run is done."""
    import hashlib
    import os
    import shutil

    if arguments.work is not None:
        yield arguments.work
        return
    what = [bundle.artifact("model.onnx").files, [str(path.absolute()) for path in pictures]]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "denseport" / "calibrate" / key
    if not arguments.resume:
        shutil.rmtree(cache, ignore_errors=True)
    yield cache
    shutil.rmtree(cache, ignore_errors=True)  # only after success: an interrupted run goes on from it


def _try(
    bundle: Bundle, record: CalibrationRecord, images: CalibrationImages, labelled: Dataset | None, progress: _Terminal
) -> Trial:
    """Measure the artifact beside FP32 here, and keep the verdict in its record."""
    from denseport.calibration.calibrate import thinned
    from denseport.calibration.verdict import judge, measure_accuracy

    assert record.artifact is not None  # something was written
    accuracy, threads = None, record.options.threads
    if labelled is not None:
        with progress.phase("measuring mIoU") as told:
            accuracy = measure_accuracy(
                bundle,
                record.artifact,
                labelled,
                threads=threads,
                progress=lambda done, miou: told(done, len(labelled)),
            )
    progress.say(f"racing {record.artifact} with FP32")
    timed = [images[i] for i in thinned(range(len(images)), TIMED)]
    trial = judge(bundle, record.artifact, timed, record.options.budget, record.search.loss, accuracy, threads=threads)
    bundle.note(record.artifact, trial.record())
    return trial


def _result(bundle: Bundle, record: CalibrationRecord, trial: Trial | None) -> dict[str, Any]:
    from dataclasses import asdict

    from denseport.calibration.verdict import keeps_budget

    return {
        "bundle": str(bundle.path),
        "artifact": record.artifact,
        **record.to_dict(),
        "verdict": asdict(trial) if trial is not None else None,
        "within_budget": trial is not None and keeps_budget(trial, record.options.budget),
    }


def _lines(result: dict[str, Any], record: CalibrationRecord, trial: Trial | None) -> list[str]:
    from denseport.calibration.report import summary

    found, lines = record.search, summary(record)
    lines.append("")
    if trial is None or record.artifact is None:
        lines.append("nothing was written: no set of layers in INT8 keeps the budget")
        return lines
    lines.append(
        f"{record.artifact}: {len(found.chosen)} groups of layers in INT8, {100 * found.quantization.share:.1f} % of "
        f"the multiply-adds; on {record.images} pictures by {record.options.method}, {record.seconds:.0f} s"
    )
    lines += [f"warning: {text}" for text in record.warnings]
    if trial.miou is not None and trial.fp32_miou is not None:
        lines.append(f"mIoU {trial.miou:.2f}, FP32 {trial.fp32_miou:.2f}, on {trial.labelled} labelled pictures")
    lines.append(f"{100 * trial.agreement:.2f} % of the pixels keep FP32's class")
    lines.append(f"{'ACCEPTED' if trial.accepted else 'REFUSED'} on {trial.machine}: {trial.reason}")
    if not trial.accepted:
        lines.append("  it runs only when it is asked for by name: --artifact " + record.artifact)
    if "report" in result:
        lines.append(f"report: {result['report']}")
    return lines


class _Terminal:
    """Progress with the time left on standard error; the bars are silent where nobody watches."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    def phase(self, title: str) -> AbstractContextManager[Callable[[int, int], None]]:
        return self._phase(title)

    @contextmanager
    def _phase(self, title: str) -> Iterator[Callable[[int, int], None]]:
        from tqdm import tqdm

        with tqdm(desc=title, file=sys.stderr, disable=None) as bar:

            def told(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield told
