"""Files of arrays: what was written comes back, and of a damaged file nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from denseport.runtime.system.arrays import read_arrays, write_arrays


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array("key"), "c": np.zeros((0, 4), np.float32)}
    write_arrays(tmp_path / "new" / "x.npz", arrays)
    found = read_arrays(tmp_path / "new" / "x.npz")
    assert found is not None and found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert read_arrays(tmp_path / "none.npz") is None


@pytest.mark.parametrize("width", b"124")
def test_a_header_that_asks_for_fewer_bytes_than_there_are_is_damage(tmp_path: Path, width: int) -> None:
    """Of an array longer than zipfile's buffer numpy alone would read the first half, past no checksum."""
    path = tmp_path / "x.npz"
    write_arrays(path, {"a": np.arange(10_000, dtype=np.int64)})
    whole = path.read_bytes()
    at = whole.index(b"'<i8'") + 3
    path.write_bytes(whole[:at] + bytes([width]) + whole[at + 1 :])
    assert read_arrays(path) is None


def test_an_array_that_the_zip_directory_lost_is_damage(tmp_path: Path) -> None:
    """A comment's length in the directory that covers the next entry: zipfile alone would pass over that one."""
    path = tmp_path / "x.npz"
    write_arrays(path, {"a": np.arange(3), "b": np.arange(3)})
    whole = path.read_bytes()
    first, second = (at.start() for at in re.finditer(re.escape(b"PK\x01\x02"), whole))
    damaged = bytearray(whole)
    damaged[first + 32 : first + 34] = (second - first).to_bytes(2, "little")
    path.write_bytes(damaged)
    with np.load(path) as seen:
        assert seen.files == ["a"], "what numpy alone would say"
    assert read_arrays(path) is None
