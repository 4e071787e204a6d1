"""`denseport calibrate` through the command line, on the small checkpoint of the repository."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import returned_by
from planting import with_graph
from quantizing import shorten_races
from support import ASSETS

from denseport.calibration import calibrate as whole
from denseport.calibration import steps as pipeline
from denseport.calibration.search.sensitivity import Reference
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.bundle.artifact import ANY
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.cli.main import main
from denseport.runtime.media.images import read_image
from denseport.runtime.pipeline.network_input import NetworkInputs, sample_evenly
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.text import count

STREET = ASSETS / "street"
IMAGES = str(STREET / "images/validation")
THREE = ("--images", IMAGES, "--limit", "3", "--threads", "1")
QUICK = (*THREE, "--effort", "low")
LEFT_OUT = ("backbone.layers.1", "backbone.layers.2", "backbone.layers.3", "decode_head.fusion_blocks.0")
LEFT_OUT += ("decode_head.fusion_blocks.1", "decode_head.fusion_blocks.2")  # one of each kind is enough
FEW_LAYERS = ("--keep-float", "decode_head")  # leaves few layers to try, so that it is quick


def seen_by_the_network(bundle: Bundle, images: Sequence[Path]) -> NetworkInputs:
    return NetworkInputs(images, parse_protocol("reference", bundle.manifest), bundle.manifest.patch_size)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, which a test must not touch; and short races."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shorten_races(monkeypatch)
    return tmp_path / "cache/denseport/calibrate"


@pytest.fixture
def bundle(sample: Bundle, tmp_path: Path) -> Bundle:
    return Bundle(shutil.copytree(sample.path, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def calibrated(sample: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a calibrated bundle, its report, and the statistics."""
    folder = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(sample.path, folder / "bundle")
    arguments = ["--report", str(folder / "int8.html"), "--work", str(folder / "work"), "--attention", "search"]
    with pytest.MonkeyPatch.context() as patch:
        shorten_races(patch)
        assert main(["calibrate", str(folder / "bundle"), *QUICK, "--keep-float", *LEFT_OUT, *arguments]) == 0
    return folder


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every model whose loss is measured."""
    models: list[Any] = []
    measure = Reference.measure

    def counted(reference: Reference, model: Any) -> Any:
        models.append(model)
        return measure(reference, model)

    monkeypatch.setattr(Reference, "measure", counted)
    yield models


def test_int8_is_written_with_a_record(calibrated: Path) -> None:
    bundle = Bundle(calibrated / "bundle")
    artifact = bundle.artifact("int8.onnx")
    record = artifact.record["calibration"]
    assert artifact.precision == "int8" and artifact.made_of == "model.onnx"
    images = sample_evenly([IMAGES], 3)
    digests = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in images)
    assert record["images"] == 3
    assert record["images_sha256"] == hashlib.sha256(digests.encode()).hexdigest()
    assert any("only 3 images" in text for text in record["warnings"])
    assert all(record["float"].values()), "each layer that stays float has a reason"
    assert len(record["narrow"]) + len(record["float"]) == len(record["groups"])
    assert record["share"] == record["steps"][-1]["share"] > 0.25
    assert not list(bundle.path.glob(".*")), "nothing half-made stays behind"

    graph = onnx.load(bundle.verified("int8.onnx")).graph
    kinds = {tensor.data_type for tensor in graph.initializer if tensor.name.endswith(".zero_point")}
    assert kinds == {onnx.TensorProto.INT8}
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) > 15

    same = []
    for image in seen_by_the_network(bundle, images):
        fp32, int8 = (
            onnxruntime.InferenceSession(bundle.path / name).run(None, {"image": image})[0].argmax(1)
            for name in ("model.onnx", "int8.onnx")
        )
        same.append(fp32 == int8)
    assert record["loss"]["agreement"] == pytest.approx(np.concatenate([s.ravel() for s in same]).mean(), abs=2e-3)


def test_both_forms_come_from_one_decision(calibrated: Path) -> None:
    bundle = Bundle(calibrated / "bundle")
    portable, cpu = (bundle.artifact(name).record for name in ("int8.onnx", "int8.cpu.onnx"))
    assert portable["calibration"] == cpu["calibration"]
    assert portable["variant"]["loss"] == portable["calibration"]["loss"] != cpu["variant"]["loss"]
    assert cpu["variant"]["float"] == {}, "every convolution's output has a threshold"
    graph = onnx.load(bundle.verified("int8.cpu.onnx")).graph
    integer = sum(node.op_type in ("QLinearConv", "MatMulIntegerToFloat") for node in graph.node)
    nodes = onnx.load(bundle.verified("int8.onnx")).graph.node
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    products = [node for node in nodes if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert integer == sum(dequantized.issuperset(node.input[:2]) for node in products)


@pytest.mark.parametrize("name", ["int8.onnx", "int8.cpu.onnx"])
def test_the_verdict_says_what_it_is_worth_here(calibrated: Path, name: str) -> None:
    bundle = Bundle(calibrated / "bundle")
    found = bundle.artifact(name).record["verdict"]
    assert set(found["seconds"]) == {"model.onnx", name} and min(found["seconds"].values()) > 0
    assert found["accepted"] == (found["speed_ratio"] >= 1.02)
    made_for = {"int8.onnx": "TensorRT and other ONNX tools", "int8.cpu.onnx": "ONNX Runtime on CPUs"}[name]
    why = ", within its budget" if found["accepted"] else f"; made for {made_for}"
    assert found["reason"].startswith(f"{found['speed_ratio']:.2f} times as fast as FP32{why}")  # then doubts
    searched, judged = bundle.artifact(name).proof
    assert (searched.against, searched.figures, judged.figures) == ("fp32", "variant", "verdict")
    image = read_image(sample_evenly([IMAGES], 1)[0])
    masks = [Segmenter(bundle, artifact=each)(image).mask for each in ("model.onnx", name)]
    assert (masks[0] == masks[1]).mean() > 0.95


def test_the_fastest_accepted_form_runs(calibrated: Path) -> None:
    bundle = Bundle(calibrated / "bundle")
    verdicts = {name: bundle.artifact(name).record["verdict"] for name in ("int8.onnx", "int8.cpu.onnx")}
    # Each was timed beside FP32 in a run of its own: on a busy machine seconds of two runs do not compare.
    shares = {name: each["seconds"][name] / each["seconds"]["model.onnx"] for name, each in verdicts.items()}
    faster = [name for name, each in verdicts.items() if each["accepted"] and shares[name] < 1]
    selection = Segmenter(bundle).selection
    assert selection.name == min(faster, key=lambda name: shares[name], default="model.onnx")
    for name, each in verdicts.items():
        assert each["accepted"] or selection.others[name] == f"not used by itself on this CPU: {each['reason']}"


def test_inspect_and_report_show_it(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(calibrated / "bundle"), "--verify"]) == 0
    out = capsys.readouterr().out
    record = Bundle(calibrated / "bundle").artifact("int8.onnx").record["calibration"]
    smoothed = sum(each["strength"] > 0 for each in record["smoothing"])
    assert f"calibrated on 3 images by minmax, {count(smoothed, 'tensor')} smoothed" in out
    assert "times as fast as FP32" in out and "only 3 images" in out
    compared = [line.strip() for line in out.splitlines() if "compared with fp32" in line]
    assert len(compared) == 2, "once for each of int8.onnx and int8.cpu.onnx, although each was compared twice"
    page = (calibrated / "int8.html").read_text()
    narrow, _, floats = page.partition("layers in float, with the reasons</summary>")
    assert floats.count("float: ") == len(record["float"]) and "<details>" in narrow
    for row in record["groups"]:
        assert f'<th scope="row">{row["group"]}</th>' in (floats if row["precision"] == "float" else narrow)
    assert page.count('<circle class="edge"') == len(record["steps"]) + 2  # and the ends of the budget's line
    assert page.count("<svg") == page.count("</svg>") == 1
    assert "://" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "") and "<script" not in page


def test_statistics_are_used_again_and_labels_are_measured(
    calibrated: Path, measured: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run on the same images: another budget, layers kept float, an old int8.onnx in the way."""
    returned = returned_by(monkeypatch, whole, "calibrate")
    bundle = str(calibrated / "bundle")
    again = ["calibrate", bundle, *QUICK, "--work", str(calibrated / "work"), "--json"]
    before = Bundle(bundle).artifact("int8.onnx").record["calibration"]
    assert main([*again, "--keep-float", *LEFT_OUT, "--agreement", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(returned[0].to_dict(), allow_nan=False))
    assert len(measured) == len(found["steps"]) + 1, "single layers were measured by the first run; the CPU form is one"
    assert {name for name, reason in found["float"].items() if "--attention search" in reason} == {
        row["group"] for row in before["groups"] if row["kind"] == "attention"
    }

    labelled = ["--data", str(STREET), "--split", "validation", "--data-limit", "4", "--budget", "5"]
    assert main([*again, *labelled, "--keep-float", *LEFT_OUT, "decode_head.reassemble_blocks"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["budget"]["miou"] == 5 and found["labelled"] == 4
    assert "asked for with --keep-float" in found["float"].values()
    assert not any(name.startswith("decode_head.reassemble_blocks") for name in found["narrow"])
    assert Bundle(bundle).artifact("int8.onnx").record["calibration"]["narrow"] == found["narrow"]
    assert main(["eval", bundle, "--data", str(STREET), "--artifact", "int8.onnx", "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mIoU"] == pytest.approx(
        found["verdicts"]["int8.onnx"]["miou"], abs=1e-3
    )


def test_an_artifact_is_measured_again_for_another_machine(
    calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle(shutil.copytree(calibrated / "bundle", tmp_path / "copy"))
    old = bundle.artifact("int8.onnx").record["verdict"]
    bundle.note("int8.onnx", {"verdict": {**old, "machine": "a far-away processor"}})
    assert "measured on a far-away processor" in Segmenter(bundle).selection.others["int8.onnx"]
    assert main(["calibrate", str(bundle.path), *THREE, "--measure", "int8.onnx"]) == 0
    told, *details = capsys.readouterr().out.splitlines()
    assert told.startswith("int8.onnx: ") and old["machine"] in told
    assert "of the pixels get the class that FP32 gives" in details[0] and all(line[:2] == "  " for line in details)
    assert Bundle(bundle.path).artifact("int8.onnx").record["verdict"]["machine"] == old["machine"]
    assert main(["calibrate", str(bundle.path), *THREE, "--measure", "model.onnx"]) == 2
    assert "was not written by denseport calibrate" in capsys.readouterr().err


def test_fp8_comes_from_the_same_statistics(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Bundle(shutil.copytree(calibrated / "bundle", calibrated / "fp8"))
    few = ["--keep-float", "backbone", "decode_head.fusion_blocks", "--work", str(calibrated / "work")]
    assert main(["calibrate", str(bundle.path), *QUICK, *few, "--precision", "fp8", "--agreement", "0.5"]) == 0
    assert "of the multiply-adds; on 3 images" in capsys.readouterr().out
    artifact = Bundle(bundle.path).artifact("fp8.onnx")
    assert artifact.precision == artifact.record["calibration"]["precision"] == "fp8"
    graph = onnx.load(bundle.path / "fp8.onnx").graph
    kinds = {tensor.data_type for tensor in graph.initializer if tensor.name.endswith(".zero_point")}
    assert kinds == {onnx.TensorProto.FLOAT8E4M3FN}
    (image,) = seen_by_the_network(bundle, sample_evenly([IMAGES], 1))
    fp32, fp8 = (
        OnnxRuntimeSession(bundle.path / name, target=target).run(image)
        for name, target in (("model.onnx", ANY), ("fp8.onnx", artifact.target))
    )
    assert 0 < np.linalg.norm(fp8 - fp32) < 0.1 * np.linalg.norm(fp32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp8"], "denseport calibrate"),
        (["--precision", "int8"], "int8.onnx is the INT8 graph already"),
        (
            ["--precision", "int8", "--float-precision", "fp16", "--output", "mask"],
            "--float-precision fp16 does not go with --output mask",
        ),
        (["--float-precision", "fp16"], "--float-precision belongs to --precision int8 and fp8"),
    ],
)
def test_build_takes_what_calibrate_wrote(
    calibrated: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["build", str(calibrated / "bundle"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_float_rest_is_typed(calibrated: Path) -> None:
    bundle = Bundle(shutil.copytree(calibrated / "bundle", calibrated / "mixed"))
    assert main(["build", str(bundle.path), "--precision", "int8", "--float-precision", "fp16"]) == 0
    artifact = Bundle(bundle.path).artifact("int8.fp16.onnx")
    assert artifact.precision == "int8" and artifact.made_of == "int8.onnx"
    assert artifact.record["precision"]["nodes"]["fp16"] > artifact.record["precision"]["nodes"]["fp32"]


def test_nothing_is_written_where_nothing_keeps_the_budget(
    calibrated: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--work", str(calibrated / "work"), "--agreement", "1"]
    assert main(["calibrate", str(bundle.path), *QUICK, *FEW_LAYERS, *arguments]) == 1
    assert "nothing was written: no set of layers in INT8 keeps the budget" in capsys.readouterr().out
    assert sorted(path.name for path in bundle.path.iterdir()) == ["manifest.json", "model.onnx"]


def test_an_interrupted_run_changes_nothing_and_is_resumed(
    bundle: Bundle, cache: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **_: Any) -> None:
        alone = arguments[5]
        alone()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "search", interrupt)
        assert main(["calibrate", str(bundle.path), *QUICK, *FEW_LAYERS]) == 130
    assert sorted(path.name for path in bundle.path.iterdir()) == ["manifest.json", "model.onnx"]
    assert {path.name for path in cache.rglob("*.*")} == {"channels.npz", "tensors.npz", "losses.npz"}
    single = len(measured)
    assert single > 10
    assert main(["calibrate", str(bundle.path), *QUICK, *FEW_LAYERS, "--resume"]) == 0
    steps = Bundle(bundle.path).artifact("int8.onnx").record["calibration"]["steps"]
    assert len(measured) == single + len(steps) + 1  # the CPU form
    assert not list(cache.iterdir()), "the cache is emptied after success"


def plant_text(folder: Path) -> None:
    (folder / "bad.jpg").write_text("no image")


def plant_narrow(folder: Path) -> None:
    cv2.imwrite(str(folder / "narrow.png"), np.zeros((3, 900, 3), np.uint8))


def plant_nothing(folder: Path) -> None:
    pass


def plant_video(folder: Path) -> None:
    (folder / "clip.mp4").touch()


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_nothing, "no image or video found here"),
        (plant_video, "there are no images to calibrate with"),
        (plant_text, "bad.jpg"),
        (plant_narrow, "narrow.png: an image of 900 x 3 pixels"),
    ],
)
def test_bad_images(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    plant: Callable[[Path], None],
    message: str,
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    if plant not in (plant_nothing, plant_video):
        shutil.copy(sample_evenly([IMAGES], 1)[0], folder)
    plant(folder)
    assert main(["calibrate", str(bundle.path), "--images", str(folder)]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in bundle.path.iterdir()) == ["manifest.json", "model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0.5"], "needs labelled images"),
        (["--limit", "0"], "--limit: '0' is not a whole number"),
        (["--agreement", "97"], "--agreement: '97' is not a number from 0 to 1"),
        (["--data", str(STREET)], "training"),
        (["--data", str(STREET), "--split", "validation", "--budget", "-1"], "--budget: '-1'"),
        (["--masks", IMAGES], "--masks belongs to --data"),
        (["--keep-float", "decode_head.projekt"], "Near it: decode_head.project"),
        (["--report", IMAGES], "is a folder"),
        (["--report", "model.onnx"], "End it in .html"),
        (["--report", "n" * 300 + ".html"], "File name too long"),
        (["--report", f"{__file__}/int8.html"], "A file is where a folder is needed"),
        (["--work", f"{__file__}/work", "--images", "nowhere"], "A file is where a folder is needed"),
        (["--measure", "int8.onnx", "--agreement", "0.9"], "--agreement does not go with --measure"),
        (["--measure", "int8.onnx", "--precision", "fp8"], "--precision does not go with --measure"),
        (
            ["--measure", "int8.onnx", "--effort", "medium", "--keep-float", "backbone"],
            "--keep-float does not go with --measure",
        ),
        (["--measure", "int8.onnx", "--effort", "medium", "--resume"], "--resume does not go with --measure"),
        (["--measure", "int8.onnx", "--effort", "medium"], "no artifact 'int8.onnx'"),
    ],
)
def test_bad_arguments(bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["calibrate", str(bundle.path), *QUICK, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in bundle.path.iterdir()) == ["manifest.json", "model.onnx"]


def test_without_a_home_a_folder_for_statistics_is_asked_for(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert main(["calibrate", str(bundle.path), *QUICK]) == 2
    assert "Name a folder with --work DIR" in capsys.readouterr().err


def test_a_quantized_model_is_refused(calibrated: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    quantized = onnx.load(calibrated / "bundle/int8.onnx").graph
    with_graph(bundle, lambda graph: graph.CopyFrom(quantized))
    assert main(["calibrate", str(bundle.path), *QUICK]) == 2
    assert "the model is quantized already" in capsys.readouterr().err


def test_a_model_of_one_size_takes_no_other(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    def fix(graph: onnx.GraphProto) -> None:
        for dimension, size in zip(graph.input[0].type.tensor_type.shape.dim[2:], (160, 160), strict=True):
            dimension.dim_value = size

    with_graph(bundle, fix)
    assert main(["calibrate", str(bundle.path), *QUICK]) == 2
    err = capsys.readouterr().err
    assert "takes only 160 x 160 (width x height)" in err and sample_evenly([IMAGES], 1)[0].name in err
