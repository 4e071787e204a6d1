"""Images and videos to results on disk: what ``denseport run`` does."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.preprocessing import loading
from denseport.runtime.cli.writing import Writing
from denseport.runtime.errors import DenseportError, OutputError, ServerError
from denseport.runtime.media.images import read_image
from denseport.runtime.media.inputs import Input
from denseport.runtime.media.videos import VideoReader, VideoWriter
from denseport.runtime.pipeline.results import Segmentation
from denseport.runtime.system.files import new_folder, writing

if TYPE_CHECKING:
    from denseport.runtime.pipeline.depth import Depth
    from denseport.runtime.segmenter import Segmenter
    from denseport.runtime.segmenter.depth import DepthEstimator
    from denseport.runtime.serving.triton.client import Client

__all__ = ["Model", "Predictions", "RemoteModel"]

_NOWHERE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # nothing can be written, whatever its name
_FRAME = re.compile(r"\d{6,}\.(png|json|geojson|npz|npy)")  # a result of a video


@dataclass(frozen=True)
class RemoteModel:
    """A model on a server (`denseport.runtime.serving.triton.client`)."""

    name: str
    manifest: Manifest
    client: Client

    def __call__(self, image: NDArray[np.uint8]) -> Segmentation | Depth:
        if (depth := self.manifest.depth) is not None:
            from denseport.runtime.pipeline.depth import Depth

            return Depth(self.client.estimate(image), depth.unit, depth.larger_is, depth.largest, self.name, image)
        classes, palette = self.manifest.classes, self.manifest.palette
        return Segmentation(self.client.segment(image), self.name, image, classes, palette)

    def stream(self, images: Iterable[NDArray[np.uint8]], *, smoothing: float = 0.0) -> Generator[Segmentation | Depth]:
        """One image after the other; a server keeps nothing between them to smooth with."""
        if smoothing:
            raise ValueError("a server does not smooth")
        for image in images:
            yield self(image)


Model: TypeAlias = "Segmenter | DepthEstimator | RemoteModel"


@dataclass
class Predictions:
    """What to write for each input, the results, and the failures."""

    folder: Path
    formats: tuple[str, ...]  # of the writing's endings; of a video: a folder of each, one file a frame
    writing: Writing
    smoothing: float  # of videos (`denseport.runtime.pipeline.temporal`)
    results: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, model: Model, item: Input) -> None:
        """Process one input, or keep its error, so that the next can follow.

        Raises:
            OutputError, ServerError: the next input would fail alike: no room, a read-only place, a lost server.
        """
        try:
            self._refuse_places(item)
            self.results.append(self._video(model, item) if item.kind == "video" else self._image(model, item))
        except ServerError:
            raise
        except DenseportError as err:
            if isinstance(err, OutputError) and getattr(err.__cause__, "errno", None) in _NOWHERE:
                raise
            error = err.message if str(item.path) in err.message else f"{item.path}: {err.message}"
            self.failures.append({"input": str(item.path), "error": error, "remedy": err.remedy})

    def refuse_overwriting(self, items: Sequence[Input]) -> None:
        """Check before the work that no result replaces one of the inputs.

        Raises:
            OutputError: one would, as that of ``a.jpg`` replaces an input ``a_mask.png`` beside it.
        """
        inputs = {place: item.path for item in items for place in (_place(item.path), _real(item.path))}
        for item in items:
            for result in self._results(item):
                place = _place(result)
                at_risk = inputs.get(place)
                if item.kind == "video":  # a folder, in which the names are numbers
                    within = (path for found, path in inputs.items() if found.parent == place)
                    at_risk = at_risk or next((path for path in within if _FRAME.fullmatch(path.name)), None)
                if at_risk is not None:
                    raise OutputError(
                        f"{at_risk}: is an input, and a result of {item.path} would replace it",
                        "Write to another folder, or name the inputs one by one.",
                    )

    def _results(self, item: Input) -> list[Path]:
        """Where the results of an input go, in the order of the formats."""
        endings = [(name, self.writing.endings[name]) for name in self.formats]
        video = item.kind == "video"
        return [item.output(self.folder, _of_video(name, end) if video else end) for name, end in endings]

    def _refuse_places(self, item: Input) -> None:
        """Before the work: a name that is too long, or a folder where a file is to be, or the other way round."""
        for name, place in zip(self.formats, self._results(item), strict=True):
            frames = item.kind == "video" and name != "overlay"
            with writing(place):
                if place.exists() and place.is_dir() != frames:
                    number = errno.ENOTDIR if frames else errno.EISDIR
                    raise OSError(number, os.strerror(number))

    def _image(self, model: Model, item: Input) -> dict[str, Any]:
        image = read_image(item.path, loading(model.manifest.preprocess))
        found = model(image, **self._wanted)
        written = self._results(item)
        for name, path in zip(self.formats, written, strict=True):
            self.writing.save(name, path, found, item, 1)
        return {
            "input": str(item.path),
            "width": image.shape[1],
            "height": image.shape[0],
            **self.writing.told(found),
            "files": [str(path) for path in written],
        }

    @property
    def _wanted(self) -> dict[str, Any]:
        """What is asked for beside the result itself; a server takes no such question."""
        return {"scores": True} if "scores" in self.formats else {}

    def _video(self, model: Model, item: Input) -> dict[str, Any]:
        """A video becomes a video of overlays, and a folder of each other format, one file a frame."""
        places = dict(zip(self.formats, self._results(item), strict=True))
        with ExitStack() as stack:
            reader = stack.enter_context(VideoReader(item.path))
            target, paint = places.pop("overlay", None), self.writing.painter()
            writer = stack.enter_context(VideoWriter(target, reader.fps or 25.0)) if target else None
            folders = {name: stack.enter_context(new_folder(folder)) for name, folder in places.items()}
            frames: Iterable[NDArray[np.uint8]] = tqdm(
                reader, total=reader.frames or None, unit="frame", desc=item.path.name, disable=not sys.stderr.isatty()
            )
            results: Iterable[Any] = stack.enter_context(
                closing(model.stream(frames, smoothing=self.smoothing, **self._wanted))
            )
            count = 0
            for count, found in enumerate(results, start=1):
                for name, folder in folders.items():
                    end = Path(self.writing.endings[name]).suffix
                    self.writing.save(name, folder / f"{count:06}{end}", found, item, count)
                if writer is not None:
                    writer.write(paint(found))
        files = [str(path) for path in self._results(item)]
        entry: dict[str, Any] = {"input": str(item.path), "frames": count, "files": files}
        entry |= paint.told()
        if reader.frames - reader.read > 1:  # one may be the rounding of a duration
            decoded = f"only {reader.read} of the video's {reader.frames} frames could be decoded"
            others = [entry["warning"]] if "warning" in entry else []
            entry["warning"] = "; ".join([f"{decoded}: it may be cut short or damaged", *others])
        return entry


def _of_video(name: str, ending: str) -> str:
    return "_overlay.webm" if name == "overlay" else ending.partition(".")[0]


def _place(path: Path) -> Path:
    """What a path stands for, but for a link in its last part, which a result would replace itself."""
    return _real(path.parent) / path.name


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve() raises an error about links that lead in a circle
