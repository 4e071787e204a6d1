"""What travels to a borrowed GPU machine, without pip: parts that come to the same, and machine code left out."""

from __future__ import annotations

import hashlib
import importlib
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support import REPO

SCRIPTS = REPO / "scripts" / "gpu"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(SCRIPTS)
    yield


@pytest.fixture
def pack(_scripts: None) -> ModuleType:
    return importlib.import_module("gpu_pack")


def fatbin(code: dict[int, bytes]) -> bytes:
    """As nvcc lays it out: a header, and for each architecture another before its code."""
    entries = b"".join(
        struct.pack("<HHIQ", 2, 0x101, 64, len(content)) + bytes(12) + struct.pack("<I", number) + bytes(32) + content
        for number, content in code.items()
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def test_one_architecture_stays_where_it_was() -> None:
    keep_architecture = importlib.import_module("gpu_fatbin").keep_architecture
    whole = (
        b"ELF..." + fatbin({75: b"a" * 24, 90: b"b" * 40}) + b"data" + fatbin({80: b"c" * 8}) + fatbin({90: b"d" * 16})
    )
    library = bytearray(whole)
    assert keep_architecture(library, 90) == {75: 24, 90: 56, 80: 8}
    assert library == whole.replace(b"a" * 24, bytes(24))
    with pytest.raises(ValueError, match="no code for sm_120, only for sm_75, sm_80, sm_90"):
        keep_architecture(bytearray(whole), 120)


@pytest.mark.parametrize("cut", [30, 70])
def test_a_library_of_another_layout_is_refused(cut: int) -> None:
    keep_architecture = importlib.import_module("gpu_fatbin").keep_architecture
    with pytest.raises(ValueError, match="ends behind the file"):
        keep_architecture(bytearray(fatbin({90: b"b" * 40})[:cut]), 90)
    damaged = bytearray(fatbin({90: b"b" * 40}))
    damaged[16] = 77
    with pytest.raises(ValueError, match="none of a fatbin"):
        keep_architecture(damaged, 90)


def test_parts_come_to_a_package_that_imports(pack: ModuleType, tmp_path: Path) -> None:
    """Through scripts/gpu/check itself, in a clone of its own: it says so while parts are missing."""
    noise = np.random.default_rng(0).bytes(50_000)
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("onnxruntime_here.py", "print('imported')\n")
        archive.writestr("onnxruntime/capi/x_providers_cuda.so", noise + fatbin({75: noise, 90: b"b" * 40}))
        archive.writestr("onnxruntime/tools/big.py", "no")
    pack.pack_wheel(wheel, tmp_path / "site.tar.xz", 90)
    with tarfile.open(tmp_path / "site.tar.xz") as packed:
        assert set(packed.getnames()) == {"onnxruntime_here.py", "onnxruntime/capi/x_providers_cuda.so"}

    clone = tmp_path / "clone"
    (clone / "scripts").mkdir(parents=True)
    for part in ("export", "runtime", "calibration", "setup.cfg"):
        (clone / part).symlink_to(REPO / part)
    (clone / "scripts" / "gpu").mkdir()
    (clone / "scripts" / "gpu" / "check").write_bytes((SCRIPTS / "check").read_bytes())
    (clone / "scripts" / "gpu" / "gpu_check.py").write_text("import onnxruntime_here\n")
    (clone / ".gpu").mkdir()
    parts = pack.split(tmp_path / "site.tar.xz", clone / ".gpu", 20_000, 30_000)
    assert len(parts) > 1 and [part.stat().st_size for part in parts[:-1]] == [20_000, *[30_000] * (len(parts) - 2)]
    last = parts[-1].read_bytes()
    parts[-1].unlink()

    def check() -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHON": sys.executable}
        command = ["bash", str(clone / "scripts" / "gpu" / "check")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    early = check()
    assert early.returncode != 0 and f"of {len(parts)} parts" in early.stdout and "imported" not in early.stdout
    parts[-1].write_bytes(last)
    assert check().stdout.splitlines() == ["imported"]
    found = (clone / ".gpu" / "site" / "onnxruntime/capi/x_providers_cuda.so").read_bytes()
    assert hashlib.sha256(found).digest() == hashlib.sha256(noise + fatbin({75: bytes(50_000), 90: b"b" * 40})).digest()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_call_carries_one_part_and_the_last_needs_all(pack: ModuleType, count: int) -> None:
    parts = [pack.ROOT / ".gpu" / f"part.{number:02}" for number in range(count)]
    found = list(pack.calls(parts, pack.ROOT / ".gpu" / "shared"))
    carried = [name for carry, _, _ in found for name in carry if "part." in name]
    assert carried == [f".gpu/part.{number:02}" for number in range(count)]
    assert all({".gpu/shared", ".gpu/parts.sha256"} <= set(carry) for carry, _, _ in found)
    assert "--only tests kernels images " in found[0][1] and "models" in found[-1][1] and len(found) == max(2, count)
    assert all(seconds <= 600 for _, _, seconds in found)
