"""What Python's callers may give for a number, for several things and for a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.task import LongRun
from denseport.runtime.pipeline.stream import pipelined
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.arguments import optional_path, real, several, whole


@pytest.mark.parametrize("value", [0, 6, -1, True, np.True_, None, "2", 1.5, 2.0, float("nan"), np.float32(2)])
def test_what_is_no_whole_number_within_bounds_is_refused(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        whole("size", value, 1, 5)
    assert (caught.value.message, caught.value.remedy) == (
        f"size cannot be {value!r}",
        "Give a whole number from 1 to 5.",
    )


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), True, None, "2", 1j])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="Give a number from 0 up"):
        real("seconds", value, 0)


def test_numbers_become_those_of_python() -> None:
    found = (
        whole("size", np.uint8(5), 1),
        whole("size", 10**30, 1),
        real("seconds", np.float32(0.5), 0),
        real("s", 1, 0),
    )
    assert found == (5, 10**30, 0.5, 1.0) and [type(each) for each in found] == [int, int, float, float]


def test_a_text_alone_is_one_and_a_path_is_not_empty() -> None:
    assert several("n", "a.jpg") == ("a.jpg",) and several("n", Path("b")) == (Path("b"),)
    assert several("n", ["a", "b"]) == ("a", "b") and several("n", None) == ()
    assert optional_path("report", None) is None and optional_path("report", "a") == Path("a")
    with pytest.raises(InputError, match="report cannot be ''"):
        optional_path("report", "")
    assert LongRun("a", merge="b") == LongRun(Path("a"), merge=(Path("b"),))  # type: ignore[arg-type]


def test_a_provider_alone_is_one(sample: Bundle) -> None:
    with Segmenter(sample, threads=1, providers="CPUExecutionProvider") as segment:
        assert "CPUExecutionProvider" in segment.description
    with pytest.raises(InputError, match="no provider 'CUDO'"):
        Segmenter(sample, providers="CUDO")


def test_a_stage_without_threads_is_refused() -> None:
    """Nothing would ever come out of it."""
    with pytest.raises(InputError, match="workers cannot be 0"):
        next(pipelined([1], {"double": lambda value: 2 * value}, 1, {"double": 0}))
