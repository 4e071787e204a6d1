"""What nobody can read off a foreign network: its classes or its depths, and how images are prepared for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path

from denseport.export.checkpoint.labels import Colours, colours_of
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.decode import decode_dataclass
from denseport.runtime.bundle.manifest import NOT_OF_DEPTH, OUTPUTS, DepthOutput, Inference, Manifest
from denseport.runtime.bundle.preprocessing import (
    Preprocessing,
    check_steps,
    normalisation,
    of_one_size,
    resized_to,
    resizing,
)
from denseport.runtime.bundle.steps import Augmentation, Normalise, Resize
from denseport.runtime.errors import BundleError, InputError
from denseport.runtime.media.overlay import default_palette
from denseport.runtime.system.arguments import real, required_path

__all__ = ["Declared", "Settings"]

TEXT_LIMIT = 16 << 20  # bytes of a file of settings
FRACTIONS = "--range 1 if they are of images in 0..1, --range 255 if they are grey levels"
NO_NORMALISATION = "Give --mean R G B and --std R G B, or a bundle that is prepared alike with --like."


@dataclass(frozen=True)
class Settings:
    """The fields of a manifest that are no property of the graph; None: not said."""

    task: str | None = None
    depth: DepthOutput | None = None
    classes: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    preprocess: Preprocessing | None = None
    inference: Inference | None = None
    augmentation: Augmentation | None = None
    align_corners: bool | None = None
    via_input: bool | None = None
    threshold: float | None = None
    reduce_zero_label: bool | None = None
    label_map: dict[str, int] | None = None
    ignore_index: int | None = None

    def over(self, other: Settings) -> Settings:
        """These settings, and the other's where these say nothing."""
        return dataclasses.replace(other, **{name: value for name, value in vars(self).items() if value is not None})

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> Settings:
        """Those of a bundle."""
        return cls(**{each.name: getattr(manifest, each.name) for each in dataclasses.fields(cls)})

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Those of a JSON file: an object with fields of a manifest (docs/bundle.md).

        Raises:
            InputError: no such file, no JSON, a field that is unknown, mistyped, or no such setting.
        """
        remedy = "Give a JSON object with fields of a manifest: "
        names = [each.name for each in dataclasses.fields(cls)]
        try:
            with path.open("rb") as file:
                data = file.read(TEXT_LIMIT + 1)
            if len(data) > TEXT_LIMIT:
                raise ValueError(f"it has more than {TEXT_LIMIT >> 20} MiB")
            found = json.loads(data)
        except (OSError, ValueError, RecursionError) as err:
            reason = getattr(err, "strerror", None) or err
            raise InputError(f"--from-json {path}: cannot be read: {reason}", remedy + ", ".join(names)) from err
        if isinstance(found, dict) and found.get("task") == "depth":
            names = [name for name in names if name not in NOT_OF_DEPTH]
        try:
            settings = decode_dataclass(cls, found, str(path), "settings")
            if settings.preprocess is not None:
                check_steps(settings.preprocess)
            return settings
        except (BundleError, ValueError) as err:
            raise InputError(f"--from-json {getattr(err, 'message', err)}", remedy + ", ".join(names)) from err


@dataclass(frozen=True)
class Declared:
    """What the user declares. ``from_json`` counts more than ``like``, and the fields here more than both.

    Raises:
        InputError: numbers that do not go together.
    """

    task: str | None = None  # "segmentation" or "depth"; None: as ``like`` or ``from_json``, else segmentation
    depth: DepthOutput | None = None  # of a depth network
    align_corners: bool | None = None  # of a depth network: depths are resized with their corners on the image's
    classes: Sequence[str] | int | None = None  # names in the order of the output's channels, or how many there are
    palette: Sequence[tuple[int, int, int]] | None = None  # RGB of each class
    mean: Sequence[float] | None = None  # of each channel, in the units of ``value_range``
    std: Sequence[float] | None = None
    value_range: float | None = None  # the largest level before mean and std: 255, or 1; None: 255
    bgr: bool | None = None  # the network's order of channels; None: RGB
    scale: tuple[int, int] | None = None  # limits of the longer and the shorter side, pixels; the ratio is kept
    size: tuple[int, int] | None = None  # width, height to which every image is resized
    threshold: float | None = None  # of one output channel: the probability above which a pixel is of the second class
    like: Path | str | Bundle | None = None  # a bundle whose settings hold here too
    from_json: Path | str | None = None  # a file of `Settings`

    def __post_init__(self) -> None:
        self._check_types()
        if self.scale is not None and self.size is not None:
            raise InputError("--scale and --size both say how large images become", "Leave one of them out.")
        if self.task not in (None, *OUTPUTS):
            raise InputError(f"--task {self.task!r} is unknown", f"Choose one of {', '.join(OUTPUTS)}.")
        self._check_task()
        if (self.mean is None) != (self.std is None):
            raise InputError("--mean and --std go together", "Give both, or neither.")
        threshold = self.settings.threshold
        if threshold is not None and not 0 < real("threshold", threshold, 0, 1) < 1:
            raise InputError(f"--threshold {threshold:g} is not between 0 and 1", "Give a probability.")
        if isinstance(self.classes, int) and not 1 <= self.classes <= 65536:
            raise InputError(f"--classes {self.classes}: not in 1..65536", "Give the number of classes.")

    def _check_types(self) -> None:
        """Refuse what is of another type, by the name of its argument."""
        if isinstance(self.classes, str):
            raise InputError(f"classes={self.classes!r} is one text", "Give a list of names.")
        kinds = {"classes": object, "palette": object, "mean": Real, "std": Real, "scale": Integral, "size": Integral}
        for name, kind in kinds.items():
            value, is_pair = getattr(self, name), kind is Integral
            if value is None or (name == "classes" and type(value) is int):
                continue
            is_list = isinstance(value, Sized) and not isinstance(value, str | bytes)
            if not is_list or not all(isinstance(each, kind) for each in value) or (is_pair and len(value) != 2):
                words = "two whole numbers" if is_pair else "a list"
                raise InputError(f"{name} cannot be {value!r}", f"Give {words}.")
        if self.value_range is not None:
            real("value_range", self.value_range, 0)

    def _check_task(self) -> None:
        """Refuse what is of the other task, and a depth of which nothing is said."""
        if not self.is_depth and (self.depth, self.align_corners) != (None, None):
            what = "--unit, --larger-is, --interpolation and --align-corners apply to depth networks"
            raise InputError(what, "Add --task depth, or leave them out.")
        if self.is_depth and self.settings.depth is None:
            what = "nothing says what the numbers of the depth network mean"
            raise InputError(what, "Give --unit metres, or --unit relative --larger-is nearer (or farther).")
        for name in ("classes", "palette", "threshold"):
            if self.is_depth and getattr(self, name) is not None:
                raise InputError(f"--{name} means nothing for a depth network", "Leave it out.")

    @property
    def is_depth(self) -> bool:
        """Whether the network estimates depth."""
        return self.settings.task == "depth"

    @cached_property
    def settings(self) -> Settings:
        """What is said here and, where that is nothing, by ``from_json`` and then by ``like``."""
        settings = Settings()
        if self.like is not None:
            bundle = self.like if isinstance(self.like, Bundle) else Bundle(self.like)
            settings = Settings.of_manifest(bundle.manifest)
            if self.task not in (None, settings.task):
                what = f"--like {bundle.path}: is of the task {settings.task}, not {self.task}"
                raise InputError(what, "Name a bundle of that task, or leave --like out.")
        if self.from_json is not None:
            settings = Settings.read(required_path("from_json", self.from_json)).over(settings)
        here = Settings(
            task=self.task,
            depth=self.depth,
            classes=None if self.classes is None or isinstance(self.classes, int) else tuple(self.classes),
            align_corners=self.align_corners,
            threshold=self.threshold,
        )
        return here.over(settings)

    @property
    def num_classes(self) -> int | None:
        """How many classes were named; None: nothing was said of them, or there are none."""
        if self.is_depth:
            return None
        if isinstance(self.classes, int):
            return self.classes
        return None if self.settings.classes is None else len(self.settings.classes)

    def normalise(self, channels: int, *, takes_levels: bool) -> Normalise:
        """How grey levels are normalised.

        Args:
            takes_levels: the network takes whole numbers, so that there is nothing to normalise.

        Raises:
            InputError: nobody said, or not for so many channels.
        """
        if self.mean is None or self.std is None:
            if self.settings.preprocess is not None:
                found = normalisation(self.settings.preprocess)
                self._check_channels("mean and std of --like or --from-json", found.mean, channels)
                return found if self.bgr is None else dataclasses.replace(found, bgr_to_rgb=not self.bgr)
            if not takes_levels:
                raise InputError("nothing says how images are normalised for the network", NO_NORMALISATION)
            return Normalise((0.0,) * channels, (1.0,) * channels, bgr_to_rgb=not self.bgr)
        self._check_channels("--mean", self.mean, channels)
        self._check_channels("--std", self.std, channels)
        unit = 255 / self._range(self.mean, self.std)
        try:
            mean, std = (tuple(round(float(value) * unit, 6) for value in each) for each in (self.mean, self.std))
            found = Normalise(mean, std, bgr_to_rgb=not self.bgr)
        except ValueError as err:
            raise InputError(f"--mean {_words(self.mean)} --std {_words(self.std)}: {err}", NO_NORMALISATION) from err
        if takes_levels and (any(found.mean) or set(found.std) != {1.0}):
            raise InputError(
                "the network takes whole grey levels, which --mean and --std would change", "Leave both out."
            )
        return found

    def _range(self, mean: Sequence[float], std: Sequence[float]) -> float:
        if self.value_range is not None:
            if self.value_range not in (1, 255):
                raise InputError(f"--range {self.value_range:g} is neither 1 nor 255", f"Give {FRACTIONS}.")
            if self.value_range == 1 and max(map(abs, mean)) > 1:
                said = f"--range 1, but --mean {_words(mean)} is not of images in 0..1"
                raise InputError(said, "Give --range 255, or leave it out.")
            return self.value_range
        if max(std) <= 1 and max(map(abs, mean)) <= 1:
            said = f"--mean {_words(mean)} --std {_words(std)} may be of images in 0..1, or of grey levels 0..255"
            raise InputError(said, f"Give {FRACTIONS}.")
        return 255.0

    @staticmethod
    def _check_channels(option: str, given: Sequence[float], channels: int) -> None:
        if len(given) != channels:
            what = f"{option}: {len(given)} numbers, and the network takes {channels} channel{'s' * (channels > 1)}"
            raise InputError(what, "Give one for each channel.")

    def preprocess(self, channels: int, fixed: tuple[int, int] | None, *, takes_levels: bool) -> Preprocessing:
        """The steps from an image to the network's input.

        Args:
            fixed: width and height, where the network takes one size only.

        Raises:
            InputError: nobody said how images are normalised, or how large they become.
        """
        normalise = self.normalise(channels, takes_levels=takes_levels)
        given = self.settings.preprocess
        steps = (normalise,) if given is None else tuple(normalise if s.kind == "normalise" else s for s in given)
        slides = self.settings.inference is not None and self.settings.inference.mode == "slide"
        size = self.size if fixed is None or slides else self.size or fixed
        try:
            if self.scale is not None:
                return resized_to(steps, self.scale, keep_ratio=True)
            if size is not None:
                return of_one_size(steps, size)
        except ValueError as err:
            raise InputError(f"--scale or --size: {err}", "Give two sides in pixels.") from err
        if given is None:
            what = "nothing says how large images reach the network, which takes several sizes"
            raise InputError(what, "Give --scale LONG SHORT (keeping the ratio), or --size WIDTHxHEIGHT.")
        return steps

    def labels(self, classes: int) -> tuple[tuple[str, ...], Colours, list[str]]:
        """A name and an RGB colour for each class, and warnings of what was assumed; nothing for depths.

        Args:
            classes: that the network tells apart. Of two, one may be named; the other is background, in black.

        Raises:
            InputError: another number of colours, or no colours.
        """
        if self.is_depth:
            return (), (), []
        named = 1 if classes == 2 and self.num_classes == 1 else classes
        names = None if isinstance(self.classes, int) else self.settings.classes  # `find_interface` checked how many
        warnings = []
        if names is None:
            names = tuple(f"class {i}" for i in range(classes))
            warnings += ["The file names no classes: they are called class 0, class 1, …. Name them with --classes."]
        elif named < classes:
            warnings += [f"One class is named, {names[0]!r}: what is not above the threshold is called background."]
            names = ("background", *names)
        return names, self._colours(classes, named), warnings

    def _colours(self, classes: int, named: int) -> Colours:
        given = self.palette if self.palette is not None else self.settings.palette
        background = ((0, 0, 0),) * (classes - named)
        if given is None or (self.palette is None and len(given) != classes):
            return (*background, *default_palette(named))
        if len(given) not in (classes, named):
            what = f"--palette gives {len(given)}, but the network tells {classes} classes apart"
            raise InputError(what, "Give one for each channel of its output, in their order.")
        colours = colours_of(given)
        if colours is None:
            raise InputError(f"palette: {given!r} are not RGB triples in 0..255", "Give three whole numbers a class.")
        return (*background, *colours) if len(colours) == named else colours

    def resize_size(self) -> tuple[int, int] | None:
        """(height, width) of the network's input where the protocol fixes it; None: images have several sizes."""
        if self.size is not None:
            return self.size[1], self.size[0]
        given = self.settings.preprocess
        resize = None if given is None or self.scale is not None else resizing(given)
        return (resize.size[1], resize.size[0]) if isinstance(resize, Resize) and not resize.keep_ratio else None


def _words(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
