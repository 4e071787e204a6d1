"""`denseport build` through the command line: typed graphs, their audit, engines by the real RTX builder."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from bundles import engine_artifact, onnx_artifact
from fake_tensorrt import RECORD
from numpy.typing import NDArray
from planting import overflow, with_graph
from support import ASSETS

from denseport.export import artifacts as build_module
from denseport.export import audit as audit_module
from denseport.export import build as whole_module
from denseport.export.audit import audit_engine, audit_graph
from denseport.export.engine import build as engine_module
from denseport.export.engine.build import EngineOptions
from denseport.export.graph.mask import append_mask
from denseport.export.graph.model import save_model
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.backends.tensorrt_library import load_library
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.engine_record import BuildRecord, Profile
from denseport.runtime.cli.main import main
from denseport.runtime.errors import BundleError, MachineError
from denseport.runtime.pipeline.network_input import sample_evenly
from denseport.runtime.selection import select_artifact
from denseport.runtime.system.files import sha256_of
from denseport.runtime.system.machine import install_command
from denseport.runtime.system.progress import Silent

IMAGES = str(ASSETS / "street/images")
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


@pytest.fixture
def bundle(sample_copy: Bundle) -> Bundle:
    return sample_copy


def assert_nothing_new(bundle: Bundle) -> None:
    assert sorted(path.name for path in bundle.path.iterdir()) == ["manifest.json", "model.onnx"]


def test_fp16_is_written_audited_and_shown(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", str(bundle.path), "--images", IMAGES, "--explain-precision"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "comparing with FP32, FP16's rounding emulated; images: 4" in err
    assert "PASS" in out and "LayerNormalization" in out and "31 casts" in out
    artifact = Bundle(bundle.path).artifact("fp16.onnx")
    assert artifact.precision == "fp16" and artifact.record["audit"]["agreement"] > 0.998
    (proof,) = artifact.proof
    assert (proof.against, proof.arithmetic, proof.machine, proof.figures) == ("fp32", "fp16", "emulated", "audit")
    assert artifact.record["precision"]["observed_images"] == 4
    assert (bundle.path / "fp16.onnx").stat().st_size < 0.6 * (bundle.path / "model.onnx").stat().st_size
    assert main(["inspect", str(bundle.path), "--verify"]) == 0
    assert "audited on 4 images" in capsys.readouterr().out
    assert not list(bundle.path.glob(".*")), "nothing half-made stays behind"


def test_an_audit_fails_what_collapses(bundle: Bundle) -> None:
    with_graph(bundle, lambda graph: overflow(graph, "backbone.layers.2.ln1.weight"), "planted.onnx", "fp16")
    result = audit_graph(bundle, bundle.path / "planted.onnx", "fp16", sample_evenly([IMAGES], 2), Silent())
    assert not result.passed and not result.finite
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.worst_layer is not None and "backbone.layers.2.ln1/LayerNormalization" in result.worst_layer


def test_an_audit_fails_a_logit_that_is_not_finite(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every class is FP32's still: only the look for infinities can tell."""

    class Infinite(OnnxRuntimeSession):
        def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
            logits = super().run(image).copy()
            logits[0, logits[0, :, 0, 0].argmax(), 0, 0] = np.inf
            return logits

    def opened(path: Path) -> OnnxRuntimeSession:
        return Infinite(path) if path.name == "emulated.onnx" else OnnxRuntimeSession(path)

    monkeypatch.setattr(audit_module, "OnnxRuntimeSession", opened)
    result = audit_graph(bundle, bundle.path / "model.onnx", "fp16", sample_evenly([IMAGES], 1), Silent())
    assert result.agreement == 1 and result.finite is False and not result.passed
    assert result.to_dict()["logit_error"] is None


class Said:
    """A session of logits (1, 2, 2, 2) made up for each image in turn; notes what it was shown."""

    def __init__(self, *logits: object) -> None:
        self.logits = [np.float32(each).reshape(1, 2, 2, 2) for each in logits]
        self.shown: list[NDArray[np.float32]] = []

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        self.shown.append(image)
        return self.logits[len(self.shown) - 1]

    def __enter__(self) -> Said:
        return self

    def __exit__(self, *_: object) -> None:
        pass


EXPECTED = [8, 1, 1, 1], [0, 2, 2, 2]  # of class 0 and of class 1: class 0 wins the first pixel


