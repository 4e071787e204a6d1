"""The GPUs of a machine, from what nvidia-smi prints on it."""

from __future__ import annotations

import json
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from support import REPO, ROOTS

from denseport.runtime.system import machine as machine_module
from denseport.runtime.system.machine import inspect_machine, install_command

GB10 = "GPU-aa11, NVIDIA GB10, 12.1, [N/A], 580.95.05"
TWO = "GPU-1a, Tesla T4, 7.5, 15360, 580.1\nGPU-1b, NVIDIA L4, 8.9, 23034, 580.1\nGPU-2c, NVIDIA L4, 8.9, 23034, 580.1"


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    program = tmp_path / "nvidia-smi"
    # It refuses columns that it does not know, as the real one does.
    columns = "--query-gpu=uuid,name,compute_cap,memory.total,driver_version"
    program.write_text(f"#!/bin/sh\n[ $1 = {columns} ] || exit 2\nprintf '%s\\n' '{output}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_memory_that_is_the_processors_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, GB10)
    (gpu,) = inspect_machine().gpus
    assert (gpu.name, gpu.architecture, gpu.memory_mib, gpu.driver) == ("NVIDIA GB10", "sm_121", None, "580.95.05")


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, ["NVIDIA L4", "NVIDIA L4", "Tesla T4"]),  # the newest first, as CUDA counts
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["Tesla T4", "NVIDIA L4", "NVIDIA L4"]),
        ({"CUDA_VISIBLE_DEVICES": "2"}, ["Tesla T4"]),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["Tesla T4", "NVIDIA L4"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1a"}, ["Tesla T4"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, []),  # of two
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "2, -1, 0"}, ["Tesla T4"]),  # what follows an invalid one is not visible
        ({"CUDA_VISIBLE_DEVICES": "MIG-77"}, ["NVIDIA L4", "NVIDIA L4", "Tesla T4"]),
    ],
)
def test_gpus_are_those_that_cuda_shows_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], names: list[str]
) -> None:
    nvidia_smi(tmp_path, monkeypatch, TWO)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert [gpu.name for gpu in inspect_machine().gpus] == names


def installed_from(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str | None) -> None:
    """Metadata as pip leaves them, in a folder; None: no direct_url.json, as of an index."""
    (folder / "METADATA").write_text("Name: denseport\nVersion: 0.1.0\n")
    if text is not None:
        (folder / "direct_url.json").write_text(text)
    (folder / "clone.egg-info").mkdir()  # as setuptools leaves it in an editable clone
    found = [Distribution.at(folder / "clone.egg-info"), Distribution.at(folder)]
    monkeypatch.setattr(machine_module, "distributions", lambda name: found)


GIT = {"url": "https://example.org/d.git", "vcs_info": {"vcs": "git", "commit_id": "ab12"}}


@pytest.mark.parametrize(
    ("direct", "command"),
    [
        (None, "'denseport[serve]'"),
        ("{", "'denseport[serve]'"),
        ("[]", "'denseport[serve]'"),
        ({"url": "file://HERE/my%20clone", "dir_info": {"editable": True}}, "-e 'HERE/my clone[serve]'"),
        ({"url": "file://HERE/my%20clone", "dir_info": {}}, "'HERE/my clone[serve]'"),
        ({"url": "file://HERE/d-1-py3-none-any.whl", "archive_info": {}}, "'HERE/d-1-py3-none-any.whl[serve]'"),
        ({"url": "file://HERE/gone.whl", "archive_info": {}}, "'./gone.whl[serve]' in the folder that has it now"),
        ({"url": "https://example.org/d.whl", "archive_info": {}}, "'denseport[serve] @ https://example.org/d.whl'"),
        (GIT, "'denseport[serve] @ git+https://example.org/d.git@ab12'"),
    ],
)
def test_an_extra_is_installed_as_denseport_was(
    direct: Any, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my clone").mkdir()
    (tmp_path / "d-1-py3-none-any.whl").touch()
    text = direct if isinstance(direct, str | None) else json.dumps(direct).replace("HERE", str(tmp_path))
    installed_from(monkeypatch, tmp_path, text)
    assert install_command("serve") == f"pip install {command.replace('HERE', str(tmp_path))}"


def test_without_metadata_the_name_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "distributions", lambda name: [])
    assert install_command("serve") == "pip install 'denseport[serve]'"


def test_every_remedy_takes_that_command() -> None:
    written = [path for root in ROOTS for path in (REPO / root).rglob("*.py") if "denseport[" in path.read_text()]
    assert [path.name for path in written] == ["machine.py"]
