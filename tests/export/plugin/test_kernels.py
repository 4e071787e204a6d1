"""The kernels against float64 references, at any size, with ties, infinities and NaN."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from denseport.export.plugin import launch

Array = NDArray[Any]
Precision = Literal["f32", "f16"]
PRECISIONS: tuple[Precision, ...] = ("f32", "f16")
DTYPE: dict[str, type[np.floating[Any]]] = {"f32": np.float32, "f16": np.float16}
OFTEN = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# --- references ---


def resized(array: Array, axis: int, size: int, align_corners: bool = False) -> Array:
    """Linear interpolation in float64, with coordinates in exact integers; a weight of zero hides its tap."""
    source, output = array.shape[axis], np.arange(size)
    if align_corners:
        numerator, denominator = output * (source - 1), max(size - 1, 1)
    else:
        numerator, denominator = np.maximum((2 * output + 1) * source - size, 0), 2 * size
    before, rest = np.divmod(numerator, denominator)
    after = np.minimum(before + 1, source - 1)
    shape = [1] * array.ndim
    shape[axis] = size
    before_weight, after_weight = (
        ((denominator - rest) / denominator).reshape(shape),
        (rest / denominator).reshape(shape),
    )
    wide = array.astype(np.float64)
    with np.errstate(invalid="ignore"):
        before_part = np.where(before_weight == 0, 0.0, before_weight * wide.take(before, axis))
        after_part = np.where(after_weight == 0, 0.0, after_weight * wide.take(after, axis))
        return np.asarray(before_part + after_part)


def bilinear(array: Array, size: tuple[int, int], align_corners: bool = False) -> Array:
    return resized(resized(array, -2, size[0], align_corners), -1, size[1], align_corners)


def assert_sum(actual: Array, x: Array, residual: Array, align_corners: bool) -> None:
    """FP32: within 1e-6 of what was added up. FP16: within one ulp of the rounded result.

    Where terms cancel to below 1 / 4000 of their size, an FP16 ulp is finer than FP32's rounding of the
    terms: there, within 2^-21 of what was added up.
    """
    size = (residual.shape[-2], residual.shape[-1])
    with np.errstate(invalid="ignore", over="ignore"):
        exact = bilinear(x, size, align_corners) + residual.astype(np.float64)
        rounded = exact.astype(actual.dtype)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(actual[~finite], rounded[~finite])
    added = (bilinear(np.abs(x), size, align_corners) + np.abs(residual.astype(np.float64)))[finite]
    error = np.abs(actual[finite].astype(np.float64) - rounded[finite].astype(np.float64))
    ulp = np.spacing(np.abs(rounded[finite])).astype(np.float64)
    allowed = np.maximum(ulp, 2.0**-21 * added) if actual.dtype == np.float16 else 1e-6 * added + ulp
    assert (error <= allowed).all(), f"worst error {np.max(error / allowed)} of what is allowed"


def assert_argmax(actual: Array, values: Array, exact: bool) -> None:
    """numpy's argmax; unless ``exact``, FP32's rounding may swap classes nearer than 1e-6 of their size."""
    expected = values.argmax(1)
    if not exact:
        chosen = np.take_along_axis(values, actual[:, None].astype(np.int64), 1)[:, 0]
        best = np.take_along_axis(values, expected[:, None], 1)[:, 0]
        with np.errstate(invalid="ignore"):
            near = best - chosen <= 1e-6 * np.abs(np.where(np.isfinite(values), values, 0)).max(1)
        expected = np.where(near, actual, expected)
    np.testing.assert_array_equal(actual, expected)


# --- inputs ---


def numbers(seed: int, shape: tuple[int, ...], precision: Precision, kind: str) -> Array:
    """Normal; of wildly different sizes; small integers, full of ties; or with infinities and NaN."""
    random = np.random.default_rng(seed)
    array = random.standard_normal(shape)
    if kind == "scales":
        array *= 2.0 ** random.integers(-14, 12, shape)
    elif kind == "integers":
        array = random.integers(-3, 4, shape).astype(np.float64)
    elif kind != "normal":
        special = {"infinities": [np.inf, -np.inf], "masked": [-np.inf], "nan": [np.nan, np.inf, -np.inf]}[kind]
        array = np.where(random.random(shape) < 0.05, random.choice(special, shape), array)
    return array.astype(DTYPE[precision])


KINDS = ("normal", "scales", "integers", "infinities", "masked", "nan")
seeds = st.integers(0, 2**32 - 1)
sides = st.one_of(st.integers(1, 9), st.sampled_from([12, 16, 20, 24, 33]))


# --- upsample + add ---


def run_upsample_add(kernels: Any, x: Array, residual: Array, layout: launch.Layout, align_corners: bool) -> Array:
    precision: Precision = "f16" if x.dtype == np.float16 else "f32"
    plan = launch.upsample_add(*x.shape, precision=precision, layout=layout, align_corners=align_corners)
    if layout == "linear":
        return np.asarray(kernels.run(plan, [x, residual], residual.shape, x.dtype.type))
    packed = kernels.run(plan, [to_hwc8(x), to_hwc8(residual)], to_hwc8(residual).shape, np.float16)
    return np.asarray(np.moveaxis(packed, -1, 1)[:, : x.shape[1]])


def to_hwc8(array: Array) -> Array:
    """(N, C, H, W) to (N, H, W, C), with channels of NaN up to a multiple of eight."""
    padding = -array.shape[1] % 8
    padded = np.pad(array, ((0, 0), (0, padding), (0, 0), (0, 0)), constant_values=np.nan)
    return np.ascontiguousarray(np.moveaxis(padded, 1, -1))


@OFTEN
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), sides, sides),
    variant=st.sampled_from([("f32", "linear"), ("f16", "linear"), ("f16", "hwc8")]),
    align_corners=st.booleans(),
    kind=st.sampled_from(KINDS),
)
def test_upsample_add(
    kernels: Any,
    seed: int,
    shape: tuple[int, int, int, int],
    variant: tuple[Precision, launch.Layout],
    align_corners: bool,
    kind: str,
) -> None:
    precision, layout = variant
    x = numbers(seed, shape, precision, kind)
    residual = numbers(seed + 1, (*shape[:2], 2 * shape[2], 2 * shape[3]), precision, kind)
    actual = run_upsample_add(kernels, x, residual, layout, align_corners)
    assert_sum(actual, x, residual, align_corners)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("precision", "layout"), [("f32", "linear"), ("f16", "linear"), ("f16", "hwc8")])
def test_upsample_add_far_along_a_row(
    kernels: Any, precision: Precision, layout: launch.Layout, align_corners: bool
) -> None:
    """A kernel that rounds its coordinates errs most at the end of a long row."""
    x = numbers(3, (1, 8, 2, 1024), precision, "normal")
    residual = np.zeros((1, 8, 4, 2048), x.dtype)
    assert_sum(run_upsample_add(kernels, x, residual, layout, align_corners), x, residual, align_corners)


def test_upsample_add_strides_over_its_work(kernels: Any) -> None:
    """Any grid gives the same result."""
    x = numbers(5, (2, 3, 7, 8), "f16", "normal")
    residual = numbers(6, (2, 3, 14, 16), "f16", "normal")
    plan = launch.upsample_add(2, 3, 7, 8, precision="f16", align_corners=True)
    one_thread = launch.Launch(plan.kernel, 1, 1, plan.scalars)
    expected = kernels.run(plan, [x, residual], residual.shape, np.float16)
    np.testing.assert_array_equal(kernels.run(one_thread, [x, residual], residual.shape, np.float16), expected)


# --- upsample + argmax ---


@OFTEN
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 2), st.integers(1, 12), sides, sides),
    precision=st.sampled_from(PRECISIONS),
    scale=st.sampled_from(launch.SCALES),
    strip=st.sampled_from(launch.STRIPS),
    kind=st.sampled_from(KINDS),
)
def test_upsample_argmax(
    kernels: Any,
    seed: int,
    shape: tuple[int, int, int, int],
    precision: Precision,
    scale: int,
    strip: launch.Strip,
    kind: str,
) -> None:
    logits = numbers(seed, shape, precision, kind)
    plan = launch.upsample_argmax(*shape, precision=precision, scale=scale, strip=strip)
    size = (scale * shape[2], scale * shape[3])
    actual = kernels.run(plan, [logits], (shape[0], *size), np.int32)
    assert_argmax(actual, bilinear(logits, size), exact=kind == "integers")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_upsample_argmax_at_the_limits_of_the_type(kernels: Any, precision: Precision) -> None:
    """The kernel's units must not overflow: the largest finite logits are no infinities."""
    logits = np.full((1, 2, 4, 8), -np.finfo(DTYPE[precision]).max, DTYPE[precision])
    logits[:, 1, 2:] = np.finfo(DTYPE[precision]).max
    for scale in launch.SCALES:
        plan = launch.upsample_argmax(*logits.shape, precision=precision, scale=scale)
        size = (4 * scale, 8 * scale)
        actual = kernels.run(plan, [logits], (1, *size), np.int32)
        assert_argmax(actual, bilinear(logits, size), exact=True)


