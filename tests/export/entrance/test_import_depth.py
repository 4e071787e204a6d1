"""An ONNX file that estimates depth becomes a bundle of the task depth, if somebody says what its numbers mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign import MEAN, METRES, STD, computed, declared_depth, estimating

from denseport.export.entrance.declared import Declared
from denseport.export.entrance.foreign import import_bundle
from denseport.export.errors import ExportError
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.cli.main import main
from denseport.runtime.errors import InputError
from denseport.runtime.segmenter import Segmenter


@pytest.mark.parametrize("end", ["NCHW", "NHW", "NHWC"])
def test_depths_come_out_as_the_file_gives_them(tmp_path: Path, end: str) -> None:
    path = estimating(end).save(tmp_path / "network.onnx")
    bundle = import_bundle(path, tmp_path / "bundle", declared_depth(align_corners=True))
    manifest, source = bundle.manifest, bundle.artifact("model.onnx")
    assert (manifest.task, manifest.depth, manifest.classes, manifest.palette) == ("depth", METRES, (), ())
    assert manifest.align_corners and manifest.stride == 4 and source.output == "depth"
    (output,) = onnx.load(bundle.path / "model.onnx").graph.output
    assert output.name == "depth"
    image = np.random.default_rng(0).standard_normal((2, 3, 48, 80)).astype(np.float32)
    found = OnnxRuntimeSession(bundle.path / "model.onnx").run(image)
    assert found.shape == (2, 1, 12, 20)
    np.testing.assert_allclose(found.ravel(), computed(path, image).ravel(), atol=1e-5)
    again = import_bundle(path, tmp_path / "again", Declared(like=bundle))
    assert again.manifest.depth == METRES and again.manifest.align_corners


def test_the_command_declares_what_the_numbers_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = estimating().save(tmp_path / "network.onnx")
    command = ["import", str(path), "-o", str(tmp_path / "b"), "--size", "96x64", "--task", "depth"]
    command += ["--mean", *map(str, MEAN), "--std", *map(str, STD)]
    for more, words in (
        ([], "nothing says what the numbers"),
        (["--larger-is", "nearer"], "goes with --unit"),
        (["--unit", "relative"], "what larger numbers mean"),
        (["--unit", "metres", "--larger-is", "nearer"], "nearer"),
        (["--unit", "metres", "--classes", "4"], "--classes means nothing"),
        (["--unit", "metres", "--gives", "classes"], "--gives classes"),
    ):
        assert main([*command, *more]) == 2 and words in capsys.readouterr().err, more
    assert main([*command, "--unit", "relative", "--larger-is", "nearer"]) == 0
    assert "values differ by" in capsys.readouterr().out
    assert Bundle(tmp_path / "b").manifest.depth == DepthOutput("relative", "nearer", None, "bilinear")


def test_several_channels_are_no_depth(tmp_path: Path) -> None:
    path = estimating("NCHW", channels=2).save(tmp_path / "network.onnx")
    with pytest.raises(ExportError, match="a depth has one channel"):
        import_bundle(path, tmp_path / "bundle", declared_depth())


def test_a_segmenter_refuses_a_depth_bundle(tmp_path: Path) -> None:
    path = estimating().save(tmp_path / "network.onnx")
    bundle = import_bundle(path, tmp_path / "bundle", declared_depth())
    with pytest.raises(InputError, match=r"is for depth, not for segmentation\n.*DepthEstimator"):
        Segmenter(bundle)
