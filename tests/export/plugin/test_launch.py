"""The launch plan: enough threads for the work, sizes as integers or symbols, and refusals."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denseport.export.plugin import launch

sizes = st.integers(1, 3000)


@dataclass(frozen=True)
class Symbol:
    """Like tensorrt.plugin.SymInt32: arithmetic with the symbol on the left, and nothing else."""

    value: int

    def __add__(self, other: int | Symbol) -> Symbol:
        return Symbol(self.value + _value(other))

    def __mul__(self, other: int | Symbol) -> Symbol:
        return Symbol(self.value * _value(other))

    def __floordiv__(self, other: int | Symbol) -> Symbol:
        return Symbol(self.value // _value(other))

    def __bool__(self) -> bool:
        raise RuntimeError("cannot evaluate a symbolic expression as boolean")


def _value(number: int | Symbol) -> int:
    return number.value if isinstance(number, Symbol) else number


@given(shape=st.tuples(st.integers(1, 16), st.integers(1, 300), sizes, sizes))
def test_symbols_and_integers_give_the_same_plan(shape: tuple[int, int, int, int]) -> None:
    n, c, h, w = (Symbol(size) for size in shape)
    pairs = [
        (
            launch.upsample_add(*shape, precision="f16", layout=layout, align_corners=True),
            launch.upsample_add(n, c, h, w, precision="f16", layout=layout, align_corners=True),
        )
        for layout in ("linear", "hwc8")
    ]
    pairs += [
        (
            launch.upsample_argmax(*shape, precision="f32", scale=scale),
            launch.upsample_argmax(n, c, h, w, precision="f32", scale=scale),
        )
        for scale in launch.SCALES
    ]
    pairs.append(
        (
            launch.resize_argmax(*shape[:2], shape[2:], shape[2:], shape[2:], precision="f16"),
            launch.resize_argmax(n, c, (h, w), (h, w), (h, w), precision="f16"),
        )
    )
    for plain, symbolic in pairs:
        assert plain.grid == symbolic.grid.value
        assert plain.scalars == tuple(_value(scalar) for scalar in symbolic.scalars)


def test_one_thread_a_strip() -> None:
    """DPT at batch 8 and 512 x 512, counted by hand: eight images, 257 bands, 32 strips of eight columns."""
    plan = launch.upsample_argmax(8, 150, 256, 256, precision="f16", scale=2)
    assert plan == launch.Launch("upsample_argmax_x2_f16_wide", 8 * 257 * 32 // 128, 128, (8, 150, 256, 256))
    plan = launch.upsample_add(8, 256, 128, 128, precision="f16", align_corners=True)
    assert plan == launch.Launch("upsample_add_f16_corners", 8 * 256 * 129 * 16 // 256, 256, (2048, 128, 128))


def test_every_plan_names_a_kernel() -> None:
    named = {
        launch.upsample_argmax(1, 2, 3, 4, precision=precision, scale=scale, strip=strip).kernel
        for precision in ("f32", "f16")
        for scale in launch.SCALES
        for strip in launch.STRIPS
    }
    variants: list[tuple[launch.Precision, launch.Layout]] = [("f32", "linear"), ("f16", "linear"), ("f16", "hwc8")]
    named |= {
        launch.upsample_add(1, 2, 3, 4, precision=precision, layout=layout, align_corners=corners).kernel
        for precision, layout in variants
        for corners in (True, False)
    }
    named |= {
        launch.resize_argmax(1, 2, (3, 4), (5, 6), (7, 8), precision=precision).kernel for precision in ("f32", "f16")
    }
    assert named == set(launch.KERNELS)


def test_what_no_kernel_does_is_refused() -> None:
    with pytest.raises(ValueError, match="scale must be one of"):
        launch.upsample_argmax(1, 2, 3, 4, precision="f16", scale=3)
    with pytest.raises(ValueError, match="hwc8 needs f16"):
        launch.upsample_add(1, 2, 3, 4, precision="f32", layout="hwc8", align_corners=True)
