"""INT8 or FP8 artifacts within a budget, and what they are worth here: what ``denseport calibrate`` does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from denseport.calibration.observe.images import check_images
from denseport.calibration.options import CalibrationOptions, budget_of
from denseport.calibration.report import write_report
from denseport.calibration.search.search import Budget
from denseport.calibration.search.sensitivity import Loss
from denseport.calibration.steps import CalibrationRecord, quantize_bundle
from denseport.calibration.verdict import judge
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.decode import decode_dataclass, reading_record
from denseport.runtime.bundle.verdict import MachineVerdict
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.dataset import Dataset, open_dataset
from denseport.runtime.pipeline.network_input import NetworkInputs, evenly_spaced, sample_evenly
from denseport.runtime.system.arguments import required_path, several
from denseport.runtime.system.files import cache_folder, refuse_unwritable, writing
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["Calibration", "calibrate", "judge_again"]

Images = Path | str | Sequence[Path | str]
DATA_LIMIT = 64  # labelled images
AGREEMENT_OF_DEPTH = "Leave it out; --agreement 0.98 lets depths change by 2 % of their mean."


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` wrote and found."""

    bundle: Path
    record: CalibrationRecord
    verdicts: dict[str, MachineVerdict]  # by artifact; empty: nothing kept the budget, nothing was written
    report: Path | None = None  # the page; None: not asked for

    @property
    def within_budget(self) -> bool:
        """Whether artifacts were written and all are within the budget. Each verdict says whether it is faster."""
        return bool(self.verdicts) and all(verdict.within_budget for verdict in self.verdicts.values())

    def to_dict(self) -> dict[str, Any]:
        """What ``denseport calibrate --json`` prints."""
        result = {"bundle": str(self.bundle), **self.record.to_dict(), "within_budget": self.within_budget}
        result["verdicts"] = {name: asdict(verdict) for name, verdict in self.verdicts.items()}
        return result | ({} if self.report is None else {"report": str(self.report)})


