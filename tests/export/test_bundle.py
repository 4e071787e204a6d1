"""A checkpoint becomes a bundle, whole and checked, or nothing at all."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from support import ASSETS, LOGITS_TOLERANCE, REPO

from denseport.export import bundle as export
from denseport.export.bundle import export_bundle
from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.pipeline import ImageSteps
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.weights import load_model
from denseport.export.entrance.torch_to_onnx import OPSET
from denseport.export.errors import CheckpointError, ExportError
from denseport.export.models.segmentor import Segmentor
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.preprocessing import USUAL_NORMALISE
from denseport.runtime.bundle.steps import Augmentation, Resize
from denseport.runtime.errors import BundleError, InputError, OutputError
from denseport.runtime.system.progress import Terminal

SAMPLE = ASSETS / "dpt_tiny_street.pth"


@pytest.fixture
def ready_made(sample: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the sample's ONNX file instead of tracing the network anew."""

    def copy(model: Segmentor, path: Path, *_: int) -> list[Path]:
        return [Path(shutil.copy(sample.path / "model.onnx", path))]

    monkeypatch.setattr(export, "export_onnx", copy)


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_bundle_says_what_it_is(sample: Bundle) -> None:
    assert contents(sample.path) == {"manifest.json", "model.onnx"}
    text = (sample.path / "manifest.json").read_text()
    manifest = Manifest.from_json(text, "manifest.json")
    assert manifest == sample.manifest and manifest.to_json() == text
    assert (manifest.name, manifest.architecture, manifest.stride) == ("dpt_tiny_street", "DPT", 2)
    assert len(manifest.classes) == len(manifest.palette) == 150 and manifest.classes[0] == "wall"
    assert manifest.reduce_zero_label and manifest.reference is None
    assert manifest.preprocess[0] == Resize((1024, 160), keep_ratio=True) and manifest.inference.mode == "whole"
    assert manifest.provenance["sha256"] == hashlib.sha256(SAMPLE.read_bytes()).hexdigest()
    assert manifest.provenance["warnings"] == []
    assert (manifest.source, manifest.task) == ("model.onnx", "segmentation")
    source = manifest.artifacts["model.onnx"]
    assert (source.target, source.output, source.made_of, source.main) == ("any", "logits", None, "model.onnx")
    (proof,) = source.proof
    assert (proof.against, proof.arithmetic, proof.figures) == ("torch", "fp32", "checks") and source.is_compared
    artifact = manifest.artifacts["model.onnx"]
    digest = hashlib.sha256((sample.path / "model.onnx").read_bytes()).hexdigest()
    assert (artifact.kind, artifact.precision, artifact.files) == ("onnx", "fp32", {"model.onnx": digest})
    checks = artifact.record["checks"]
    assert len({tuple(check["shape"]) for check in checks}) == 3 and {check["shape"][0] for check in checks} == {1, 2}
    assert 0 < artifact.record["max_difference"] <= LOGITS_TOLERANCE


def test_the_parameters_are_those_that_run(sample: Bundle) -> None:
    checkpoint = read_checkpoint(SAMPLE)
    model = load_model(checkpoint, recognise(checkpoint).spec)
    assert sample.manifest.parameters == sum(value.numel() for value in model.parameters())


def test_the_graph_speaks_the_models_words_and_no_machines(sample: Bundle) -> None:
    data = (sample.path / "model.onnx").read_bytes()
    for place in (REPO, Path.home(), Path(sys.prefix), Path(torch.__file__).parent):
        assert str(place).encode() not in data
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
    nodes = {node.name for node in model.graph.node}
    assert len(nodes) == len(model.graph.node)
    assert {"backbone.layers.0.attn.attn/Softmax", "decode_head.conv_seg/Conv"} <= nodes
    assert not any(name.startswith(("node_", "val_")) for name in nodes)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    sizes = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "height", "width"]


