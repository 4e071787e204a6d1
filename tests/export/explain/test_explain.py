"""Planted faults: each explanation must name its culprit, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from bundles import onnx_artifact
from onnx import TensorProto, helper, numpy_helper
from planting import overflow, set_attribute, with_graph, with_preprocess
from progress_told import Told
from support import ASSETS

from denseport.export.explain.explain import explain
from denseport.export.explain.explanation import Explanation
from denseport.export.graph.compare import divergence
from denseport.export.graph.compare.divergence import Difference, difference, find_divergence
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.dataset import Dataset, Sample, open_dataset
from denseport.runtime.system.files import sha256_of

pytestmark = pytest.mark.usefixtures("each_network_once")
CHECKPOINT = ASSETS / "dpt_tiny_street.pth"
STEPS = ("protocol", "export", "precision", "engine")


@pytest.fixture
def bundle(sample_copy: Bundle) -> Bundle:
    return sample_copy


@pytest.fixture(scope="module")
def images() -> Dataset:
    return open_dataset(ASSETS / "street")


@pytest.fixture(scope="module")
def wide_images(images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The upper halves: another shape than the position embedding's, which is not resized for the whole images."""
    folder, samples = tmp_path_factory.mktemp("wide"), []
    for sample in images.samples:
        files = {kind: folder / f"{sample.name}.{kind}.png" for kind in ("image", "mask")}
        for kind, file in files.items():
            whole = cv2.imread(str(getattr(sample, kind)), cv2.IMREAD_UNCHANGED)
            assert whole is not None and cv2.imwrite(str(file), whole[: whole.shape[0] // 2])
        samples.append(Sample(sample.name, **files))
    return dataclasses.replace(images, samples=tuple(samples))


def explanation(
    bundle: Bundle,
    images: Dataset,
    artifact: str = "model.onnx",
    protocol: str = "reference",
    checkpoint: Path | None = CHECKPOINT,
) -> Explanation:
    found = explain(bundle, artifact, checkpoint, images, parse_protocol(protocol, bundle.manifest))
    assert tuple(step.name for step in found.steps) == STEPS
    json.dumps(found.to_dict(), allow_nan=False)
    print("\n" + "\n".join(found.lines()))
    return found


def test_an_untouched_bundle_loses_nothing(bundle: Bundle, images: Dataset) -> None:
    with_graph(bundle, lambda graph: None, "fp16.onnx", "fp16")
    found = explanation(bundle, images, "fp16.onnx")
    assert found.culprits == ()
    protocol, export, precision, engine = found.steps
    for step in (protocol, export, precision):
        assert not step.failed and step.lost == pytest.approx(0, abs=1e-9)
        assert any(line.endswith("no loss") for line in step.lines())
    assert engine.mIoU is None and "not an engine" in engine.notes[0]
    assert found.images == found.available == 4


@pytest.mark.parametrize(
    ("values", "culprit"),
    [
        ({"std": (1.0, 1.0, 1.0)}, "normalise.std"),
        ({"mean": (0.0, 0.0, 0.0)}, "normalise.mean"),
        ({"bgr_to_rgb": False}, "normalise.bgr_to_rgb"),
        ({"size": (256, 96)}, "resize.size"),
    ],
)
def test_a_wrong_setting_of_the_bundle_is_named(
    bundle: Bundle, images: Dataset, values: dict[str, object], culprit: str
) -> None:
    found = explanation(with_preprocess(bundle, **values), images)
    assert found.culprits == (culprit,)
    protocol, export, *_ = found.steps
    assert not export.failed and protocol.failed
    # One fault alone: correcting it gives all of the loss back.
    (fault,) = protocol.culprits
    assert protocol.lost is not None and fault.effect == pytest.approx(protocol.lost)
    assert "the bundle has" in fault.detail


def test_each_of_two_wrong_settings_has_its_own_effect(bundle: Bundle, images: Dataset) -> None:
    found = explanation(with_preprocess(bundle, std=(1.0, 1.0, 1.0), bgr_to_rgb=False), images)
    assert found.culprits == ("normalise.std", "normalise.bgr_to_rgb")
    std, order = (culprit.effect for culprit in found.steps[0].culprits)
    assert std is not None and order is not None and std > order


def test_a_protocol_that_was_chosen_is_told_from_a_wrong_bundle(bundle: Bundle, images: Dataset) -> None:
    found = explanation(bundle, images, protocol="fixed:96x96")
    assert found.culprits == ("resize.size, resize.keep_ratio",)
    assert "this protocol has" in found.steps[0].culprits[0].detail


@pytest.mark.parametrize(
    ("node", "values", "culprit"),
    [
        ("backbone/Resize", {"mode": "nearest"}, "backbone (Resize)"),
        (
            "decode_head.fusion_blocks.2/Resize_2",
            {"coordinate_transformation_mode": "asymmetric"},
            "decode_head.fusion_blocks.2 (Resize_2)",
        ),
    ],
)
def test_a_wrong_interpolation_is_named(
    bundle: Bundle, wide_images: Dataset, node: str, values: dict[str, str], culprit: str
) -> None:
    found = explanation(with_graph(bundle, lambda graph: set_attribute(graph, node, **values)), wide_images)
    assert found.culprits == (culprit,)
    (blamed,) = found.steps[1].culprits
    assert len(blamed.causes) == 1
    assert all(key in blamed.causes[0] and value in blamed.causes[0] for key, value in values.items())


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_collapsed_layer_is_named_with_the_magnitude_that_overflowed(
    bundle: Bundle, images: Dataset, precision: str
) -> None:
    weight = "backbone.layers.2.ln1.weight"
    with_graph(bundle, lambda graph: overflow(graph, weight), f"{precision}.onnx", precision)
    found = explanation(bundle, images, f"{precision}.onnx")
    assert found.culprits == ("backbone.layers.2.ln1 (LayerNormalization)",)
    precision = found.steps[2]
    (culprit,) = precision.culprits
    assert precision.failed and "NaN or infinite logits in 4 images" in precision.notes
    assert culprit.detail.startswith("overflow: infinite or NaN where FP32 has magnitudes up to")
    assert culprit.divergence is not None and 0 < (culprit.divergence.difference.overflow or 0) < 100
    assert len(culprit.causes) == 1 and weight in culprit.causes[0] and "infinite" in culprit.causes[0]


def test_faults_of_three_steps_are_named_apart_and_their_losses_add_up(bundle: Bundle, wide_images: Dataset) -> None:
    bundle = with_preprocess(bundle, bgr_to_rgb=False)
    with_graph(bundle, lambda graph: set_attribute(graph, "backbone/Resize", mode="nearest"))
    with_graph(bundle, lambda graph: overflow(graph, "backbone.layers.1.ln2.bias"), "fp16.onnx", "fp16")
    found = explanation(bundle, wide_images, "fp16.onnx")
    assert found.culprits == (
        "normalise.bgr_to_rgb",
        "backbone (Resize)",
        "backbone.layers.1.ln2 (LayerNormalization)",
    )
    first, last = found.steps[0].mIoU, found.steps[2].mIoU
    assert first is not None and last is not None
    assert sum(step.lost or 0.0 for step in found.steps) == pytest.approx(first[0] - last[1])


def test_without_a_checkpoint_the_rest_is_still_examined(bundle: Bundle, images: Dataset) -> None:
    with_graph(bundle, lambda graph: overflow(graph, "backbone.layers.2.ln1.weight"), "fp16.onnx", "fp16")
    found = explanation(bundle, images, "fp16.onnx", checkpoint=None)
    assert found.steps[1].mIoU is None and "--checkpoint" in found.steps[1].notes[0]
    assert found.culprits == ("backbone.layers.2.ln1 (LayerNormalization)",)


def test_an_engine_that_cannot_run_here_is_said_not_to_have_run(bundle: Bundle, images: Dataset) -> None:
    engine = bundle.path / "fp16.sm_90.engine"
    engine.write_bytes(b"no engine at all")
    bundle.add(engine.name, onnx_artifact({engine.name: sha256_of(engine)}, "fp16", kind="engine", made_of="fp16.onnx"))
    found = explanation(bundle, images, engine.name)
    precision, step = found.steps[2:]
    assert precision.mIoU is None and "no fp16.onnx" in precision.notes[0]
    assert step.mIoU is None and "does not run here" in step.notes[0]


def test_few_images_are_spread_over_the_data_set(bundle: Bundle, images: Dataset) -> None:
    protocol = parse_protocol("reference", bundle.manifest)
    told = Told()
    found = explain(bundle, "model.onnx", None, images, protocol, limit=2, progress=told)
    assert (found.images, found.available) == (2, 4) and told.lines
    with pytest.raises(InputError, match="limit cannot be 0"):
        explain(bundle, "model.onnx", None, images, protocol, limit=0)


def test_differences_of_arrays() -> None:
    a = np.array([3.0, 4.0], np.float32)
    assert difference(a, a) == Difference(0.0, pytest.approx(1.0))
    assert difference(a, np.array([4.0, -3.0], np.float32)) == Difference(7 / 4, pytest.approx(0.0))
    assert difference(a, np.array([3.0, np.inf], np.float16)) == Difference(np.inf, pytest.approx(1.0), 4.0)
    assert difference(0 * a, 0 * a) == Difference(0.0, 1.0)
    assert difference(0 * a, a).exceeds(1e9)
    assert difference(a, a[:1]).exceeds(1e9)
    # Nearly everything is wrong, but small beside one value: the cosine tells.
    wide = np.array([10.0, *np.full(1000, 0.4)], np.float32)
    assert difference(wide, np.array([10.0, *np.full(1000, -0.1)], np.float32)).exceeds(0.06)


def two_matrices(cast: bool, path: Path) -> Path:
    """y = (1e5 image) 1e-5; with ``cast``, the product in the middle is kept in FP16, where it overflows."""
    scale = {"up": 1e5, "down": 1e-5}
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in scale.items()]
    nodes = [helper.make_node("Mul", ["image", "up"], ["a/Mul" + ":32" * cast], "a/Mul")]
    if cast:
        nodes += [
            helper.make_node("Cast", ["a/Mul:32"], ["a/Mul"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["a/Mul"], ["a/Mul:back"], to=TensorProto.FLOAT),
        ]
    nodes.append(helper.make_node("Mul", ["a/Mul" + ":back" * cast, "down"], ["logits"], "b/Mul"))
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, "h", "w"]) for n in ("image", "logits")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", sides[:1], sides[1:], weights), opset_imports=[helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("group_bytes", [1, 2**28])
def test_an_overflow_between_two_casts_is_found_with_its_magnitude(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: int
) -> None:
    monkeypatch.setattr(divergence, "GROUP_BYTES", group_bytes)
    paths = two_matrices(False, tmp_path / "fp32.onnx"), two_matrices(True, tmp_path / "fp16.onnx")
    image = np.linspace(-1, 2, 48, dtype=np.float32).reshape(1, 3, 4, 4)
    assert find_divergence(paths[0], paths[0], image, 1e-4) is None
    found = find_divergence(*paths, image, 0.05)
    assert found is not None and found.first
    assert (found.tensor, found.node, found.causes) == ("a/Mul", "a/Mul", ())
    assert found.difference.overflow == pytest.approx(2e5)
    small = find_divergence(*paths, image / 8, 0.05)
    assert small is not None and not small.first and small.difference.relative_error < 1e-3
