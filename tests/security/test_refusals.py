"""What a bundle or a command line cannot mean is refused by name, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support import ASSETS

from denseport.calibration.calibrate import calibrate
from denseport.export.build import EngineSettings, build
from denseport.export.bundle import export_bundle
from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.entrance.declared import Declared
from denseport.export.entrance.foreign import import_bundle
from denseport.export.errors import CheckpointError
from denseport.runtime.benchmark.bench import bench
from denseport.runtime.benchmark.overview.collect import report
from denseport.runtime.benchmark.speed import Plan
from denseport.runtime.bundle.artifact import Artifact
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import NetworkInput
from denseport.runtime.cli.main import main
from denseport.runtime.errors import BundleError, DenseportError, ImageError, OutputError
from denseport.runtime.evaluation.depth.dataset import open_depth_dataset
from denseport.runtime.evaluation.evaluate import evaluate
from denseport.runtime.evaluation.gate import Gate
from denseport.runtime.evaluation.task import LongRun
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.selection import select_artifact
from denseport.runtime.serving.triton.repository import export_repository
from denseport.runtime.serving.triton.variants import Options, model_name

STREET = sorted((ASSETS / "street").rglob("*.jpg"))[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_scale_of_floats_leaves_the_old_bundle(sample_copy: Bundle) -> None:
    before = contents(sample_copy.path)
    with pytest.raises(CheckpointError, match=r"--scale \(1024.5, 160.5\)"):
        scale: Any = (1024.5, 160.5)
        export_bundle(ASSETS / "dpt_tiny_street.pth", sample_copy.path, scale=scale, replace=True)
    assert contents(sample_copy.path) == before


def test_a_device_is_no_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="/dev/null: not an ordinary file"):
        read_checkpoint(Path("/dev/null"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["build", "B", "--profile", "nonsense"], "profile 'nonsense'"),
        (["build", "B", "--target", "sm_86"], "targets ('sm_86',)"),
        (["build", "B", "--workspace", "1"], "workspace 1048576"),
        (["build", "B", "--level", "5"], "optimization level 5"),
        (["build", "B", "--timing-cache", "t"], "timing cache"),
        (["build", "B", "--version-compatible"], "version compatible"),
        (["build", "B", "--limit", "3"], "--limit 3"),
        (["calibrate", "B", "--images", str(STREET), "--split", "x"], "--split"),
        (["calibrate", "B", "--images", str(STREET), "--data-limit", "3"], "--data-limit"),
        (["eval", "B", "--data", str(STREET.parent), "--masks", str(STREET.parent), "--split", "x"], "--split x"),
        (["eval", "B", "--data", str(STREET.parent), "--budget", "0"], "--budget is used by --gate only"),
        (["triton", "B", "-o", "REPO", "--network-instances", "2"], "--network-instances"),
        (["run", "B", str(STREET), "-o", "REPO", "--temporal-smoothing", "0.5"], "--temporal-smoothing"),
        (["triton", "B", "-o", "B"], "is a bundle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_without_effect_is_refused(
    sample_copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    before = contents(tmp_path)
    places = {"B": str(sample_copy.path), "REPO": str(tmp_path / "new")}
    assert main([places.get(option, option) for option in options]) == 2
    assert words in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_the_readme_of_another_is_kept(sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    assert main(["triton", str(sample.path), "-o", str(tmp_path)]) == 2
    assert "README.md: exists already" in capsys.readouterr().err
    assert contents(tmp_path) == {"README.md": b"# Mine\n"}


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "B", "--data", "nowhere", "--report", "PLACE", "report.html"],
        ["eval", "DEPTH", "--data", "nowhere", "--report", "PLACE", "report.html"],
        ["report", "B", "--data", "nowhere", "-o", "PLACE", "report.html"],
        ["bench", "B", "--image", "nowhere", "--report", "PLACE", "bench.json"],
        ["bench", "B", "--image", "nowhere", "--report", "PLACE", "bench.html"],
    ],
    ids=" ".join,
)
def test_a_folder_in_the_place_of_a_page_is_noticed_before_the_work(
    sample: Bundle, depth_sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    (place := tmp_path / command.pop()).mkdir()
    places = {"B": str(sample.path), "DEPTH": str(depth_sample.path), "PLACE": str(tmp_path)}
    assert main([places.get(word, word) for word in command]) == 2
    assert f"{place}: cannot be written: Is a directory" in capsys.readouterr().err


def segmenter_of(bundle: Bundle) -> Segmenter:
    return Segmenter(bundle, artifact="model.onnx", threads=1)


PUBLIC: dict[str, Callable[[Any, Bundle], object]] = {
    "bundle": lambda odd, _: Bundle(odd),
    "bundle of a segmenter": lambda odd, _: Segmenter(odd),
    "trust": lambda odd, bundle: Segmenter(bundle, trust=odd),
    "protocol": lambda odd, bundle: Segmenter(bundle, protocol=odd),
    "artifact": lambda odd, bundle: Segmenter(bundle, artifact=odd),
    "providers": lambda odd, bundle: Segmenter(bundle, artifact="model.onnx", providers=odd),
    "threads": lambda odd, bundle: Segmenter(bundle, threads=[odd]),  # type: ignore[arg-type]
    "image of a batch": lambda odd, bundle: segmenter_of(bundle).batch(odd),
    "image of a stream": lambda odd, bundle: list(segmenter_of(bundle).stream(odd)),
    "repository": lambda odd, bundle: export_repository(bundle, odd, Options()),
    "preset": lambda odd, _: export_bundle("a.pth", "new", preset=odd),
    "classes": lambda odd, _: export_bundle(ASSETS / "dpt_tiny_street.pth", "new", classes=odd),
    "data": lambda odd, bundle: evaluate(bundle, odd),
    "masks": lambda odd, bundle: evaluate(bundle, "images", masks=odd),
    "list_file": lambda odd, bundle: evaluate(bundle, "images", list_file=odd),
    "report": lambda odd, bundle: evaluate(bundle, "images", report=odd),
    "checkpoint of an explanation": lambda odd, bundle: evaluate(bundle, "images", checkpoint=odd),
    "gate": lambda odd, _: Gate([odd]),  # type: ignore[arg-type]
    "state": lambda odd, _: LongRun(odd),
    "merge": lambda odd, _: LongRun(merge=odd),
    "data of depths": lambda odd, _: open_depth_dataset(odd),
    "depths": lambda odd, _: open_depth_dataset("images", depths=odd),
    "artifacts": lambda odd, bundle: bench(bundle, odd),
    "image": lambda odd, bundle: bench(bundle, image=odd),
    "out": lambda odd, bundle: report(bundle, "images", odd),
    "images": lambda odd, bundle: calibrate(bundle, odd),
    "images of a build": lambda odd, bundle: build(bundle, images=odd),
    "checkpoint": lambda odd, _: export_bundle(odd, "new"),
    "output": lambda odd, _: export_bundle("a.pth", odd),
    "config": lambda odd, _: export_bundle("a.pth", "new", config=odd),
    "model": lambda odd, _: import_bundle(odd, "new", Declared()),
    "classes of an import": lambda odd, _: Declared(classes=complex(5) if odd == 5 else odd),  # type: ignore[arg-type]
    "palette": lambda odd, _: Declared(palette=odd),
    "mean": lambda odd, _: Declared(mean=odd, std=odd),
    "std": lambda odd, _: Declared(mean=(0, 0, 0), std=["1", odd, "1"]),  # type: ignore[list-item]
    "scale": lambda odd, _: Declared(scale=odd),
    "size": lambda odd, _: Declared(size=(64, odd, 64)),  # type: ignore[arg-type]
    "value_range": lambda odd, _: Declared(value_range=[odd]),  # type: ignore[arg-type]
    "threshold": lambda odd, _: Declared(threshold=odd),
    "from_json": lambda odd, _: Declared(from_json=odd),
    "name of a model": lambda odd, bundle: model_name(bundle, odd),
    "timing_cache": lambda odd, _: EngineSettings(timing_cache=odd),
    "concurrency": lambda odd, _: Plan(concurrency=odd),
}


@pytest.mark.parametrize("odd", [5, b"x"], ids=["int", "bytes"])
@pytest.mark.parametrize("name", PUBLIC)
def test_a_value_of_another_type_is_refused_by_its_argument_s_name(
    sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, odd: object
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DenseportError, match=name.partition(" ")[0]):
        PUBLIC[name](odd, sample)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("threshold", [0, 1, 5])
def test_a_threshold_of_a_file_is_no_other_than_an_option(tmp_path: Path, threshold: float) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"threshold": threshold}))
    with pytest.raises(DenseportError, match=f"threshold .*{threshold}"):
        Declared(from_json=file)


def test_a_cache_that_cannot_be_written_is_noticed_before_an_engine_is_built(sample: Bundle) -> None:
    """Before the builder, which is not installed here, is asked for."""
    with pytest.raises(OutputError, match="Not a directory"):
        build(sample, engine="tensorrt", settings=EngineSettings(timing_cache=Path(__file__) / "cache"))


def test_an_input_that_the_manifest_does_not_allow_is_refused(sample_copy: Bundle) -> None:
    file = sample_copy.path / "manifest.json"
    manifest = dataclasses.replace(sample_copy.manifest, input=NetworkInput(shape=(1, 3, 64, 96)))
    file.write_text(manifest.to_json())
    image = np.zeros((64, 96, 3), np.uint8)
    with Segmenter(sample_copy.path) as segmenter, pytest.raises(ImageError, match="it takes") as caught:
        segmenter(image)
    assert "--protocol fixed:96x64" in str(caught.value)
    with Segmenter(sample_copy.path, protocol="fixed:96x64") as segmenter:
        assert [found.mask.shape for found in segmenter.batch([image, image])] == [(64, 96)] * 2  # one by one


@pytest.mark.parametrize("command", [["run", "B", "IMAGE", "-o", "OUT"], ["build", "B", "--images", "IMAGE"]])
def test_an_image_that_is_too_narrow_is_named(
    sample_copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    image = tmp_path / "w.png"
    cv2.imwrite(str(image), np.zeros((1, 20000, 3), np.uint8))
    places = {"B": str(sample_copy.path), "IMAGE": str(image), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in command]) == 2
    assert f"{image}: an image of 20000 x 1 pixels" in capsys.readouterr().err


def test_a_damaged_record_names_bundle_and_artifact(sample_copy: Bundle) -> None:
    file = sample_copy.path / "manifest.json"
    data = json.loads(file.read_text())
    source: dict[str, Any] = data["artifacts"]["model.onnx"]
    changed = {"kind": "engine", "precision": "fp16", "float_precision": "fp16", "target": "tensorrt", "proof": []}
    assert changed.keys() < {each.name for each in dataclasses.fields(Artifact)}
    engine = {
        **source,
        **changed,
        "made_of": "model.onnx",
        "main": "x.engine",
        "files": {"x.engine": "0"},
        "record": {},
    }
    for name, record in (("x.engine", {}), ("int8.onnx", {"verdict": {"machine": 3}})):
        kind = {} if name == "x.engine" else {"kind": "onnx", "precision": "int8", "float_precision": "fp32"}
        entry = {**engine, **kind, "target": "any" if kind else "tensorrt", "record": record}
        file.write_text(json.dumps({**data, "artifacts": {"model.onnx": source, name: entry}}))
        with pytest.raises(BundleError) as caught:
            select_artifact(Bundle(sample_copy.path))
        assert str(sample_copy.path) in caught.value.message and name in caught.value.message
