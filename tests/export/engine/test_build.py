"""Engines by the real TensorRT-RTX builder, which needs no GPU; its refusals, in words."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundles import steps
from onnx import TensorProto, helper, numpy_helper, save
from quantizing import write_typed
from support import ORACLE_MODELS

from denseport.export.engine import build as build_module
from denseport.export.engine.build import EngineOptions, build_engine, default_timing_cache
from denseport.export.engine.errors import builder_error
from denseport.export.engine.profile import named_profiles, parse_shape, profile_of
from denseport.export.errors import BuildError
from denseport.runtime.backends.tensorrt_library import Library, LogBook, LogLine
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.engine_record import BuildRecord, Profile
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.preprocessing import with_resize
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.bundle.steps import Resize, ResizeRounded
from denseport.runtime.errors import InputError, MachineError, OutputError
from denseport.runtime.pipeline.views import view_of
from denseport.runtime.system.files import sha256_of

EVERY_RUN = {
    ("tiny_dpt_project", "fp32", "reference"),
    ("tiny_dpt_project", "fp16", "fixed:512x512"),
    ("tiny_upernet_mln", "fp32", "fixed:512x512"),
    ("tiny_upernet_mln", "fp16", "reference"),
}
CASES = [
    pytest.param(*case, marks=() if case in EVERY_RUN else pytest.mark.slow)
    for case in itertools.product(ORACLE_MODELS, ("fp32", "fp16"), ("reference", "fixed:512x512"))
]


@pytest.fixture
def rtx() -> Library:
    from denseport.runtime.backends.tensorrt_library import load_library

    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    return load_library("tensorrt_rtx")


def options(profile: str | Profile = "fixed:64x64", **changes: object) -> EngineOptions:
    profiles = named_profiles(profile, "tensorrt_rtx") if isinstance(profile, str) else (profile,)
    return EngineOptions("tensorrt_rtx", profiles, **changes)  # type: ignore[arg-type]


def graph_of(path: Path, *nodes: object, initializers: dict[str, object] | None = None) -> Path:
    """An ONNX file with input image (batch, 3, height, width) and output logits, float32."""
    shape = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        list(nodes),
        "planted",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (initializers or {}).items()],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)
    return path


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    return graph_of(tmp_path / "relu.onnx", helper.make_node("Relu", ["image"], ["logits"], name="head/Relu"))


@pytest.mark.parametrize(("name", "precision", "profile"), CASES)
def test_oracle_models_build(
    rtx: Library, exported: Callable[[str], Bundle], tmp_path: Path, name: str, precision: str, profile: str
) -> None:
    model = exported(name).verified("model.onnx")
    if precision != "fp32":
        write_typed(model, tmp_path / "typed.onnx", precision)
        model = tmp_path / "typed.onnx"
    phases: list[tuple[int, int, str]] = []
    record = build_engine(model, tmp_path / "e.engine", options(profile), progress=lambda *told: phases.append(told))
    assert (tmp_path / "e.engine").stat().st_size > 100_000
    assert record.engine_sha256 == sha256_of(tmp_path / "e.engine")
    assert record.onnx_sha256 == sha256_of(model)
    assert record.version == rtx.version and record.folded == profile.startswith("fixed")
    assert not record.log
    assert record.types_asked[precision] > 100 and record.types_asked.keys() <= {"fp32", precision, "other"}
    assert record.folded == ("other" not in record.types_asked)  # no arithmetic on shapes is left
    assert record.seconds > 0 and (record.peak_host_bytes or 0) > 50e6
    shares = [done / total for done, total, _ in phases]
    assert shares == sorted(shares) and shares[-1] > 0.5 and len({phase for *_, phase in phases}) > 5
    assert BuildRecord.from_dict(as_json(record), "e.engine") == record


def as_json(record: BuildRecord) -> dict[str, object]:
    """The record as the manifest gives it back."""
    import json

    loaded: dict[str, object] = json.loads(json.dumps(record.to_dict()))
    return loaded


def test_targets_are_recorded(rtx: Library, relu: Path, tmp_path: Path) -> None:
    every = build_engine(relu, tmp_path / "all.engine", options())
    some = build_engine(relu, tmp_path / "some.engine", options(targets=("sm_86", "sm_120")))
    assert every.targets == ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
    assert some.targets == ("sm_86", "sm_120") and some.built_for == f"TensorRT-RTX {rtx.version} for sm_86, sm_120"


def test_an_unknown_target_is_answered_with_the_known(rtx: Library, relu: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no target 'sm_90'\n  Give --target some of sm_120, sm_121, sm_75, sm_80"):
        build_engine(relu, tmp_path / "e", options(targets=("sm_90",)))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (helper.make_node("UpAdd", ["r"], ["logits"], name="head.up/UpAdd", domain="com.example"), "Plugin not found"),
        (helper.make_node("Det", ["r"], ["logits"], name="head.up/UpAdd"), "not supported"),
        (
            helper.make_node(
                "Resize", ["r", "", "scales"], ["logits"], name="head.up/UpAdd", mode="linear", antialias=1
            ),
            "Antialiasing is not supported",
        ),
        (helper.make_node("Add", ["r", "half"], ["logits"], name="head.up/UpAdd"), "types Float and Half"),
    ],
    ids=["unknown", "unsupported", "attribute", "types"],
)
def test_a_planted_node_is_named_with_reason_and_remedy(rtx: Library, tmp_path: Path, node: object, words: str) -> None:
    model = graph_of(
        tmp_path / "planted.onnx",
        helper.make_node("Relu", ["image"], ["r"]),
        helper.make_node("Cast", ["r"], ["half"], to=TensorProto.FLOAT16),
        node,
        initializers={"scales": np.float32([1, 1, 2, 2])},
    )
    dynamic = profile_of((1, 3, 16, 16), (1, 3, 32, 32), (1, 3, 64, 64))
    with pytest.raises(BuildError) as caught:
        build_engine(model, tmp_path / "e.engine", options(dynamic))
    operator = node.op_type  # type: ignore[attr-defined]
    assert f"head.up/UpAdd ({operator}): " in caught.value.message and words in caught.value.message
    assert "planted.onnx" in caught.value.message and "cudaError" not in caught.value.message
    assert caught.value.remedy
    assert not (tmp_path / "e.engine").exists()


def test_a_file_that_is_no_onnx_model_is_refused(rtx: Library, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(BuildError, match=r"m\.onnx"):
        build_engine(tmp_path / "m.onnx", tmp_path / "e", options())


def test_a_workspace_that_is_too_small_is_called_out_of_memory(
    rtx: Library, exported: Callable[[str], Bundle], tmp_path: Path
) -> None:
    model = exported("tiny_dpt_project").verified("model.onnx")
    with pytest.raises(MachineError, match=r"out of memory: no kernel fits into the workspace of 1 MiB") as caught:
        build_engine(model, tmp_path / "e", options("reference", workspace=2**20))
    assert "larger workspace" in str(caught.value)


def test_turing_is_told_to_take_16_bits(rtx: Library, exported: Callable[[str], Bundle], tmp_path: Path) -> None:
    model = exported("tiny_dpt_project").verified("model.onnx")
    with pytest.raises(BuildError, match="FP32 GEMM is not supported") as caught:
        build_engine(model, tmp_path / "e", options(targets=("sm_75",)))
    assert "--precision fp16" in str(caught.value)


def test_a_profile_that_the_network_cannot_take_is_refused(rtx: Library, tmp_path: Path) -> None:
    model = graph_of(tmp_path / "m.onnx", helper.make_node("Relu", ["image"], ["logits"]))
    grey = Profile((1, 1, 64, 64), (1, 1, 64, 64), (1, 1, 64, 128))
    with pytest.raises(BuildError, match=r"its input image is \(-1, 3, -1, -1\); the profile asks for \(1, 1, 64"):
        build_engine(model, tmp_path / "e", options(grey))


def test_what_progress_raises_stops_the_build(rtx: Library, relu: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, note: str = "") -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(relu, tmp_path / "e.engine", options(), progress=interrupt)
    assert list(tmp_path.iterdir()) == [relu]


def test_verbose_is_given_tensorrts_lines(rtx: Library, relu: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    record = build_engine(relu, tmp_path / "e.engine", options(), verbose=lines.append)
    assert any("head/Relu" in line for line in lines) and any(line.startswith("[VERBOSE]") for line in lines)
    assert not record.log


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="needs /proc, which nobody writes")
def test_a_place_that_cannot_be_written_is_named(rtx: Library, relu: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        build_engine(relu, Path("/proc/denseport/e.engine"), options())


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch, relu: Path) -> None:
    from denseport.runtime.backends.tensorrt_library import load_library

    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    load_library.cache_clear()
    with pytest.raises(MachineError, match="the package tensorrt") as caught:
        build_engine(relu, relu.with_name("e"), EngineOptions("tensorrt", named_profiles("reference", "tensorrt")))
    assert "pip install" in str(caught.value) and caught.value.exit_code == 3


def test_fp32_is_not_tf32_and_runs_can_be_recorded(rtx: Library) -> None:
    """TF32 is on unless it is cleared; TensorRT-RTX records no engine that may allocate while it runs."""
    config, flags = rtx.trt.Builder(rtx.logger).create_builder_config(), rtx.trt.BuilderFlag
    assert config.get_flag(flags.TF32) and not config.get_flag(flags.REQUIRE_USER_ALLOCATION)
    build_module._configure(rtx.trt, config, options())
    assert not config.get_flag(flags.TF32) and config.get_flag(flags.REQUIRE_USER_ALLOCATION)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version_compatible": True}, "only in the release that built it"),
        ({"hardware_compatibility": "ampere_plus"}, "no hardware compatibility level"),
        ({"timing_cache": Path("x")}, "no timing cache"),
        ({"optimization_level": 6}, "not between 0 and 5"),
        ({"workspace": 0}, "a workspace of 0 bytes"),
        ({"flavour": "trt"}, "no engine flavour 'trt'"),
        ({"flavour": "tensorrt", "targets": ("sm_86",)}, "takes no targets"),
        ({"profiles": ()}, "no optimization profile"),
    ],
)
def test_options_that_a_flavour_lacks_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        EngineOptions(**{"flavour": "tensorrt_rtx", "profiles": named_profiles("reference", "tensorrt"), **changes})  # type: ignore[arg-type]


def test_profiles_have_names() -> None:
    landscape, portrait = named_profiles("reference", "tensorrt")
    assert (1, 3, 512, 683) in landscape and (1, 3, 512, 2048) in landscape and (1, 3, 512, 2049) not in landscape
    assert (1, 3, 2048, 512) in portrait and (1, 3, 683, 512) not in landscape
    assert named_profiles("fixed:768x512", "tensorrt") == (Profile(*[(1, 3, 512, 768)] * 3),)
    (both,) = named_profiles("reference", "tensorrt_rtx")
    assert all(shape in both for profile in (landscape, portrait) for shape in (profile.minimum, profile.maximum))
    assert (landscape, portrait) == (
        Profile((1, 3, 512, 512), (1, 3, 512, 683), (1, 3, 512, 2048)),
        Profile((1, 3, 512, 512), (1, 3, 683, 512), (1, 3, 2048, 512)),
    )
    assert parse_shape("768x512") == (1, 3, 512, 768) and parse_shape("4x3x64x96") == (4, 3, 64, 96)


@pytest.mark.parametrize(
    "resize",
    [
        *(Resize(scale, keep_ratio=True) for scale in ((2048, 512), (1024, 160), (512, 512), (640, 480))),
        *(ResizeRounded((side, side), rule, 14) for side in (518, 384) for rule in ("minimal", "lower_bound")),
    ],
    ids=str,
)
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_the_reference_profile_takes_what_images_become(resize: Resize | ResizeRounded, flavour: str) -> None:
    preprocess = with_resize(steps(), resize)
    profiles = named_profiles("reference", flavour, Protocol("reference", preprocess, Inference()))
    for shorter in (50, 300, 600):
        for ratio in (1, 1.1, 1.2, 1.5, 1.8, 2):
            longer = int(shorter * ratio)
            for size in ((shorter, longer), (longer, shorter)):
                height, width = view_of(size, preprocess).size
                assert any((1, 3, height, width) in profile for profile in profiles), (size, height, width)


def test_a_profile_of_rounded_sizes_is_tuned_for_4_to_3() -> None:
    minimal = Protocol("reference", with_resize(steps(), ResizeRounded((518, 518), "minimal", 14)), Inference())
    expected = Profile((1, 3, 252, 252), (1, 3, 518, 686), (1, 3, 1036, 1036))
    assert named_profiles("reference", "tensorrt_rtx", minimal) == (expected,)
    stretched = with_resize(steps(), ResizeRounded((640, 480), "minimal", 32))
    with pytest.raises(InputError, match=r"in many sizes \(whole, minimal 640 x 480, multiples of 32\)"):
        named_profiles("reference", "tensorrt_rtx", Protocol("reference", stretched, Inference()))


def test_windows_and_fixed_sizes_have_one_profile() -> None:
    slide = Protocol("reference", steps(), Inference("slide", (512, 512), (341, 341)))
    assert named_profiles("reference", "tensorrt", slide) == (Profile(*[(1, 3, 512, 512)] * 3),)
    fixed = Protocol("fixed", steps(size=(640, 384), keep_ratio=False), Inference())
    assert named_profiles("reference", "tensorrt_rtx", fixed) == (Profile(*[(1, 3, 384, 640)] * 3),)


@pytest.mark.parametrize("text", ["", "512", "512x", "1x2x3", "axb", "-1x512", "512x512x"])
def test_a_mistyped_shape_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is neither a size"):
        parse_shape(text)


def test_mistyped_profiles_are_refused() -> None:
    with pytest.raises(InputError, match="no profile 'big'"):
        named_profiles("big", "tensorrt")
    with pytest.raises(InputError, match="from the minimum over the optimum"):
        profile_of((1, 3, 512, 512), (1, 3, 256, 512), (1, 3, 512, 512))
    with pytest.raises(InputError, match="3 channels"):
        profile_of((1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 8, 8))
    with pytest.raises(InputError, match="each size must be positive"):
        named_profiles("fixed:512x0", "tensorrt")


# The enterprise flavour cannot run here: its messages are those that its users report, its objects are fakes.


def library(flavour: str = "tensorrt") -> Library:
    return Library(flavour, None, "10.9.0.34", "12", None, LogBook())


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("Error Code 10: (Could not find any implementation for node /Conv)", MachineError, "too little memory"),
        ("Error Code 2: OutOfMemory (Requested size was 1074295628 bytes.)", MachineError, "ran out of memory"),
        ("Requested amount of GPU memory (17179869 bytes) could not be allocated.", MachineError, "ran out of memory"),
        ("CUDA initialization failure with error: 35", MachineError, "finds none here"),
        ("Error Code 4: API Usage Error (something else)", BuildError, "something else"),
    ],
)  # fmt: skip
def test_the_builders_complaints_are_told_apart(text: str, kind: type[Exception], words: str) -> None:
    found = builder_error(library(), [LogLine("WARNING", "slow"), LogLine("ERROR", text)], "m.onnx", None)
    assert type(found) is kind and words in str(found) and "m.onnx" in str(found) and text in str(found)


def test_timing_caches_are_kept_by_gpu_and_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from denseport.runtime.backends.cuda.driver import Device

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = default_timing_cache(library(), Device("NVIDIA RTX A2000 12GB", (8, 6), "13.0"))
    assert path == tmp_path / "denseport/timing/tensorrt-10.9.0.34-NVIDIA-RTX-A2000-12GB-sm_86.cache"
