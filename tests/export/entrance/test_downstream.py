"""What comes after an import: every command takes such a bundle, or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from foreign import MEAN, STD, Graph, segmenting
from serving import running
from support import small_images

from denseport.export.entrance.declared import Declared
from denseport.export.entrance.foreign import import_bundle
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.segmenter import Segmenter


def imported(end: str, folder: Path) -> Bundle:
    """A network of one size, ending in classes: "argmax", which is cut off, or "compared", which knows no logits."""
    classes = 4 if end == "argmax" else 2
    path = segmenting(end, classes=classes, shape=(1, 3, 64, 96)).save(folder / "network.onnx")
    return import_bundle(path, folder / "bundle", Declared(classes=classes, mean=MEAN, std=STD))


def test_it_is_evaluated_built_and_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, images = imported("compared", tmp_path), small_images(tmp_path / "images")
    (tmp_path / "masks").mkdir()
    with Segmenter(bundle) as segment:
        for image in images:
            cv2.imwrite(str(tmp_path / "masks" / image.name), segment(image).mask)

    def run(*words: object) -> str:
        assert main([*map(str, words)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    run("inspect", bundle.path, "--verify")
    found = json.loads(run("eval", bundle.path, "--data", tmp_path / "images", "--masks", tmp_path / "masks", "--json"))
    assert found["aAcc"] == 100.0
    run("build", bundle.path, "--precision", "fp16", "--images", images[0])
    run("triton", bundle.path, "-o", tmp_path / "models")
    assert main(["bench", str(bundle.path), "--baseline", "torch"]) == 2
    assert "is not built by Denseport" in capsys.readouterr().err
    with running(Bundle(bundle.path)) as server:
        answer = server.segment(images[0].read_bytes(), images[0].name)
        refused = server.segment(images[0].read_bytes(), images[0].name, format="npz")
    assert refused.status_code == 422 and "there are no scores" in refused.text
    mask = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    with Segmenter(bundle) as segment:
        palette = np.array(segment.manifest.palette, np.uint8)[:, ::-1]
        np.testing.assert_array_equal(mask, palette[segment(images[0]).mask])


def test_a_network_of_one_layer_is_not_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = Graph((1, 3, 64, 96))
    graph.output(graph.conv("input", (3, 4)))
    about = Declared(classes=4, mean=MEAN, std=STD)
    bundle = import_bundle(graph.save(tmp_path / "network.onnx"), tmp_path / "bundle", about)
    assert main(["calibrate", str(bundle.path), "--images", *map(str, small_images(tmp_path / "images"))]) == 2
    assert "its network has no layer to quantize" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("end", ["argmax", "compared"])
def test_it_is_calibrated_and_timed(end: str, tmp_path: Path) -> None:
    bundle, images = imported(end, tmp_path), small_images(tmp_path / "images")
    assert main(["calibrate", str(bundle.path), "--images", *map(str, images), "--effort", "low"]) in (0, 1)
    assert main(["build", str(bundle.path), "--precision", "fp32", "--output", "mask", "--images", str(images[0])]) == 0
    assert main(["bench", str(bundle.path), "--rounds", "1", "--seconds", "0.01", "--no-record"]) == 0
