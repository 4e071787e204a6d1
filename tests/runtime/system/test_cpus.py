"""Processors that this process may use, under control groups written as the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from denseport.runtime.system import cpus
from denseport.runtime.system.cpus import has_bf16, has_vnni, usable_cpus


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "150000 100000"}, 2),  # rounded up
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),  # the parent's limit
        ("0::/../host/path", {"cpu.max": "400000 100000"}, 4),  # a path of the host, seen in a container
        (
            "4:cpu,cpuacct:/x",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "500000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("4:memory:/", {"cpu.max": "100000 100000"}, 64),  # no group of processors
        ("1:name=systemd:/\n0::/", {"unified/cpu.max": "100000 100000"}, 1),
    ],
)
def test_the_tightest_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    write(tmp_path / "groups", files)
    (tmp_path / "self").write_text(membership + "\n")
    monkeypatch.setattr(cpus, "MEMBERSHIP", tmp_path / "self")
    monkeypatch.setattr(cpus, "GROUPS", tmp_path / "groups")
    assert usable_cpus() == expected


def test_affinity_counts_where_there_is_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    monkeypatch.setattr(cpus, "MEMBERSHIP", tmp_path / "none")
    assert usable_cpus() == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 avx512_vnni\n", True),
        ("flags : fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\nbugs\t\t: bf16\n", False),
        ("", False),
        (None, False),  # a system without /proc
    ],
)
def test_bf16_is_what_the_processors_flags_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, expected: bool
) -> None:
    monkeypatch.setattr(cpus, "CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert has_bf16() is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 avx512_vnni\n", True),
        ("flags : fpu avx2 avx_vnni\n", True),
        ("Features\t: fp asimd asimddp\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512bw\nbugs\t\t: avx512_vnni\n", False),
    ],
)
def test_vnni_is_what_the_processors_flags_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: bool
) -> None:
    monkeypatch.setattr(cpus, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(text)
    assert has_vnni() is expected