def test_an_older_opset_and_weights_beyond_the_limit_in_a_file_of_their_own(
    oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two settings that have nothing to do with each other, in one export."""
    monkeypatch.setattr("denseport.export.entrance.torch_to_onnx.PROTOBUF_LIMIT", 1000)
    bundle = export_bundle(oracle / "tiny_upernet_mln.pth", tmp_path / "bundle", opset=13, ir_version=7)
    assert contents(bundle.path) == {"manifest.json", "model.onnx", "model.onnx.data"}
    artifact = bundle.manifest.artifacts["model.onnx"]
    assert list(artifact.files) == ["model.onnx", "model.onnx.data"]
    model = onnx.load(bundle.path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert ([(e.domain, e.version) for e in model.opset_import], model.ir_version) == ([("", 13)], 7)
    assert (artifact.record["opset"], artifact.record["ir_version"]) == (13, 7)
    assert artifact.record["max_difference"] <= LOGITS_TOLERANCE
    golden = np.load(oracle / "tiny_upernet_mln.npz")
    logits = OnnxRuntimeSession(bundle.verified("model.onnx")).run(golden["in_64x64"])
    np.testing.assert_allclose(logits, golden["head_64x64"], atol=LOGITS_TOLERANCE)
    data = bundle.path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx\.data: altered"):
        bundle.verified("model.onnx")


@pytest.mark.usefixtures("ready_made")
def test_a_graph_that_computes_something_else_is_refused(oracle: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"differ from torch's|ONNX Runtime gives") as caught:
        export_bundle(oracle / "tiny_dpt_add.pth", tmp_path / "new/folder/bundle")
    assert "torch" in str(caught.value)
    assert not contents(tmp_path)


def test_a_graph_with_other_weights_is_refused(
    exported: Callable[[str], Bundle], oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same shapes, other readout and weights: only the comparison with torch can tell."""
    other = exported("tiny_dpt_ignore").path / "model.onnx"
    monkeypatch.setattr(export, "export_onnx", lambda model, path, *_: [Path(shutil.copy(other, path))])
    with pytest.raises(ExportError, match="differ from torch's by"):
        export_bundle(oracle / "tiny_dpt_add.pth", tmp_path / "bundle")
    assert not contents(tmp_path)


@pytest.mark.usefixtures("ready_made")
def test_an_existing_bundle_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    export_bundle(SAMPLE, path)
    (path / "from_before").touch()
    with pytest.raises(OutputError, match="exists already and is a bundle") as caught:
        export_bundle(SAMPLE, path)
    assert "--force" in str(caught.value)
    assert (path / "from_before").exists()
    with pytest.raises(CheckpointError):
        export_bundle(tmp_path / "missing.pth", path, replace=True)
    assert (path / "from_before").exists(), "the old bundle stays until the new one is whole"
    export_bundle(SAMPLE, path, replace=True)
    assert contents(tmp_path) == {"bundle", "bundle/manifest.json", "bundle/model.onnx"}


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "file", "link"):
        with pytest.raises(OutputError, match="exists already and is not a bundle") as caught:
            export_bundle(SAMPLE, tmp_path / name, replace=True)
        assert "--force" not in str(caught.value)
    assert contents(tmp_path) == {"folder", "file", "link"}


def test_a_project_with_a_manifest_of_its_own_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"manifest_version": 3}')  # a browser's extension
    with pytest.raises(OutputError, match="exists already and is not a bundle"):
        export_bundle(SAMPLE, tmp_path, replace=True)
    assert contents(tmp_path) == {"manifest.json"}


def test_a_checkpoint_is_not_replaced_with_the_bundle_that_holds_it(sample_copy: Bundle) -> None:
    inside = Path(shutil.copy(SAMPLE, sample_copy.path))
    with pytest.raises(OutputError, match=r"holds dpt_tiny_street\.pth, which would be deleted"):
        export_bundle(inside, sample_copy.path, replace=True)
    assert inside.exists()
    inside.unlink()
    (config := sample_copy.path / "config.py").touch()
    with pytest.raises(OutputError, match=r"holds config\.py, which would be deleted"):
        export_bundle(SAMPLE, sample_copy.path, replace=True, config=config)
    assert config.exists()


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file/bundle", tmp_path / ("n" * 300), Path("/proc/denseport/bundle")):
        with pytest.raises(OutputError, match="cannot be written"):
            export_bundle(tmp_path / "missing.pth", place)
    assert contents(tmp_path) == {"file"}


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Segmentor, path: Path, *_: int) -> list[Path]:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "export_onnx", fail)
    with pytest.raises(OutputError, match="new/bundle: cannot be written: No space left") as caught:
        export_bundle(SAMPLE, tmp_path / "new/bundle")
    assert "Free some room" in str(caught.value)
    assert not contents(tmp_path)


