"""The gate fails what must not ship: each planted fault, with exit code 1."""

from __future__ import annotations

import dataclasses
import json

import pytest
from planting import overflow, set_attribute, with_graph, with_preprocess
from support import ASSETS

from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.manifest import Reference
from denseport.runtime.cli.main import main
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.evaluation.measure import measure_dataset
from denseport.runtime.segmenter import Segmenter

DATA = ["--data", str(ASSETS / "street")]


@pytest.fixture
def bundle(sample_copy: Bundle) -> Bundle:
    return sample_copy


@pytest.fixture(scope="module")
def right_miou(sample: Bundle) -> str:
    """What the untouched sample scores on these images: the reference of the tests below."""
    segmenter = Segmenter(sample)
    return f"{measure_dataset(open_dataset(ASSETS / 'street'), segmenter).scores(sample.manifest.classes).mIoU:.4f}"


def gate(bundle: Bundle, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = main(["eval", str(bundle.path), *DATA, *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)["gate"]["reasons"]


def test_the_untouched_bundle_passes(bundle: Bundle, right_miou: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(bundle, capsys, "--gate", right_miou) == (0, [])
    with_graph(bundle, lambda graph: None, "fp16.onnx", "fp16")
    assert gate(bundle, capsys, "--artifact", "fp16.onnx", "--gate", "model.onnx") == (0, [])


@pytest.mark.parametrize(
    "values",
    [{"std": (1.0, 1.0, 1.0)}, {"mean": (0.0, 0.0, 0.0)}, {"bgr_to_rgb": False}],
    ids=["wrong std", "wrong mean", "RGB and BGR swapped"],
)
def test_wrong_preprocessing_fails(
    bundle: Bundle, right_miou: str, capsys: pytest.CaptureFixture[str], values: dict[str, object]
) -> None:
    code, reasons = gate(with_preprocess(bundle, **values), capsys, "--gate", right_miou)
    assert code == 1
    assert "points below the given mIoU" in reasons[0]


def test_a_wrong_interpolation_fails(bundle: Bundle, right_miou: str, capsys: pytest.CaptureFixture[str]) -> None:
    node = "decode_head.fusion_blocks.1/Resize_2"
    with_graph(bundle, lambda graph: set_attribute(graph, node, mode="nearest"))
    code, reasons = gate(bundle, capsys, "--gate", right_miou)
    assert code == 1
    assert "points below" in reasons[0]


def test_a_collapse_fails_whatever_the_budget(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with_graph(bundle, lambda graph: overflow(graph, "backbone.layers.2.ln1.weight"), "fp16.onnx", "fp16")
    arguments = ["--artifact", "fp16.onnx", "--gate", "model.onnx", "--budget", "100"]
    code, reasons = gate(bundle, capsys, *arguments)
    assert code == 1
    text = " ".join(reasons)
    assert "the logits of 4 of 4 images are not finite" in text
    assert "of the pixels get the class that FP32 gives" in text


def test_a_reference_without_the_full_set_compares_with_fp32_and_says_so(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = Reference("dpt_vit-b16_160k", "ADE20K validation", "whole", 46.97, 48.34, "a test")
    with_graph(bundle, lambda graph: None, "fp16.onnx", "fp16")
    manifest = dataclasses.replace(bundle.manifest, reference=reference)
    (bundle.path / MANIFEST).write_text(manifest.to_json())
    code = main(["eval", str(bundle.path), *DATA, "--artifact", "fp16.onnx", "--gate", "reference", "--json"])
    verdict = json.loads(capsys.readouterr().out)["gate"]
    assert code == 0
    assert "same 4 images" in verdict["compared_with"]
    assert any("2000 images; 4 were measured" in note for note in verdict["notes"])
    assert verdict["interval"] == [0, 0]
    assert main(["eval", str(bundle.path), *DATA, "--gate", "reference"]) == 2
    assert "2000 images" in capsys.readouterr().err


def test_explain_is_reached_through_the_command(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with_preprocess(bundle, bgr_to_rgb=False)
    arguments = ["--explain", "--checkpoint", str(ASSETS / "dpt_tiny_street.pth")]
    assert main(["eval", str(bundle.path), *DATA, *arguments]) == 0
    assert "normalise.bgr_to_rgb" in capsys.readouterr().out


def test_a_budget_in_the_manifest_holds(bundle: Bundle, right_miou: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = with_preprocess(bundle, bgr_to_rgb=False)
    for budget, code in ((50.0, 0), (0.01, 1)):
        manifest = dataclasses.replace(wrong.manifest, budgets={"fp32": budget})
        (bundle.path / MANIFEST).write_text(manifest.to_json())
        assert gate(Bundle(bundle.path), capsys, "--gate", right_miou)[0] == code