@pytest.mark.parametrize(
    ("second", "third", "agreement", "worst", "error", "finite"),
    [
        (EXPECTED, EXPECTED, 1, 1, 0, True),
        # One pixel of four changes its class, and a logit by 4 of 8 and by 2 of 8.
        (([8, 5, 1, 1], EXPECTED[1]), ([8, 1, 1, 1], [2, 2, 2, 2]), 11 / 12, 3 / 4, 1 / 2, True),
        (([8, 1, 1, 1], [2, 2, 2, 2]), ([8, 5, 5, 5], [0, 2, 2, 2]), 9 / 12, 1 / 4, 1 / 2, True),
        (([np.inf, 1, 1, 1], [0, 2, 2, 2]), EXPECTED, 1, 1, np.inf, False),
        (EXPECTED, ([8, 1, 1, 1], [0, 2, 2, np.inf]), 1, 1, np.inf, False),
    ],
)
def test_an_audit_gives_the_mean_and_the_worst_of_its_images(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    second: object,
    third: object,
    agreement: float,
    worst: float,
    error: float,
    finite: bool,
) -> None:
    """An engine's sessions, and FP32's, are made up; the images and what is made of them are not."""
    fp32, engine = Said(*[EXPECTED] * 3), Said(EXPECTED, second, third)
    monkeypatch.setattr(audit_module, "OnnxRuntimeSession", lambda path: fp32)
    monkeypatch.setitem(audit_module.AGREEMENTS, "int8", 11 / 12)
    monkeypatch.setattr(audit_module, "TensorRTSession", lambda path, record: engine)
    shape = (1, 3, 160, 224)  # of 4:3, 3:2 and 3:4 images: none keeps its ratio
    record = dataclasses.replace(RECORD, profiles=(Profile(shape, shape, shape),))
    images = sample_evenly([IMAGES], 3)
    found = audit_engine(bundle, bundle.path / "an.engine", record, "int8", images)
    assert (found.images, found.worst_image, found.logit_error, found.finite) == (3, worst, error, finite)
    assert found.to_dict()["logit_error"] == (error if np.isfinite(error) else None)
    assert found.agreement == pytest.approx(agreement)
    assert found.passed == (finite and agreement >= 11 / 12)
    assert [image.shape for image in engine.shown] == [shape] * 3, "what the engine is tuned for"
    np.testing.assert_array_equal(engine.shown, fp32.shown)


def test_without_images_nothing_is_claimed(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(bundle.path), "--precision", "bf16"]) == 0
    assert "not audited" in capsys.readouterr().out
    artifact = Bundle(bundle.path).artifact("bf16.onnx")
    assert not artifact.proof and "audit" not in artifact.record


def test_what_a_cpu_computes_in_fp32_is_no_proof_of_fp16(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(bundle.path)]) == 0
    data = ["--data", str(ASSETS / "street"), "--limit", "1", "--record"]
    for name, arithmetic in (("fp16.onnx", "fp32"), ("model.onnx", "fp32")):
        assert main(["eval", str(bundle.path), "--artifact", name, *data]) == 0
        (found,) = (proof for proof in Bundle(bundle.path).artifact(name).proof if proof.figures == "accuracy")
        assert (found.against, found.arithmetic) == ("labels", arithmetic)
    assert not_audited(bundle, capsys) == ["build BUNDLE --precision fp16 --images IMAGES"]
    assert "never compared with FP32 in FP16" in select_artifact(Bundle(bundle.path), "fp16.onnx").caution