# --- the two resizes + argmax ---


def run_resize_argmax(kernels: Any, logits: Array, network: tuple[int, int], image: tuple[int, int]) -> Array:
    precision: Precision = "f16" if logits.dtype == np.float16 else "f32"
    batch, classes, *size = logits.shape
    plan = launch.resize_argmax(batch, classes, (size[0], size[1]), network, image, precision=precision)
    return np.asarray(kernels.run(plan, [logits, None, None, None], (batch, *image), np.int32))


@OFTEN
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 2), st.integers(1, 7), sides, sides),
    network=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    image=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    precision=st.sampled_from(PRECISIONS),
    kind=st.sampled_from(KINDS),
)
def test_resize_argmax(
    kernels: Any,
    seed: int,
    shape: tuple[int, int, int, int],
    network: tuple[int, int],
    image: tuple[int, int],
    precision: Precision,
    kind: str,
) -> None:
    logits = numbers(seed, shape, precision, kind)
    actual = run_resize_argmax(kernels, logits, network, image)
    assert_argmax(actual, bilinear(bilinear(logits, network), image), exact=False)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_first_of_equal_classes_wins(kernels: Any, precision: Precision) -> None:
    """A class that another repeats ties with it in every pixel, whatever the weights."""
    logits = numbers(8, (1, 5, 11, 13), precision, "normal")
    doubled = np.concatenate([logits, logits], axis=1)
    assert run_resize_argmax(kernels, doubled, (37, 41), (29, 53)).max() < 5
    plan = launch.upsample_argmax(*doubled.shape, precision=precision, scale=4)
    assert kernels.run(plan, [doubled], (1, 44, 52), np.int32).max() < 5


def test_references_agree_with_torch() -> None:
    """The float64 references above are torch's definition of these operators."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 10))
    for size, align_corners in (((14, 20), True), ((14, 20), False), ((112, 160), False), ((9, 31), False)):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(x), size, mode="bilinear", align_corners=align_corners
        )
        np.testing.assert_allclose(bilinear(x, size, align_corners), expected.numpy(), rtol=0, atol=1e-12)
