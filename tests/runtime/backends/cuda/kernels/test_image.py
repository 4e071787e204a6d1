"""The kernels around the network against the runtime's own arithmetic on the CPU: OpenCV's pixels, and its argmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import postprocess
import pytest
from bundles import steps
from cpu_kernels import POISON, Kernels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from denseport.runtime.backends.cuda.kernels import launch
from denseport.runtime.bundle.preprocessing import Preprocessing, normalisation, resized_to
from denseport.runtime.pipeline import preprocess

OFTEN = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MARGIN = 1e-5  # of the logits' size: nearer than that, the roundings of two coordinates may choose either class
LEVELS = steps(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), bgr_to_rgb=False)  # grey levels as they are

sides = st.one_of(st.integers(1, 9), st.integers(1, 90))
sizes = st.tuples(sides, sides)
seeds = st.integers(0, 2**32 - 1)


def prepared(kernels: Kernels, image: NDArray[np.uint8], size: tuple[int, int], how: Preprocessing) -> NDArray[Any]:
    plan = launch.resize_normalise(image.shape[:2], size, bgr_to_rgb=normalisation(how).bgr_to_rgb)
    return kernels.run(plan, [image, preprocess.levels(how)], (1, 3, *size), np.float32)


def image_of(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Noise, which no rounding error escapes."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def differing(kernels: Kernels, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Where the kernel's grey levels are not OpenCV's; fails where they are more than one apart."""
    shown = preprocess.fit_image(image, resized_to(LEVELS, size[::-1], keep_ratio=False))
    expected = preprocess.normalise(shown, LEVELS)
    apart = np.abs(prepared(kernels, image, size, LEVELS) - expected)
    assert apart.max() <= 1
    return apart > 0


@OFTEN
@given(seed=seeds, size=sizes, network=sizes)
def test_pixels_are_opencvs_at_any_size(
    image_kernels: Kernels, seed: int, size: tuple[int, int], network: tuple[int, int]
) -> None:
    differing(image_kernels, image_of(seed, size), network)


@pytest.mark.parametrize(
    ("size", "network"),
    [((480, 640), (512, 683)), ((986, 1315), (512, 683)), ((333, 500), (512, 769)), ((640, 480), (320, 240))],
)
def test_nearly_all_pixels_are_opencvs_bit_for_bit(
    image_kernels: Kernels, size: tuple[int, int], network: tuple[int, int]
) -> None:
    """Equal everywhere with OpenCV 5.0 on x86; another build may round a few otherwise."""
    share = float(differing(image_kernels, image_of(0, size), network).mean())
    print(f"{size} -> {network}: {share:.4%} of the grey levels differ by one")
    assert share < 0.005


@pytest.mark.parametrize("bgr_to_rgb", [True, False])
def test_channels_are_normalised_in_the_networks_order(image_kernels: Kernels, bgr_to_rgb: bool) -> None:
    how = steps(bgr_to_rgb=bgr_to_rgb)
    image = image_of(1, (23, 31))
    expected = preprocess.normalise(image, how)  # not resized: no grey level may differ
    np.testing.assert_array_equal(prepared(image_kernels, image, (23, 31), how), expected)


@OFTEN
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 7), st.integers(1, 24), st.integers(1, 24)),
    network=sizes,
    size=sizes,
    types=st.tuples(st.sampled_from([np.float32, np.float16]), st.sampled_from([np.uint8, np.uint16])),
)
def test_the_mask_is_the_cpus(
    image_kernels: Kernels,
    seed: int,
    shape: tuple[int, int, int],
    network: tuple[int, int],
    size: tuple[int, int],
    types: tuple[type[np.floating[Any]], type[np.unsignedinteger[Any]]],
) -> None:
    logits = np.random.default_rng(seed).standard_normal(shape).astype(types[0])
    plan = launch.image_mask(shape, network, size, *types)
    mask = image_kernels.run(plan, [logits], size, types[1])
    field = postprocess.whole_map(logits.astype(np.float32), network, size)
    full = postprocess.logits([field])
    chosen = np.take_along_axis(full, mask[None].astype(np.intp), 0)[0]
    assert (full.max(0) - chosen <= MARGIN * np.abs(full).max()).all()


def test_more_than_256_classes_take_two_bytes(image_kernels: Kernels) -> None:
    logits = np.random.default_rng(2).standard_normal((300, 6, 7)).astype(np.float32)
    mask = image_kernels.run(
        launch.image_mask((300, 6, 7), (24, 28), (31, 17), np.float32, np.uint16), [logits], (31, 17), np.uint16
    )
    assert mask.max() > 255
    np.testing.assert_array_equal(mask, postprocess.argmax([postprocess.whole_map(logits, (24, 28), (31, 17))]))


def test_any_grid_gives_the_same_result(image_kernels: Kernels) -> None:
    image, size = image_of(3, (19, 26)), (33, 21)
    plan = launch.resize_normalise((19, 26), size, bgr_to_rgb=True)
    table = preprocess.levels(steps())
    expected = image_kernels.run(plan, [image, table], (1, 3, *size), np.float32)
    one_thread = launch.Launch(plan.kernel, 1, 1, plan.scalars)
    np.testing.assert_array_equal(image_kernels.run(one_thread, [image, table], (1, 3, *size), np.float32), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65504.0, 0.0])
@pytest.mark.parametrize("place", [(0, 0, 0), (2, 1, 3), (6, 8, 10)])
def test_logits_that_are_not_finite_are_flagged(
    image_kernels: Kernels, dtype: Any, value: float, place: tuple[int, int, int]
) -> None:
    """The host's check is the same: no value but a finite one, in any class and corner."""
    logits = np.full((7, 9, 11), -65504.0, dtype)
    logits[place] = value
    flag = image_kernels.run(launch.non_finite(logits.shape, dtype), [logits], (1,), np.int32)
    assert flag[0] == (POISON if np.isfinite(logits).all() else 1)  # left as it was, or set
