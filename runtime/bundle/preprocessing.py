"""What is done to an image before the network sees it: a list of steps (`denseport.runtime.bundle.steps`)."""

from __future__ import annotations

from denseport.runtime.bundle.steps import (
    LARGEST_SIDE,
    Load,
    Normalise,
    Pad,
    Resize,
    ResizeStep,
    Scale,
    SizeStep,
    Step,
)
from denseport.runtime.errors import ImageError

__all__ = [
    "USUAL_NORMALISE",
    "USUAL_RESIZE",
    "Preprocessing",
    "check_steps",
    "described",
    "is_usual",
    "loading",
    "needs_pillow",
    "normalisation",
    "of_one_size",
    "output_size",
    "paddings",
    "resized_to",
    "resizing",
    "size_steps",
    "with_resize",
    "without_resize",
]

Size = tuple[int, int]  # height, width
Preprocessing = tuple[Step, ...]  # in the order in which they are done
SAMPLING = ("bilinear", "opencv")  # of a resize, unless it says otherwise
# What the published models were tested with, and what is assumed of a checkpoint that does not say.
USUAL_RESIZE = Resize((2048, 512), keep_ratio=True)
USUAL_NORMALISE = Normalise((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), bgr_to_rgb=True)


def check_steps(steps: Preprocessing) -> None:
    """Raises ValueError unless the steps are in an order that can be carried out."""
    kinds = [step.kind for step in steps]
    if kinds.count("normalise") != 1 or kinds.count("load") > 1 or "load" in kinds[1:]:
        raise ValueError("preprocess needs at most one load, which is first, and one normalise")
    if not all(isinstance(step, Pad) and step.mode == "constant" for step in paddings(steps)):
        raise ValueError("preprocess: after normalise comes nothing but pads of mode constant")
    if loading(steps).float32 and any(getattr(step, "library", "") == "pillow" for step in size_steps(steps)):
        raise ValueError("preprocess: Pillow does not resize images of float32")


def needs_pillow(steps: Preprocessing) -> bool:
    """Whether Pillow decodes files: a machine that opens any then needs the extra ``pillow``. Resizing needs none."""
    return loading(steps).library == "pillow"


def loading(steps: Preprocessing) -> Load:
    """How a file becomes an image."""
    return next((step for step in steps if isinstance(step, Load)), Load())


def normalisation(steps: Preprocessing) -> Normalise:
    """The step that normalises; `check_steps` refuses a list without one."""
    return next(step for step in steps if isinstance(step, Normalise))


def size_steps(steps: Preprocessing) -> tuple[SizeStep, ...]:
    """The steps that change the size of an image, before it is normalised."""
    kinds = [step.kind for step in steps]
    return tuple(step for step in steps[: kinds.index("normalise")] if not isinstance(step, Load | Normalise))


def paddings(steps: Preprocessing) -> tuple[SizeStep, ...]:
    """The steps after it is normalised: `check_steps` lets pads alone be there."""
    kinds = [step.kind for step in steps]
    return tuple(step for step in steps[kinds.index("normalise") :] if not isinstance(step, Load | Normalise))


def output_size(size: Size, step: SizeStep) -> Size:
    """(height, width) after a step.

    Raises:
        ImageError: a side beyond `LARGEST_SIDE`, or of no pixels.
    """
    new = step.output(size)
    if min(new) < 1:
        raise ImageError(
            f"an image of {size[1]} x {size[0]} would become {new[1]} x {new[0]} ({step.words}), without pixels",
            "Crop or tile such a narrow image, or give a protocol with a size of its own: --protocol fixed:512x512.",
        )
    if max(new) > max(LARGEST_SIDE, *size):
        raise ImageError(
            f"an image of {size[1]} x {size[0]} would become {new[1]} x {new[0]} ({step.words}); at most "
            f"{LARGEST_SIDE} pixels a side are allowed",
            "Scale it down, or export with another --scale.",
        )
    return new


def resizing(steps: Preprocessing) -> Scale | None:
    """The step that chooses the size; None where the image keeps its own."""
    return next((step for step in steps if isinstance(step, Scale)), None)


def with_resize(steps: Preprocessing, resize: Scale) -> Preprocessing:
    """The steps with ``resize`` in the place of the step that chooses the size."""
    old = resizing(steps)
    if old is not None:
        return tuple(resize if step is old else step for step in steps)
    first = sum(isinstance(step, Load) for step in steps)
    return (*steps[:first], resize, *steps[first:])


def resized_to(steps: Preprocessing, size: tuple[int, int], *, keep_ratio: bool) -> Preprocessing:
    """The steps, with the image's resize to ``size`` (width, height), sampled as before."""
    old = resizing(steps) or USUAL_RESIZE
    return with_resize(steps, Resize(size, keep_ratio, old.interpolation, old.library))


def of_one_size(steps: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    """The steps with one resize, to ``size`` (width, height), sampled as before, and no pads."""
    kept = tuple(step for step in steps if isinstance(step, Load | Normalise))
    old = resizing(steps) or USUAL_RESIZE
    return with_resize(kept, Resize(size, False, old.interpolation, old.library))


def without_resize(steps: Preprocessing) -> Preprocessing:
    """The steps for an image that keeps its own size."""
    return tuple(step for step in steps if not isinstance(step, ResizeStep))


def is_usual(steps: Preprocessing) -> bool:
    """Whether all that is done is OpenCV's bilinear resize of grey levels, if any, and normalising three channels."""
    load, sizes = loading(steps), size_steps(steps)
    usual = [isinstance(step, ResizeStep) and (step.interpolation, step.library) == SAMPLING for step in sizes]
    plain = not (load.grey or load.float32) and len(normalisation(steps).mean) == 3
    return plain and all(usual) and len(usual) <= 1 and not paddings(steps)


def described(steps: Preprocessing) -> str:
    """How the image is loaded, resized and padded, in words."""
    words = [loading(steps).words] if loading(steps).words else []
    words += [] if resizing(steps) else ["own size"]
    return ", ".join(words + [step.words for step in (*size_steps(steps), *paddings(steps))])
