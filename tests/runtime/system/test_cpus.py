"""Processors that this process may use, under control groups written as the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from denseport.runtime.system import cpus, machine
from denseport.runtime.system.cpus import arithmetic, has_bf16, has_vnni, usable_cpus


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
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 avx512_vnni\n", ("AVX2", "VNNI", "BF16")),
        ("flags : fpu avx_vnni amx_bf16 amx_tile\n", ("VNNI", "AMX", "BF16")),
        ("Features\t: fp asimd asimddp sve i8mm bf16\n", ("SVE", "DOTPROD", "I8MM", "BF16")),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\nbugs\t\t: bf16\n", ("AVX2", "AVX-512", "VNNI")),
        ("", ()),
        (None, ()),  # a system without /proc
    ],
)
def test_arithmetic_is_what_the_processors_flags_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(cpus, "CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert arithmetic() == expected
    assert has_bf16() is ("BF16" in expected)
    assert has_vnni() is ("VNNI" in expected or "DOTPROD" in expected)


@pytest.mark.parametrize(
    ("found", "expected"), [(("AVX2", "VNNI"), "AMD EPYC with AVX2, VNNI"), ((), "AMD EPYC")], ids=["some", "none"]
)
def test_processors_of_one_name_are_told_apart_by_their_arithmetic(
    monkeypatch: pytest.MonkeyPatch, found: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr(machine, "proc_values", lambda *_: ["AMD EPYC", "AMD EPYC"])
    monkeypatch.setattr(machine, "arithmetic", lambda: found)
    assert machine.inspect_machine(look_for_gpus=False).processor == expected