def calibrate(
    bundle: Path | str | Bundle,
    images: Images,
    options: CalibrationOptions | None = None,
    *,
    limit: int = 32,
    data: Path | str | Dataset | None = None,
    masks: Path | str | None = None,
    split: str | None = None,
    data_limit: int = DATA_LIMIT,
    report: Path | str | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Quantize within a budget, measure the result beside FP32 on this machine, and record both in the bundle.

    Args:
        images: images like the application's, without labels: folders, files or globs.
        limit: images to take, spread evenly.
        data, masks, split: labelled images for a budget on mIoU, as in `open_dataset`, or an open data set; never the
            set that the artifact is gated with. None for depth, whose budget is on the change of FP32's depths.
        data_limit: labelled images to take, spread evenly.
        report: HTML file to write.

    Raises:
        CalibrationError: a model that is quantized already, an unknown layer, or images that cannot be used.
        BundleError: the bundle's model is missing or altered.
        DatasetError: labels that do not fit the bundle's classes.
        InputError: a budget on mIoU without labels; no images; a report that is no page.
        OutputError: the bundle, the report or the statistics cannot be written.
    """
    progress, options = progress or Silent(), options or CalibrationOptions()
    report = None if report is None else _check_report(required_path("report", report))
    if options.work is not None:
        refuse_unwritable(options.work)
    bundle, labelled = _open(bundle, data, masks, split, data_limit)
    if bundle.manifest.task == "depth" and options.budget is not None:
        raise InputError("--budget: points of mIoU, and depths have none", AGREEMENT_OF_DEPTH)
    budget = budget_of(options, labelled=labelled is not None)
    shown = _network_inputs(bundle, images, limit)
    with _work_folder(options, bundle, shown.paths) as work:
        record = quantize_bundle(bundle, shown, labelled, options, budget, work, progress)
    verdicts = {
        name: judge(bundle, name, shown, labelled, budget, loss, threads=options.threads, progress=progress)
        for name, loss in record.losses.items()
    }
    page = None if report is None else write_report(report, bundle.manifest, record, verdicts)
    return Calibration(bundle.path, record, verdicts, page)


def judge_again(
    bundle: Path | str | Bundle,
    name: str,
    images: Images,
    *,
    limit: int = 32,
    data: Path | str | Dataset | None = None,
    masks: Path | str | None = None,
    split: str | None = None,
    data_limit: int = DATA_LIMIT,
    threads: int | None = None,
    progress: Progress | None = None,
) -> MachineVerdict:
    """Measure a calibrated artifact on this machine against the budget of its record, and record the verdict.

    Args:
        name: the artifact.
        images, limit, data, masks, split, data_limit: as in `calibrate`; the images time the networks.
        threads: CPU threads of the network; default: all that this process may use.

    Raises:
        BundleError: no such artifact, or an altered one.
        InputError: it was not written by a calibration.
    """
    bundle, labelled = _open(bundle, data, masks, split, data_limit)
    shown = _network_inputs(bundle, images, limit)
    record = bundle.artifact(name).record
    if "calibration" not in record:
        raise InputError(f"{name}: was not written by denseport calibrate", "Name one with a calibration record.")
    with reading_record(name):
        budget = decode_dataclass(Budget, record["calibration"]["budget"], name, "record.calibration.budget")
        loss = decode_dataclass(Loss, record["variant"]["loss"], name, "record.variant.loss")
    check_images(shown)
    return judge(bundle, name, shown, labelled, budget, loss, threads=threads, progress=progress or Silent())


def _open(
    bundle: Path | str | Bundle,
    data: Path | str | Dataset | None,
    masks: Path | str | None,
    split: str | None,
    limit: int,
) -> tuple[Bundle, Dataset | None]:
    """The bundle, found to be writable, and the labelled images."""
    given = {"masks": masks is not None, "split": split is not None, "data-limit": limit != DATA_LIMIT}
    if data is None and any(given.values()):
        name = next(name for name, is_given in given.items() if is_given)
        raise InputError(f"--{name} belongs to --data", "Name the folder of labelled images with --data.")
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    refuse_unwritable(bundle.path)
    if data is None:
        return bundle, None
    if bundle.manifest.task == "depth":
        what = "--data: a depth network is calibrated against FP32's depths, without labels"
        raise InputError(what, AGREEMENT_OF_DEPTH)
    if not isinstance(data, Dataset):
        data = open_dataset(data, masks=masks, split=split, default_split="training", manifest=bundle.manifest)
    return bundle, replace(data, samples=tuple(evenly_spaced(data.samples, limit)))


def _network_inputs(bundle: Bundle, images: Images, limit: int) -> NetworkInputs:
    return NetworkInputs.of_bundle(
        sample_evenly([str(pattern) for pattern in several("images", images)], limit), bundle.manifest
    )


def _check_report(report: Path) -> Path:
    """Find out before hours of work whether the page can be written. A name such as model.onnx is another file's."""
    refuse_unwritable(report.parent)
    with writing(report):  # of a name that is too long
        if report.is_dir():
            raise InputError(f"--report {report}: is a folder", "Name a file, such as int8.html.")
    if report.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--report {report}: is not the name of an HTML page", "End it in .html.")
    return report


@contextmanager
def _work_folder(options: CalibrationOptions, bundle: Bundle, images: Sequence[Path]) -> Iterator[Path]:
    """The folder for statistics: the named one, which stays, or one in the cache, removed when the run is done."""
    if options.work is not None:
        yield options.work
        return
    what = [bundle.artifact(bundle.manifest.source).files, [str(path.absolute()) for path in images]]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    cache = cache_folder("calibrate", otherwise="Name a folder with --work DIR.") / key
    if not options.resume:
        shutil.rmtree(cache, ignore_errors=True)
    yield cache
    shutil.rmtree(cache, ignore_errors=True)  # only after success: --resume needs it after an interruption
