"""`denseport.runtime.system.text`: numbers as people read them."""

from __future__ import annotations

import math

from denseport.runtime.system.text import count, number, signed


def test_a_number_has_its_digits_and_nan_is_a_dash() -> None:
    assert [number(1.005), number(2.0, 0), number(-0.126), number(math.nan)] == ["1.00", "2", "-0.13", "–"]


def test_a_signed_number_has_a_real_minus_and_zero_no_sign() -> None:
    assert [signed(1.5), signed(-1.5), signed(0.004), signed(-0.004)] == ["+1.50", "−1.50", "0.00", "0.00"]


def test_a_count_has_its_noun() -> None:
    assert [count(1, "image"), count(0, "image"), count(12345, "image"), count(2, "class", "es")] == [
        "1 image",
        "0 images",
        "12,345 images",
        "2 classes",
    ]