@needs_rtx
def test_an_engine_is_built_recorded_and_refused_here(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    target = ["--engine", "tensorrt_rtx", "--target", "sm_86", "--profile", "fixed:224x160"]
    assert main(["build", str(bundle.path), *target, "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    name = "fp16.rtx.sm_86.224x160.engine"
    assert f"--artifact {name} --protocol fixed:224x160" in said.err
    assert result["engine"] == name and result["record"]["targets"] == ["sm_86"]
    assert result["record"]["types_asked"]["fp16"] > 100 and result["record"]["folded"]
    assert main(["inspect", str(bundle.path), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "for sm_86" in out and "types built: " in out and "not read" not in out
    photo = str(ASSETS / "street/images/validation/camvid_Seq05VD_f05100.jpg")
    with (bundle.path / name).open("r+b") as file:  # an engine is native code: altered, it is never opened
        file.seek(100)
        file.write(b"altered")
    assert main(["run", str(bundle.path), photo, "-o", str(bundle.path.parent / "out"), "--artifact", name]) == 2
    assert "altered since it was written" in capsys.readouterr().err


def test_masks_and_fused_nodes_are_built_audited_and_not_taken_for_logits(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", str(bundle.path), "--output", "mask", "--plugin", "on", "--images", IMAGES, "--limit", "2"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    name = "fp16.mask.fused.onnx"
    assert result["variant"] == name and result["fusion"]["fused"] == {"ResizeArgmax": 1, "UpsampleAdd": 3}
    bundle = Bundle(bundle.path)
    artifact = bundle.artifact(name)
    record = artifact.record
    assert (artifact.output, artifact.fused, artifact.made_of) == ("mask", True, "fp16.onnx")
    assert 0.998 < record["audit"]["agreement"] < 1 and record["audit"]["finite"] is None
    assert select_artifact(bundle).name == "model.onnx" and "gives masks" in select_artifact(bundle).others[name]
    photo = str(ASSETS / "street/images/validation/camvid_Seq05VD_f05100.jpg")
    assert main(["run", str(bundle.path), photo, "-o", str(bundle.path.parent / "out"), "--artifact", name]) == 2
    assert "gives masks" in capsys.readouterr().err


def not_audited(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The commands that `denseport inspect` names for artifacts that nothing was compared with."""
    capsys.readouterr()
    assert main(["inspect", str(bundle.path)]) == 0
    return re.findall(r"not audited(?: in \w+)?; this does it: denseport (.+)", capsys.readouterr().out)


def test_the_command_that_inspect_names_audits(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert not_audited(bundle, capsys) == []
    assert main(["build", str(bundle.path), "--output", "mask", "--plugin", "on"]) == 0
    commands = not_audited(bundle, capsys)
    assert len(commands) == 2  # fp16.onnx, and what was made of it
    for command in commands:
        words = {"BUNDLE": str(bundle.path), "IMAGES": IMAGES}
        assert main([words.get(word, word) for word in command.split()]) == 0
    assert not_audited(bundle, capsys) == []


def test_inspect_names_the_command_for_engines_and_quantized_graphs(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = (1, 3, 160, 224)
    fixed = dataclasses.replace(RECORD, profiles=(Profile(shape, shape, shape),))
    for name, artifact in {
        "a.engine": engine_artifact("absent", RECORD),
        "b.engine": engine_artifact("absent", fixed),
        "int8.fp16.onnx": onnx_artifact({"absent": "0" * 64}, "int8", float_precision="fp16", made_of="int8.onnx"),
    }.items():
        bundle.add(name, artifact)
    rest = "--gate model.onnx --record (where it runs)"
    assert not_audited(bundle, capsys) == [
        f"eval BUNDLE --artifact a.engine --data ROOT {rest}",
        f"eval BUNDLE --artifact b.engine --data ROOT --protocol fixed:224x160 {rest}",
        "build BUNDLE --precision int8 --float-precision fp16 --images IMAGES",
    ]


CHATTER = "[WARNING] (foreignNode) Converting conv activation scales to fp32."
MENDABLE = "[WARNING] Some tactics do not have sufficient workspace memory to run."


@pytest.mark.parametrize(
    ("log", "shown", "hidden"),
    [
        ((), [], ["builder"]),
        ((CHATTER,), ["1 warning of the builder: --verbose shows it"], [CHATTER]),
        ((CHATTER, f"{CHATTER}!", MENDABLE, "[ERROR] x"), [MENDABLE, "[ERROR] x", "2 warnings of"], [CHATTER]),
    ],
)
def test_the_builders_warnings_are_counted(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    log: tuple[str, ...],
    shown: list[str],
    hidden: list[str],
) -> None:
    def build_engine(model: Path, engine: Path, options: EngineOptions, **_: object) -> BuildRecord:
        engine.write_bytes(b"made up")
        return dataclasses.replace(RECORD, engine_sha256=sha256_of(engine), log=log)

    monkeypatch.setattr(build_module, "build_engine", build_engine)
    monkeypatch.setattr(whole_module, "check_builder", lambda options: None)
    arguments = ["build", str(bundle.path), "--engine", "tensorrt_rtx", "--precision", "fp32"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(words in out for words in shown) and not any(words in out for words in hidden)
    assert f"types built: unknown ({RECORD.types_built_note})" in out
    assert main([*arguments, "--verbose"]) == 0
    out = capsys.readouterr().out
    assert all(line in out for line in log) and "of the builder" not in out


def test_an_audit_fails_masks_that_collapse(bundle: Bundle) -> None:
    with_graph(bundle, lambda graph: overflow(graph, "backbone.layers.2.ln1.weight"), "planted.onnx", "fp16")
    model = ir.load(bundle.path / "planted.onnx")
    append_mask(model)
    save_model(model, bundle.path / "mask.onnx")
    result = audit_graph(bundle, bundle.path / "mask.onnx", "fp16", sample_evenly([IMAGES], 2), Silent())
    assert not result.passed and result.agreement < 0.9 and result.finite is None


def test_fp32_can_be_fused_too(bundle: Bundle) -> None:
    assert main(["build", str(bundle.path), "--precision", "fp32", "--plugin", "on"]) == 0
    assert Bundle(bundle.path).artifact("fp32.fused.onnx").record["fusion"] == {
        "fused": {"UpsampleAdd": 3},
        "left": {},
    }


@pytest.mark.parametrize(
    ("times", "kept", "words"),
    [
        ({"off": 4.0, "on": 3.5}, b"fused", "on: 3.5 ms, 4 ms without"),
        ({"off": 4.0, "on": 4.5}, b"native", "off: 4 ms, 4.5 ms with it"),
        (MachineError("no NVRTC"), b"native", "off: no NVRTC"),
        (BundleError("TensorRT cannot open it"), b"native", "off: TensorRT cannot open it"),
        (RuntimeError("Error in set_optimization_profile_async"), b"native", "off: Error in set_optimization_profile_"),
    ],
)
def test_the_faster_of_two_engines_is_kept(
    bundle: Bundle, monkeypatch: Any, capsys: Any, times: Any, kept: bytes, words: str
) -> None:
    """TensorRT's part is made up: what it builds, and how long that takes."""

    def build_engine(model: Path, engine: Path, options: EngineOptions, **_: object) -> BuildRecord:
        engine.write_bytes(b"fused" if options.plugin else b"native")
        return dataclasses.replace(RECORD, engine_sha256=sha256_of(engine), plugin="on" if options.plugin else "off")

    def race(engines: dict[str, Any], shape: tuple[int, ...]) -> dict[str, float]:
        assert {name: path.read_bytes() for name, (path, _) in engines.items()} == {"off": b"native", "on": b"fused"}
        if isinstance(times, Exception):
            raise times
        return dict(times)

    monkeypatch.setattr(whole_module, "check_builder", lambda options: None)
    monkeypatch.setattr(build_module, "build_engine", build_engine)
    monkeypatch.setattr(build_module, "race", race)
    assert main(["build", str(bundle.path), "--precision", "fp32", "--engine", "tensorrt"]) == 0
    bundle = Bundle(bundle.path)
    (name,) = (name for name, artifact in bundle.manifest.artifacts.items() if artifact.kind == "engine")
    assert bundle.verified(name).read_bytes() == kept
    record = bundle.artifact(name).record
    assert record["plugin"].startswith(words) and f"plugin {words}" in capsys.readouterr().out
    assert record.get("milliseconds") == (None if isinstance(times, Exception) else times)
    assert not list(bundle.path.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp32"], "is the FP32 graph already"),
        (["--limit", "0"], "--limit: '0'"),
        (["--images", "/nowhere/*.jpg"], "/nowhere"),
        (["--images", "drive.mp4"], "found no image"),
        (["--engine", "tensorrt_rtx", "--profile", "huge"], "no profile 'huge'"),
        (["--engine", "tensorrt_rtx", "--min", "64x64"], "--min, --opt and --max go together"),
        (["--engine", "tensorrt", "--target", "sm_86"], "takes no targets"),
        pytest.param(["--engine", "tensorrt_rtx", "--target", "sm_1"], "no target 'sm_1'", marks=needs_rtx),
        (["--engine", "tensorrt_rtx", "--target", "rtx9999"], "no GPU 'rtx9999' is known"),
        (["--engine", "tensorrt_rtx", "--plugin", "on"], "TensorRT-RTX takes no plugins"),
    ],
)
def test_bad_arguments(bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["build", str(bundle.path), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.strip().splitlines()[-1].startswith("  "), "no remedy is given"
    assert_nothing_new(bundle)


def test_tensorrt_that_is_not_installed_is_named(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    assert main(["build", str(bundle.path), "--engine", "tensorrt"]) == 3
    assert install_command("tensorrt") in capsys.readouterr().err
    assert_nothing_new(bundle)


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("found", [None, "0.9.0"], ids=["missing", "old"])
def test_a_builder_that_cannot_be_had_is_told_before_anything_is_written(
    bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flavour: str,
    found: str | None,
) -> None:
    monkeypatch.setattr(engine_module, "load_library", load_library.__wrapped__)  # past its cache
    monkeypatch.setitem(sys.modules, flavour, None if found is None else SimpleNamespace(__version__=found))
    assert main(["build", str(bundle.path), "--engine", flavour]) == 3
    out, err = capsys.readouterr()
    assert not out and "typing" not in err and "pip install" in err
    assert (f"{flavour} 0.9.0 is too old" if found else flavour) in err
    assert_nothing_new(bundle)


@pytest.mark.parametrize("library", ["onnx", "onnx_ir", "onnxruntime"])
def test_a_missing_library_is_told_at_once(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["build", str(bundle.path)]) == 3
    assert f"not installed: {library}" in capsys.readouterr().err
    assert_nothing_new(bundle)
