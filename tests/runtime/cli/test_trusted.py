"""``--trust`` of the commands that run or ship a bundle. What a signature holds: tests/runtime/bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import refused
from hostile import tiny_bundle
from signing import new_key

from denseport.runtime.bundle.signature import sign


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public key of the bundle's owner; the private one lies beside it."""
    return new_key(tmp_path_factory.mktemp("keys"), "owner")[1]


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_key(tmp_path_factory.mktemp("keys"), "stranger")[1]


@pytest.fixture(scope="module")
def signed(owner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tiny_bundle(tmp_path_factory.mktemp("signed") / "bundle")
    sign(bundle, owner.with_suffix(".key"))
    return bundle.path


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "B"],
        ["build", "B", "--images", "nowhere"],
        ["build", "B", "--for-this-machine"],
        ["calibrate", "B", "--images", "nowhere"],
        ["calibrate", "B", "--images", "nowhere", "--measure", "int8.onnx"],
        ["eval", "B", "--data", "nowhere"],
        ["report", "B", "--data", "nowhere", "-o", "OUT"],
        ["run", "B", "nowhere", "-o", "OUT"],
        ["serve", "B", "--port", "0"],
        ["triton", "B", "-o", "OUT"],
    ],
    ids=" ".join,
)
def test_what_runs_or_ships_a_bundle_refuses_one_of_others(
    signed: Path, stranger: Path, tmp_path: Path, call: Any, command: list[str]
) -> None:
    places: dict[str, Any] = {"B": signed, "OUT": tmp_path / "out"}
    words = [places.get(word, word) for word in command]
    refused(call(*words, "--trust", stranger), "not signed by whom you trust")
    assert not (tmp_path / "out").exists()


def test_a_trusted_bundle_is_shipped(signed: Path, owner: Path, tmp_path: Path, call: Any) -> None:
    assert call("triton", signed, "-o", tmp_path / "out", "--trust", owner)[0] == 0
    ray = ("eval", signed, "--data", "nowhere", "--trust", owner, "--ray", "local")
    refused(call(*ray), "--trust does not go with --ray")
