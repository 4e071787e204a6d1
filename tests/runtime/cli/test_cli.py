"""The command line: what goes well leaves results, what goes wrong a clear message, the exit code, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import files, refused
from support import ASSETS

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import ORDER
from denseport.runtime.system.machine import install_command

SAMPLE = ASSETS / "dpt_tiny_street.pth"


# Bad checkpoints: no bundle, and no folder on the way to it.


def other_architecture(path: Path) -> None:
    torch.save({"state_dict": {"backbone.patch_embed1.proj.weight": torch.zeros(4, 3, 7, 7)}}, path)


def truncated(path: Path) -> None:
    path.write_bytes(SAMPLE.read_bytes()[:100_000])


def wrong_classes(path: Path) -> None:
    data = torch.load(SAMPLE, weights_only=True)
    data["meta"]["dataset_meta"]["classes"] = ("wall", "sky")
    torch.save(data, path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("hello"), ["not a checkpoint"]),
        (lambda path: path.mkdir(), ["this is a folder", "Give the .pth"]),
        (lambda path: None, ["no such file"]),
        (truncated, ["truncated", "fetch it again"]),
        (other_architecture, ["not a network that Denseport knows", "denseport models"]),
        (wrong_classes, ["names 2 classes", "150 outputs", "dataset_meta", "--classes"]),
    ],
    ids=["text", "folder", "missing", "truncated", "other", "classes"],
)
def test_a_bad_checkpoint_leaves_nothing(
    call: Callable[..., Any], tmp_path: Path, make: Callable[[Path], object], words: list[str]
) -> None:
    path = tmp_path / "c.pth"
    make(path)
    refused(call("export", path, "-o", tmp_path / "new/bundle"), str(path), *words)
    assert {found.name for found in tmp_path.iterdir()} <= {"c.pth"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "dpt"], ["no preset 'dpt'", "denseport models"]),
        (["--preset", "dpt_vit-b16_160k"], ["is not dpt_vit-b16_160k", "embed_dims is 96, published 768"]),
        (["--scale", "64", "8"], ["below one patch of 16 pixels", "--scale 2048 512"]),
        (["--ema"], ["has one set of weights", "Leave the option out"]),
        (["--no-ema"], ["has one set of weights", "Leave the option out"]),
    ],
)
def test_bad_options_of_export_leave_nothing(
    call: Callable[..., Any], tmp_path: Path, options: list[str], words: list[str]
) -> None:
    refused(call("export", SAMPLE, "-o", tmp_path / "new/bundle", *options), *words)
    assert not list(tmp_path.iterdir())


def test_export_to_a_place_that_cannot_be_written(call: Callable[..., Any], tmp_path: Path, sample: Bundle) -> None:
    (tmp_path / "file").touch()
    refused(call("export", SAMPLE, "-o", tmp_path / "file/bundle"), "cannot be written", "choose another place")
    refused(call("export", SAMPLE, "-o", tmp_path), "exists already and is not a bundle", "-o")
    refused(call("export", SAMPLE, "-o", sample.path), "is a bundle", "--force")
    assert files(tmp_path) == {"file"}


@pytest.mark.parametrize("library", ["torch", "onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_of_export_is_told_at_once(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    result = call("export", SAMPLE, "-o", tmp_path / "bundle")
    refused(result, f"not installed: {library}", install_command("export,onnxruntime"), code=3)


# The rest


def test_inspect(call: Callable[..., Any], sample: Bundle) -> None:
    code, out, _ = call("inspect", sample.path, "--verify")
    assert code == 0
    for words in ("dpt_tiny_street (DPT, 0.9 M parameters)", "150: wall, building", "every file is what the manifest"):
        assert words in out
    code, out, _ = call("inspect", sample.path, "--json")
    assert code == 0 and json.loads(out)["name"] == "dpt_tiny_street"


def test_inspect_tells_what_is_unusual(call: Callable[..., Any], sample_copy: Bundle) -> None:
    path = sample_copy.path / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["preprocess"].insert(0, {"kind": "load", "orientation": False, "grey": True, "float32": True})
    data["preprocess"].append({"kind": "pad", "divisor": 32, "crop": True})
    scale = {"kind": "resize_by", "factor": [0.5, 0.5]}
    data |= {"align_corners": True, "via_input": False, "augmentation": {"scales": [scale], "flip": True}}
    data |= {"reduce_zero_label": True, "label_map": {"3": 1}, "ignore_index": 7}
    path.write_text(json.dumps(data), encoding="utf-8")
    code, out, _ = call("inspect", sample_copy.path)
    assert code == 0
    for words in (
        "EXIF orientation ignored, grey, float32, keep-ratio 1024 x 160, padded to multiples of 32, cut off again",
        "one logit for 2 x 2 pixels, resized with aligned corners, resized to the image at once",
        "flip (by 0.5)",
        "masks count from 1, 0 is not counted; mapped 3:1; 7 is not counted",
    ):
        assert words in out


def test_models(call: Callable[..., Any]) -> None:
    code, out, _ = call("models")
    assert code == 0 and out.count("UPerNet") >= 11 and "dpt_vit-l16_160k" in out
    code, out, _ = call("models", "--family", "segformer")
    assert code == 0 and out.count("SegFormer") == 13 and "DPT" not in out and "research or evaluation only" in out
    assert "https://download.openmmlab.com/mmsegmentation/v0.5/segformer/segformer_mit-b0_512x512_160k_ade20k/" in out
    refused(call("models", "--family", "swin"), "DPT, UPerNet, SETR, Segmenter, SegFormer")
    code, out, _ = call("models", "--json")
    assert code == 0 and {row["name"]: row.get("mIoU") for row in json.loads(out)}["dpt_vit-b16_160k"] == 46.97


@pytest.mark.parametrize("arguments", [["fly"], ["run"], ["export", "x"], ["run", "b", "x", "--threads", "many"]])
def test_wrong_usage_is_refused_like_any_other_mistake(call: Callable[..., Any], arguments: list[str]) -> None:
    refused(call(*arguments), "--help")


def test_help_names_every_command_in_its_place(call: Callable[..., Any]) -> None:
    code, out, _ = call("--help")
    installed = {entry.name for entry in entry_points(group="denseport.commands")}
    assert code == 0 and installed == set(ORDER)
    assert tuple(re.findall(r"^    ([a-z]+)\b", out, re.MULTILINE)) == ORDER


@pytest.mark.parametrize("command", ["export", "import", "run", "report", "triton"])
def test_the_place_of_what_is_written_has_one_name(call: Callable[..., Any], command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0 and re.search(r"-o [A-Z]+, --output [A-Z]+", out)


def test_a_pipe_that_closes_early_is_no_success(sample: Bundle) -> None:
    """A failed gate whose output goes into ``head`` must not exit with 0."""
    program = Path(sys.executable).with_name("denseport")
    gate = f"'{program}' eval '{sample.path}' --data '{ASSETS / 'street'}' --gate 99"
    done = subprocess.run(["bash", "-c", f"{gate} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
