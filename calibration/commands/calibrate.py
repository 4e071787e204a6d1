"""``denseport calibrate``: INT8 or FP8 artifacts that keep their accuracy, and what they are worth on this machine."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denseport.runtime.cli.arguments import path, real, whole
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.calibration.calibrate import CalibrationRecord
    from denseport.calibration.observe.collect import StepCallback
    from denseport.calibration.observe.images import CalibrationImages
    from denseport.calibration.options import CalibrationOptions
    from denseport.calibration.search.search import Budget
    from denseport.calibration.search.sensitivity import Loss
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.bundle.quantization import QuantizationVerdict
    from denseport.runtime.evaluation.dataset import Dataset

NEEDED = ("onnx", "onnx_ir", "onnxruntime")  # looked for first, since the work takes a while
HELP = "quantize to INT8 or FP8 within a budget, and measure whether that is worth it here"
SAY_SECONDS = 20.0  # between lines of progress, where there is no terminal
TIMED = 4  # images that the networks are timed with


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help="a bundle's folder")
    images = parser.add_argument_group("images")
    images.add_argument(
        "--images",
        metavar="DIR",
        nargs="+",
        required=True,
        help="images like the application's, without labels: folders, files or globs",
    )
    images.add_argument(
        "--limit", type=whole(1), default=32, metavar="N", help="images to take, spread evenly; default: %(default)s"
    )
    _add_data(parser.add_argument_group("labelled images"))
    _add_quantization(parser.add_argument_group("quantization"))
    work = parser.add_argument_group("running")
    work.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads of the network; default: all")
    work.add_argument(
        "--work", metavar="DIR", type=path, help="keep statistics there, for further runs; default: a cache"
    )
    work.add_argument("--resume", action="store_true", help="go on with an interrupted run on the same images")
    work.add_argument(
        "--measure", metavar="NAME", help="only measure this artifact here, for a verdict on another machine"
    )
    result = parser.add_argument_group("result")
    result.add_argument("--report", metavar="FILE", type=path, help="write a self-contained HTML page")
    result.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_data(data: argparse._ArgumentGroup) -> None:
    data.add_argument(
        "--data",
        metavar="ROOT",
        type=path,
        help="ADE20K folder (or one of images) to measure mIoU on; never the set that the artifact is gated with",
    )
    data.add_argument("--masks", metavar="DIR", type=path, help="folder of masks; --data is then the images'")
    data.add_argument("--split", default="training", help="of the ADE20K layout; default: %(default)s")
    data.add_argument(
        "--data-limit",
        type=whole(1),
        default=64,
        metavar="N",
        help="images to take, spread evenly; default: %(default)s",
    )


def _add_quantization(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--precision",
        choices=("int8", "fp8"),
        default="int8",
        help="fp8 (e4m3) is for GPUs from sm_89 on; default: %(default)s",
    )
    how.add_argument(
        "--method",
        choices=("minmax", "percentile", "entropy", "mse"),
        default="minmax",
        help="how a tensor's range is chosen; default: %(default)s, which measured best on ViTs",
    )
    how.add_argument(
        "--budget",
        type=real(0, 100),
        metavar="POINTS",
        help="mIoU that may be lost; needs --data; default with it: 0.5",
    )
    how.add_argument(
        "--agreement",
        type=real(0, 1),
        metavar="SHARE",
        help="least share of pixels with FP32's class; default: 0.98, with --data 0.9",
    )
    how.add_argument(
        "--keep-float", metavar="LAYER", nargs="+", default=[], help="layers, with all below them, that stay float"
    )
    how.add_argument(
        "--attention",
        choices=("float", "search"),
        default="float",
        help="whether attention's products may become 8 bits; default: %(default)s",
    )
    how.add_argument(
        "--smoothquant",
        choices=("auto", "off"),
        default="auto",
        help="migrate LayerNorms' outliers; default: %(default)s",
    )
    how.add_argument(
        "--effort", choices=("low", "medium", "high"), default="medium", help="of the search; default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from denseport.runtime.system.machine import require

    require(NEEDED, "calibration")
    from denseport.calibration.calibrate import calibrate
    from denseport.calibration.observe.images import CalibrationImages
    from denseport.calibration.options import budget_of
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.bundle.protocol import parse_protocol
    from denseport.runtime.pipeline.network_input import sample_evenly
    from denseport.runtime.system.files import refuse_unwritable

    _check(arguments)
    bundle = Bundle(arguments.bundle)
    refuse_unwritable(bundle.path)
    labelled = _dataset(arguments, bundle)
    budget = budget_of(arguments.budget, arguments.agreement, labelled, arguments.precision)
    paths = sample_evenly(arguments.images, arguments.limit)
    images = CalibrationImages(paths, parse_protocol("reference", bundle.manifest))
    progress = _Terminal()
    if arguments.measure is not None:
        return _measure(arguments, bundle, images, labelled, progress)
    with _work_folder(arguments, bundle, paths) as work:
        record = calibrate(bundle, images, _options(arguments, budget, work), labelled, progress=progress)
    verdicts = {
        name: _try(bundle, name, images, labelled, budget, loss, arguments.threads, progress)
        for name, loss in record.losses.items()
    }
    within = bool(verdicts) and all(verdict.within_budget for verdict in verdicts.values())
    result = {"bundle": str(bundle.path), **record.to_dict(), "within_budget": within}
    result["verdicts"] = {name: asdict(verdict) for name, verdict in verdicts.items()}
    if arguments.report is not None:
        from denseport.calibration.report import write_report

        result["report"] = str(write_report(arguments.report, bundle.manifest, record, verdicts))
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(_lines(result, record, verdicts)))
    return 0 if within else 1


def _options(arguments: argparse.Namespace, budget: Budget, work: Path) -> CalibrationOptions:
    from denseport.calibration.options import CalibrationOptions

    return CalibrationOptions(
        budget=budget,
        precision=arguments.precision,
        method=arguments.method,
        effort=arguments.effort,
        smoothquant=arguments.smoothquant == "auto",
        float_layers=tuple(arguments.keep_float),
        attention_float=arguments.attention == "float",
        work=work,
        threads=arguments.threads,
    )


def _measure(
    arguments: argparse.Namespace,
    bundle: Bundle,
    images: CalibrationImages,
    labelled: Dataset | None,
    progress: _Terminal,
) -> int:
    """Measure an artifact that is there already, on this machine."""
    from dataclasses import asdict

    from denseport.calibration.search.search import Budget
    from denseport.calibration.search.sensitivity import Loss
    from denseport.runtime.bundle.manifest import decode_dataclass, reading_record
    from denseport.runtime.errors import InputError

    name = arguments.measure
    record = bundle.artifact(name).record
    if "calibration" not in record:
        raise InputError(f"{name}: was not written by denseport calibrate", "Name one with a calibration record.")
    with reading_record(name):
        budget = decode_dataclass(Budget, record["calibration"]["budget"], name, "record.calibration.budget")
        loss = decode_dataclass(Loss, record["variant"]["loss"], name, "record.variant.loss")
    images.check(bundle.manifest.patch_size)
    verdict = _try(bundle, name, images, labelled, budget, loss, arguments.threads, progress)
    result = {"bundle": str(bundle.path), "verdicts": {name: asdict(verdict)}}
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(_trial_lines(name, verdict)))
    return 0 if verdict.within_budget else 1


def _check(arguments: argparse.Namespace) -> None:
    from denseport.runtime.errors import InputError

    if arguments.measure is not None:
        for name in ("budget", "agreement", "report"):
            if getattr(arguments, name) is not None:
                raise InputError(
                    f"--{name} does not go with --measure", "The artifact keeps the budget that it was calibrated for."
                )
    if arguments.masks is not None and arguments.data is None:
        raise InputError("--masks belongs to --data", "Name the folder of their images with --data.")
    if arguments.report is not None:
        _check_report(arguments.report)


def _check_report(report: Path) -> None:
    """Find out before hours of work whether the page can be written, and refuse a name that is surely another file's.

    Raises:
        InputError: a folder, or a name without a page's ending.
        OutputError: it cannot be written.
    """
    from denseport.runtime.errors import InputError
    from denseport.runtime.system.files import refuse_unwritable, writing

    refuse_unwritable(report.parent)
    with writing(report):  # of a name that is too long
        if report.is_dir():
            raise InputError(f"--report {report}: is a folder", "Name a file, such as int8.html.")
    if report.suffix.lower() not in (".html", ".htm"):  # the bundle's own model.onnx, say
        raise InputError(f"--report {report}: is no name of a page", "End it in .html.")


def _dataset(arguments: argparse.Namespace, bundle: Bundle) -> Dataset | None:
    from dataclasses import replace

    from denseport.runtime.evaluation.dataset import open_dataset
    from denseport.runtime.pipeline.network_input import evenly_spaced

    if arguments.data is None:
        return None
    dataset = open_dataset(
        arguments.data,
        masks=arguments.masks,
        split=arguments.split,
        reduce_zero_label=bundle.manifest.reduce_zero_label,
    )
    return replace(dataset, samples=tuple(evenly_spaced(dataset.samples, arguments.data_limit)))


@contextmanager
def _work_folder(arguments: argparse.Namespace, bundle: Bundle, images: list[Path]) -> Iterator[Path]:
    """The folder for statistics: the one that was named, which stays, or one in the cache until the run is done."""
    import hashlib
    import shutil

    from denseport.runtime.system.files import cache_folder

    if arguments.work is not None:
        yield arguments.work
        return
    what = [bundle.artifact("model.onnx").files, [str(path.absolute()) for path in images]]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    cache = cache_folder("calibrate", otherwise="Name a folder with --work DIR.") / key
    if not arguments.resume:
        shutil.rmtree(cache, ignore_errors=True)
    yield cache
    shutil.rmtree(cache, ignore_errors=True)  # only after success: an interrupted run goes on from it


def _try(
    bundle: Bundle,
    name: str,
    images: CalibrationImages,
    labelled: Dataset | None,
    budget: Budget,
    loss: Loss,
    threads: int | None,
    progress: _Terminal,
) -> QuantizationVerdict:
    """Measure the artifact beside FP32 here, and keep the verdict in its record."""
    from denseport.calibration.verdict import judge, measure_accuracy
    from denseport.runtime.pipeline.network_input import evenly_spaced

    accuracy = None
    if labelled is not None:
        with progress.phase("measuring mIoU") as told:
            total = len(labelled)
            accuracy = measure_accuracy(
                bundle, name, labelled, threads=threads, progress=lambda done, miou: told(done, total)
            )
    progress.say(f"racing {name} with FP32")
    timed = [images[i] for i in evenly_spaced(range(len(images)), TIMED)]
    verdict = judge(bundle, name, timed, budget, loss, accuracy, threads=threads)
    bundle.note(name, verdict.record())
    return verdict


def _lines(result: dict[str, Any], record: CalibrationRecord, verdicts: Mapping[str, QuantizationVerdict]) -> list[str]:
    from denseport.calibration.report import summary

    found, lines = record.search, summary(record)
    lines.append("")
    if not verdicts:
        lines.append(f"nothing was written: no set of layers in {found.quantization.kind.upper()} keeps the budget")
    else:
        share, kind = 100 * found.quantization.share, record.options.precision.upper()
        lines.append(
            f"{', '.join(verdicts)}: {count(len(found.chosen), 'group')} of layers in {kind}, {share:.1f} % of the "
            f"multiply-adds; on {count(record.images, 'image')} by {record.options.method}, {record.seconds:.0f} s"
        )
        lines += [f"warning: {text}" for text in record.warnings]
        for name, verdict in verdicts.items():
            lines += _trial_lines(name, verdict)
    if "report" in result:
        lines.append(f"report: {result['report']}")
    return lines


def _trial_lines(name: str, verdict: QuantizationVerdict) -> list[str]:
    lines = []
    if verdict.miou is not None and verdict.fp32_miou is not None:
        lines.append(
            f"mIoU {verdict.miou:.2f}, FP32 {verdict.fp32_miou:.2f}, on {count(verdict.labelled, 'labelled image')}"
        )
    lines.append(f"{100 * verdict.agreement:.2f} % of the pixels keep FP32's class")
    lines.append(f"{'ACCEPTED' if verdict.accepted else 'REFUSED'} on {verdict.machine}: {verdict.reason}")
    if not verdict.accepted:
        lines.append(f"  it runs only when it is asked for by name: --artifact {name}")
    return lines


class _Terminal:
    """Progress with the time left on standard error: a bar, or a line now and then where nobody watches."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    def phase(self, title: str) -> AbstractContextManager[StepCallback]:
        return self._phase(title)

    @contextmanager
    def _phase(self, title: str) -> Iterator[StepCallback]:
        from tqdm import tqdm

        start = said = time.monotonic()
        with tqdm(desc=title, file=sys.stderr, disable=None) as bar:

            def told(done: int, total: int) -> None:
                nonlocal said
                bar.total = total
                bar.update(done - bar.n)
                now = time.monotonic()
                if bar.disable and now - said > SAY_SECONDS:
                    said = now
                    left = (now - start) / done * (total - done)
                    self.say(f"{title}: {done} of {total}, about {left / 60:.1f} min left")

            yield told
