"""Checkpoints of every layout are read; broken and hostile files are refused, and nothing of them runs."""

from __future__ import annotations

import builtins
import os
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import ASSETS

from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.weights import load_model
from denseport.export.errors import CheckpointError

SAMPLE = ASSETS / "dpt_tiny_street.pth"
WEIGHTS = {"backbone.a": torch.arange(6.0).reshape(2, 3), "backbone.count": torch.tensor(7)}


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def chain_of_getattr(marker: Path) -> bytes:
    """A pickle that goes for a command through getattr, which real checkpoints name, and an allowed function."""
    return (
        b"\x80\x02cbuiltins\ngetattr\n(ctorch._utils\n_rebuild_tensor_v2\nX\x0b\x00\x00\x00__globals__tR"
        b"(X" + len(bytes(marker)).to_bytes(4, "little") + bytes(marker) + b"tR."
    )


def save(path: Path, data: Any, *, legacy: bool = False) -> Path:
    torch.save(data, path, _use_new_zipfile_serialization=not legacy)
    return path


def repack(source: Path, target: Path, pickled: bytes) -> Path:
    """A zip checkpoint with another pickle in it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return target


def assert_refused(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: "), "the message names the file"
    assert "`weights_only` set to `False`" not in message, "torch's advice to read it unsafely is not passed on"
    for word in words:
        assert word in message


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_layout_of_mmsegmentation_1(tmp_path: Path, legacy: bool) -> None:
    meta = {
        "cfg": "model = dict(backbone=dict(num_heads=3))",
        "dataset_meta": {"classes": ("wall", "bed "), "palette": [[1, 2, 3], [4, 5, 6]], "reduce_zero_label": True},
        "iter": 100,
        "experiment_name": "mine",
    }
    checkpoint = read_checkpoint(save(tmp_path / "c.pth", {"meta": meta, "state_dict": WEIGHTS}, legacy=legacy))
    assert checkpoint.layout == "mmseg 1.x"
    assert checkpoint.classes == ("wall", "bed")
    assert checkpoint.palette == ((1, 2, 3), (4, 5, 6))
    assert checkpoint.reduce_zero_label is True
    assert (checkpoint.experiment, checkpoint.iterations) == ("mine", 100)
    assert checkpoint.config == {"model": {"backbone": {"num_heads": 3}}}
    assert torch.equal(checkpoint.state_dict["backbone.a"], WEIGHTS["backbone.a"])
    digest = subprocess.run(["sha256sum", tmp_path / "c.pth"], capture_output=True, text=True, check=True).stdout
    assert checkpoint.sha256 == digest.split()[0]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_layout_of_mmsegmentation_0(tmp_path: Path, legacy: bool) -> None:
    meta = {"config": "a = 1", "CLASSES": ["wall"], "PALETTE": [[7, 8, 9]], "exp_name": "old.py"}
    checkpoint = read_checkpoint(save(tmp_path / "c.pth", {"meta": meta, "state_dict": WEIGHTS}, legacy=legacy))
    assert (checkpoint.layout, checkpoint.classes, checkpoint.palette) == ("mmseg 0.x", ("wall",), ((7, 8, 9),))
    assert (checkpoint.config, checkpoint.experiment, checkpoint.reduce_zero_label) == ({"a": 1}, "old.py", None)


def test_bare_weights_and_weights_of_parallel_training(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "c.safetensors")
    paths = [
        save(tmp_path / "bare.pth", WEIGHTS),
        save(tmp_path / "nested.pth", {"state_dict": WEIGHTS}),
        save(tmp_path / "parallel.pth", {f"module.{key}": value for key, value in WEIGHTS.items()}),
        tmp_path / "c.safetensors",
    ]
    for path in paths:
        checkpoint = read_checkpoint(path)
        assert checkpoint.layout == "weights only"
        assert checkpoint.state_dict.keys() == WEIGHTS.keys()
        assert all(torch.equal(value, WEIGHTS[key]) for key, value in checkpoint.state_dict.items())


def test_a_checkpoint_of_the_real_runner_loads_though_weights_only_refuses_it(oracle: Path) -> None:
    path = oracle / "runner_real_dpt.pth"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    checkpoint = read_checkpoint(path)
    assert checkpoint.layout == "mmseg 1.x" and checkpoint.config["model"]["type"] == "EncoderDecoder"
    load_model(checkpoint, recognise(checkpoint).spec)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_precisions_become_float32(tmp_path: Path, kind: torch.dtype) -> None:
    data = torch.load(SAMPLE, weights_only=True)
    weights = {key: value.to(kind) if value.is_floating_point() else value for key, value in data["state_dict"].items()}
    checkpoint = read_checkpoint(save(tmp_path / "c.pth", {"meta": data["meta"], "state_dict": weights}))
    model = load_model(checkpoint, recognise(checkpoint).spec)
    for key, value in model.state_dict().items():
        assert value.dtype == (torch.float32 if weights[key].is_floating_point() else torch.int64)
        assert torch.equal(value, weights[key].to(value.dtype))


ATTACKS: dict[str, tuple[Callable[[str], Any], str]] = {
    "os.system": (lambda marker: Call(os.system, f"touch {marker}"), "'posix.system'"),
    "eval": (lambda marker: Call(builtins.eval, f"open({marker!r}, 'w')"), "'eval'"),
    "exec": (lambda marker: Call(builtins.exec, f"open({marker!r}, 'w')"), "'exec'"),
    "open": (lambda marker: Call(builtins.open, marker, "w"), "'io.open'"),
    "getattr": (lambda marker: Call(getattr, Call(__import__, "os"), "system"), "'__import__'"),
    "copy": (lambda marker: Call(shutil.copy, __file__, marker), "'shutil.copy'"),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("place", ["meta", "state_dict", "optimizer"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_malicious_pickle_is_refused_with_its_name_and_does_not_run(
    tmp_path: Path, name: str, place: str, legacy: bool
) -> None:
    make, called = ATTACKS[name]
    data: dict[str, Any] = {"meta": {}, "state_dict": dict(WEIGHTS), "optimizer": {}}
    data[place]["x"] = make(str(tmp_path / "marker"))
    assert_refused(save(tmp_path / "c.pth", data, legacy=legacy), "refused", called)
    assert not (tmp_path / "marker").exists()


def test_a_chain_of_getattr_is_refused(tmp_path: Path) -> None:
    pickled = chain_of_getattr(tmp_path / "marker")
    (tmp_path / "legacy.pth").write_bytes(pickled)
    packed = repack(save(tmp_path / "c.pth", {}), tmp_path / "zip.pth", pickled)
    for path in (tmp_path / "legacy.pth", packed):
        assert_refused(path, "refused")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, legacy: bool) -> None:
    whole = save(tmp_path / "whole.pth", {"meta": {"cfg": "a = 1"}, "state_dict": WEIGHTS}, legacy=legacy).read_bytes()
    path = tmp_path / "cut.pth"
    for length in {*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert_refused(path)


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(0, len(whole), 9):
        path.write_bytes(whole[:length])
        assert_refused(path, "safetensors")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as file:
        file.writestr("hello.txt", "hello")
    assert_refused(tmp_path / "other.pth", "not a checkpoint")
    for name, data in {"text.pth": b"hello\n" * 100, "pickle.pth": pickle.dumps({"a": 1}), "zero.pth": b""}.items():
        (tmp_path / name).write_bytes(data)
        assert_refused(tmp_path / name, "not a checkpoint")
    assert_refused(tmp_path, "folder")
    assert_refused(tmp_path / "none.pth", "no such file")
    assert_refused(tmp_path / ("n" * 300), "cannot be read")
    assert_refused(save(tmp_path / "list.pth", [1, 2]), "list")
    assert_refused(save(tmp_path / "nothing.pth", {"state_dict": None}), "no weights")
    assert_refused(save(tmp_path / "empty.pth", {"state_dict": {}}), "no weights")


BAD_VALUES: dict[str, Callable[[], Any]] = {
    "NoneType": lambda: None,
    "list": lambda: [1.0],
    "NaN": lambda: torch.tensor([1.0, torch.nan]),
    "infinity": lambda: torch.tensor([torch.inf]),
    "sparse": lambda: torch.zeros(2, 2).to_sparse(),
    "meta": lambda: torch.zeros(2, device="meta"),
    "complex": lambda: torch.zeros(2, dtype=torch.complex64),
    "float8": lambda: torch.zeros(2).to(torch.float8_e4m3fn),
    "int8": lambda: torch.zeros(2, dtype=torch.int8),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_weights_that_cannot_be_used_are_named(tmp_path: Path, kind: str) -> None:
    weights = {**WEIGHTS, "backbone.bad": BAD_VALUES[kind]()}
    assert_refused(save(tmp_path / "c.pth", {"state_dict": weights}), "backbone.bad", kind)


@pytest.mark.parametrize("palette", [[[0, 0, 256]], [[0, 0]], ["red"], 3, [[float("inf")] * 3]], ids=str)
def test_a_palette_that_cannot_be_used_is_refused(tmp_path: Path, palette: Any) -> None:
    assert_refused(save(tmp_path / "c.pth", {"meta": {"PALETTE": palette}, "state_dict": WEIGHTS}), "palette")


def test_names_that_no_file_could_hold_are_made_writable(tmp_path: Path) -> None:
    meta = {"CLASSES": ["sk\udc80y"], "exp_name": "\ud800"}
    checkpoint = read_checkpoint(save(tmp_path / "c.pth", {"meta": meta, "state_dict": WEIGHTS}))
    assert (checkpoint.classes, checkpoint.experiment) == (("sk?y",), "?")


@pytest.mark.parametrize("text", ["model = dict(", "\0", "[" * 100_000, "a = " + "-" * 100_000 + "1", "a = 1 2"])
def test_a_broken_configuration_is_refused_unless_another_is_given(tmp_path: Path, text: str) -> None:
    path = save(tmp_path / "c.pth", {"meta": {"cfg": text}, "state_dict": WEIGHTS})
    assert_refused(path, "its configuration", "--config")
    (tmp_path / "c.py").write_text("model = dict(a=1)")
    checkpoint = read_checkpoint(path, tmp_path / "c.py")
    assert checkpoint.config == {"model": {"a": 1}} and "cannot be read" in checkpoint.warnings[0]


def test_one_compressed_record_among_others_is_refused(tmp_path: Path) -> None:
    """torch reads such a file; a few bytes of it may become gigabytes."""
    whole = save(tmp_path / "whole.pth", {"state_dict": WEIGHTS})
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(packed, "w") as new:
        for i, name in enumerate(old.namelist()):
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if i == 2 else zipfile.ZIP_STORED)
    assert_refused(packed, "compressed or repeated records")


@pytest.mark.parametrize(
    ("names", "found"), [((3, "mine"), "mine"), (("", "mine"), "mine"), (("a", "b"), "a"), ((3, None), "")]
)
def test_the_experiment_is_the_first_name_that_is_text(tmp_path: Path, names: tuple[Any, Any], found: str) -> None:
    meta = dict(zip(("experiment_name", "exp_name"), names, strict=True))
    assert read_checkpoint(save(tmp_path / "c.pth", {"meta": meta, "state_dict": WEIGHTS})).experiment == found


@pytest.mark.parametrize(("given", "found"), [(160000, 160000), ("160000", None), (1.5, None), (None, None)])
def test_iterations_are_a_whole_number_or_unknown(tmp_path: Path, given: Any, found: int | None) -> None:
    checkpoint = read_checkpoint(save(tmp_path / "c.pth", {"meta": {"iter": given}, "state_dict": WEIGHTS}))
    assert checkpoint.iterations == found