def test_a_broken_swap_keeps_the_old_bundle(
    sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ready_made: None
) -> None:
    path, rename = tmp_path / "bundle", Path.rename
    shutil.copytree(sample.path, path)

    def fail(self: Path, target: Path) -> Path:
        if target == path and (self / "manifest.json").exists() and self.parent.name.startswith(".denseport-work-"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr("denseport.runtime.bundle.bundle.exchange", lambda *_: False)  # as on file systems that cannot
    with pytest.raises(OutputError, match="Input/output error"):
        export_bundle(SAMPLE, path, replace=True)
    assert contents(tmp_path) == {"bundle", "bundle/manifest.json", "bundle/model.onnx"}
    assert Bundle(path).manifest == sample.manifest


@pytest.mark.usefixtures("ready_made")
def test_the_scale_can_be_given(tmp_path: Path) -> None:
    bundle = export_bundle(SAMPLE, tmp_path / "bundle", scale=(640, 320))
    assert bundle.manifest.preprocess[0] == Resize((640, 320), keep_ratio=True)
    for scale, words in (((640, 15), "below one patch of 16"), ((0, 320), "--scale"), ((-5, 3), "--scale")):
        with pytest.raises(CheckpointError, match=words):
            export_bundle(SAMPLE, tmp_path / "other", scale=scale)
    assert contents(tmp_path) == {"bundle", "bundle/manifest.json", "bundle/model.onnx"}


def test_a_scale_reaches_each_view_of_the_checkpoints_own_test() -> None:
    usual = Resize((2048, 512), keep_ratio=True)
    path = ImageSteps((usual, USUAL_NORMALISE), Augmentation((usual,), flip=True), ())
    scaled = export._scaled(path, (640, 320))
    assert scaled.preprocess[0] == Resize((640, 320), keep_ratio=True)
    assert scaled.augmentation == Augmentation((Resize((640, 320), keep_ratio=True),), flip=True)
    several = dataclasses.replace(path, augmentation=Augmentation((usual, usual.scaled(0.5)), flip=False))
    with pytest.raises(CheckpointError, match="own test has 2 scales"):
        export._scaled(several, (640, 320))


@pytest.mark.usefixtures("ready_made")
def test_a_file_name_of_any_bytes_can_be_exported(tmp_path: Path) -> None:
    name = b"\xe9t\xe9.pth".decode("utf-8", "surrogateescape")  # Latin-1 on a UTF-8 system
    shutil.copy(SAMPLE, tmp_path / name)
    bundle = export_bundle(tmp_path / name, tmp_path / "bundle")
    assert bundle.manifest.name == "?t?"
    json.loads((tmp_path / "bundle/manifest.json").read_bytes())


def same(bundle: Bundle, other: Bundle) -> bool:
    """Whether two bundles say the same, but for where they come from."""
    apart = dict.fromkeys(("provenance", "name", "artifacts"))
    manifests = (json.loads(each.manifest.to_json()) | apart for each in (bundle, other))
    first, second = manifests
    return bool(first == second)


@pytest.mark.usefixtures("ready_made")
def test_bare_weights_and_a_configuration_are_the_whole_checkpoint(sample: Bundle, tmp_path: Path) -> None:
    data = torch.load(SAMPLE, weights_only=True)
    meta = data["meta"]
    about = {key: meta["dataset_meta"][key] for key in ("classes", "palette", "reduce_zero_label")}
    dataset = f"test_dataloader = dict(dataset=dict(type='BaseSegDataset', metainfo=dict(**{about!r})))"
    (tmp_path / "base.py").write_text(meta["cfg"])
    (tmp_path / "config.py").write_text(f"_base_ = 'base.py'\n{dataset}\n")
    save_file(data["state_dict"], tmp_path / "weights.safetensors")
    torch.save(data["state_dict"], tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        found = export_bundle(tmp_path / name, tmp_path / f"{name}.bundle", config=tmp_path / "config.py")
        assert same(found, sample) and found.manifest.provenance["warnings"] == []
    assert found.manifest.provenance["config"] == "config.py"
    with pytest.raises(CheckpointError, match="not square"):
        export_bundle(tmp_path / "weights.pth", tmp_path / "bare")


@pytest.mark.usefixtures("ready_made")
def test_a_configuration_wins_over_the_checkpoints_and_says_so(tmp_path: Path) -> None:
    text = torch.load(SAMPLE, weights_only=True)["meta"]["cfg"]
    changed, count = re.subn(r"1024,\s+160,", "640, 320", text)
    assert count
    (tmp_path / "config.py").write_text(changed)
    bundle = export_bundle(SAMPLE, tmp_path / "bundle", config=str(tmp_path / "config.py"))
    assert bundle.manifest.preprocess[0] == Resize((640, 320), keep_ratio=True)
    (warning,) = bundle.manifest.provenance["warnings"]
    assert "pipeline" in warning and "--config is used" in warning


@pytest.mark.usefixtures("ready_made")
def test_fields_say_what_bare_weights_cannot(tmp_path: Path) -> None:
    data = torch.load(SAMPLE, weights_only=True)
    torch.save(data["state_dict"], tmp_path / "weights.pth")
    spec = recognise(read_checkpoint(SAMPLE)).spec
    fields = {"num_heads": spec.backbone.num_heads, "norm_eps": spec.backbone.norm_eps, "img_size": [160, 224]}
    (tmp_path / "fields.json").write_text(json.dumps(fields))
    bundle = export_bundle(tmp_path / "weights.pth", tmp_path / "bundle", config=tmp_path / "fields.json")
    assert bundle.manifest.spec["backbone"]["num_heads"] == spec.backbone.num_heads
    warnings = " ".join(bundle.manifest.provenance["warnings"])
    assert (
        "attention heads" not in warnings and "LayerNorm" not in warnings and "Which layers feed the head" in warnings
    )


@pytest.mark.usefixtures("ready_made")
def test_names_and_colours_can_be_given(tmp_path: Path) -> None:
    names, colours = [f"name {i}" for i in range(150)], [(i, 0, 255 - i) for i in range(150)]
    bundle = export_bundle(SAMPLE, tmp_path / "a", classes=names, palette=np.array(colours), name=" street ")
    assert bundle.manifest.classes == tuple(names) and bundle.manifest.palette == tuple(colours)
    assert bundle.manifest.name == "street"
    for arguments, words in (
        ({"classes": names[:3]}, "--classes gives 3, but the network has 150 classes"),
        ({"palette": colours[:7]}, "--palette gives 7, but the network has 150 classes"),
        ({"palette": [(0, 0, 300)] * 150}, "not RGB triples"),
        ({"name": " "}, "--name"),
        ({"name": "a\nb"}, "--name"),
        ({"opset": 12}, "--opset 12: the oldest is 13, the newest 20"),
        ({"opset": 21}, "--opset 21"),
        ({"ir_version": 6}, "--ir-version 6: the oldest is 7, the newest 10"),
        ({"config": tmp_path / "none.py"}, "no such file"),
    ):
        with pytest.raises(InputError, match=words):
            export_bundle(SAMPLE, tmp_path / "b", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


@pytest.mark.usefixtures("ready_made")
@pytest.mark.parametrize("stem", ["best_mIoU_iter_16000", "iter_80000", "epoch_3", "latest", "model", "last-v1"])
def test_a_name_of_training_is_worth_a_hint(tmp_path: Path, stem: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(SAMPLE, tmp_path / f"{stem}.pth")
    bundle = export_bundle(tmp_path / f"{stem}.pth", tmp_path / "bundle", progress=Terminal())
    assert bundle.manifest.name == stem and f"the model is called {stem}" in capsys.readouterr().err
    export_bundle(tmp_path / f"{stem}.pth", tmp_path / "bundle", replace=True, name="mine", progress=Terminal())
    assert "--name" not in capsys.readouterr().err


@pytest.mark.usefixtures("ready_made")
@pytest.mark.parametrize("needs", [False, True])
def test_the_extra_pillow_is_named_where_a_bundle_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], needs: bool
) -> None:
    """To decode files, not to resize as it does."""
    weights, setting = torch.load(SAMPLE, weights_only=True), "imdecode_backend" if needs else "backend"
    place = "type='LoadImageFromFile'" if needs else "keep_ratio=True"
    text = weights["meta"]["cfg"].replace(place, f"{place}, {setting}='pillow'")
    assert text != weights["meta"]["cfg"]
    weights["meta"]["cfg"] = text
    torch.save(weights, tmp_path / "mine.pth")
    export_bundle(tmp_path / "mine.pth", tmp_path / "bundle", progress=Terminal())
    assert ("need the extra pillow" in capsys.readouterr().err) == needs


@pytest.mark.usefixtures("ready_made")
def test_label_map_and_ignore_index_reach_the_manifest(tmp_path: Path) -> None:
    data = torch.load(SAMPLE, weights_only=True)
    data["meta"]["dataset_meta"]["label_map"] = {0: 2, 1: -1}
    data["meta"]["cfg"] += "\ntest_evaluator = dict(type='IoUMetric', ignore_index=254)\n"
    torch.save(data, tmp_path / "c.pth")
    manifest = export_bundle(tmp_path / "c.pth", tmp_path / "bundle").manifest
    assert (manifest.label_map, manifest.ignore_index) == ({"0": 2, "1": 255}, 254)


@pytest.mark.usefixtures("ready_made")
def test_colours_of_another_number_of_classes_are_not_taken_in_silence(tmp_path: Path) -> None:
    data = torch.load(SAMPLE, weights_only=True)
    data["meta"]["dataset_meta"]["palette"] = data["meta"]["dataset_meta"]["palette"][:7]
    torch.save(data, tmp_path / "c.pth")
    warnings = export_bundle(tmp_path / "c.pth", tmp_path / "bundle").manifest.provenance["warnings"]
    assert warnings == ["The file has 7 colours for 150 classes: others are taken."]
