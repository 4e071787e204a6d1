"""Engines of TensorRT-RTX, which compiles kernels when they are first run; on fakes, as test_tensorrt.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import RTX, FakeRtxContext, Machine, expected, image_of


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Machine(monkeypatch, tmp_path / "fp16.engine", record=RTX)


def test_a_context_that_still_compiles_is_captured_later(rtx: Machine) -> None:
    rtx.engine.compiling = 2
    image = image_of(1, 3, 8, 8)
    with rtx.session(cuda_graphs=True) as session:
        for _ in range(5):
            np.testing.assert_array_equal(session.run(image), expected(image))
    assert (rtx.cuda.captures, rtx.cuda.launches) == (1, 2)


def test_a_context_is_closed_once_its_kernels_are_compiled(rtx: Machine) -> None:
    """The compiling thread logs through Python, whose lock the end of the context holds."""
    rtx.engine.compiling = 3
    with rtx.session() as session:
        session.run(image_of(1, 3, 8, 8))
    (context,) = rtx.engine.contexts
    assert isinstance(context, FakeRtxContext) and context.asked == 4 and rtx.cuda.alive == 0


def test_compiled_kernels_are_kept_for_the_next_process(rtx: Machine, tmp_path: Path) -> None:
    image = image_of(1, 3, 8, 8)
    kept = tmp_path / f"cache/denseport/rtx/{RTX.engine_sha256}.cache"
    with rtx.session() as session:
        session.run(image)
        assert not kept.exists()
    assert kept.read_bytes() == b"sm_86 kernels"
    for there, content in ((b"sm_86 more kernels", b"sm_86 more kernels"), (b"sm_120 kernels", b"sm_86 kernels")):
        kept.write_bytes(there)  # the second is another GPU's: TensorRT-RTX refuses it
        with rtx.session() as session:
            np.testing.assert_array_equal(session.run(image), expected(image))
            cache = rtx.engine.configs[-1].cache
            assert cache is not None and cache.content == (there if there == content else b"")
        assert kept.read_bytes() == content


def test_without_a_cache_folder_kernels_are_compiled_each_time(rtx: Machine, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    image = image_of(1, 3, 8, 8)
    with rtx.session() as session:
        np.testing.assert_array_equal(session.run(image), expected(image))
