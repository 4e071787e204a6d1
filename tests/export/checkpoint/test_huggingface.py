"""Hugging Face folders: the real classes' logits and class maps, names of both generations, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from support import assert_same_classes
from torch import Tensor

from denseport.export import bundle
from denseport.export.checkpoint.file import Checkpoint, read_checkpoint
from denseport.export.checkpoint.pipeline import image_steps
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.weights import load_model
from denseport.export.entrance.compare import Check
from denseport.export.entrance.torch_to_onnx import check_export, export_onnx
from denseport.export.errors import CheckpointError
from denseport.export.models.segmentor import Segmentor
from denseport.runtime import Segmenter
from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.pipeline.network_input import network_inputs

NAMES = ("hf_segformer", "hf_dpt_seg")
# As transformers 5.24 calls in memory what transformers 4 calls otherwise (its conversion_mapping.py).
FIVE = (
    (r"encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
    (r"encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
    (r"encoder\.layer_norm\.(\d+)", r"stages.\1.layer_norm"),
    ("attention.self.query", "attention.q_proj"),
    ("attention.self.key", "attention.k_proj"),
    ("attention.self.value", "attention.v_proj"),
    ("attention.self.sr", "attention.sequence_reduction.sequence_reduction"),
    ("attention.self.layer_norm", "attention.sequence_reduction.layer_norm"),
    ("attention.output.dense", "attention.o_proj"),
    ("mlp.dense1", "mlp.fc1"),
    ("mlp.dense2", "mlp.fc2"),
    ("layer_norm_1", "layernorm_before"),
    ("layer_norm_2", "layernorm_after"),
    ("decode_head.linear_c", "decode_head.linear_projections"),
)


@pytest.fixture
def folder(shared: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of an oracle's folder, to be changed; SegFormer's unless the test names another."""
    name = getattr(request, "param", "hf_segformer")
    kept = ("config.json", "model.safetensors", "preprocessor_config.json")
    (tmp_path / name).mkdir()
    for file in kept:
        shutil.copyfile(shared / "oracle_families" / name / file, tmp_path / name / file)
    return tmp_path / name


def change(folder: Path, file: str = "config.json", **settings: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def load(folder: Path, *, rewrite: bool = True) -> tuple[Checkpoint, Segmentor]:
    checkpoint = read_checkpoint(folder)
    recognised = recognise(checkpoint)
    assert recognised.warnings == () and checkpoint.warnings == ()
    return checkpoint, load_model(checkpoint, recognised.spec, rewrite=rewrite)


@pytest.mark.parametrize("rewrite", [True, False], ids=["rewritten", "upstream-order"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_class_maps_equal_transformers(shared: Path, name: str, rewrite: bool) -> None:
    checkpoint, model = load(shared / "oracle_families" / name, rewrite=rewrite)
    assert checkpoint.classes == ("wall", "building", "sky", "floor", "tree", "ceiling", "road")
    maps = 0
    with np.load(shared / f"oracle_families/{name}/golden.npz") as golden:
        for size in [key.removeprefix("in_") for key in golden.files if key.startswith("in_")]:
            logits = model(torch.from_numpy(golden[f"in_{size}"]))
            whole = f"out_{size}" in golden.files
            wanted, found = golden[f"out_{size}" if whole else f"sub_{size}"], logits.numpy()
            found = found if whole else found[..., ::3, ::3]
            np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)
            for key in [key for key in golden.files if re.fullmatch(rf"post_\d+x\d+_of_{size}", key)]:
                shape = golden[key].shape
                scores = F.interpolate(logits[:1], size=shape, mode="bilinear", align_corners=False)[0]
                assert_same_classes(scores.argmax(0).numpy(), golden[key], scores.numpy())
                maps += 1
    assert maps >= 4


@pytest.mark.parametrize("folder", NAMES, indirect=True)
def test_a_bundle_resizes_logits_to_the_image_at_once(
    shared: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the processor's post_process_semantic_segmentation; by way of the input 0.2 to 0.6 % of SegFormer's differ."""
    monkeypatch.setattr(bundle, "export_onnx", lambda _, path, *__: [path.write_bytes(b"unused") and path])
    monkeypatch.setattr(bundle, "check_export", lambda *_: [Check((1, 3, 64, 64), 0.0, 1.0, (1, 7, 16, 16))])
    exported, model = bundle.export_bundle(folder, tmp_path / "bundle"), load(folder)[1]
    assert not exported.manifest.via_input
    with np.load(shared / f"oracle_families/{folder.name}/golden.npz") as golden:

        class Known(Session):
            """Takes the oracle's input of the size for any image of that size."""

            description = "the oracle's input"

            def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
                height, width = image.shape[2:]
                return model(torch.from_numpy(golden[f"in_{height}x{width}"][:1])).numpy()

        maps = [re.fullmatch(r"post_(\d+)x(\d+)_of_(\d+)x(\d+)", key) for key in golden.files]
        for found in filter(None, maps):
            *size, height, width = map(int, found.groups())
            with Segmenter(exported, session=Known(), protocol=f"fixed:{width}x{height}") as segment:
                mask = segment(np.zeros((*size, 3), np.uint8)).mask
            logits = model(torch.from_numpy(golden[f"in_{height}x{width}"][:1]))
            scores = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
            assert_same_classes(mask, golden[found[0]], scores.numpy())
    assert sum(map(bool, maps)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_export_computes_the_same(shared: Path, tmp_path: Path, name: str) -> None:
    """At sizes that transformers' DPT refuses, too: it takes square inputs only."""
    _, model = load(shared / "oracle_families" / name)
    export_onnx(model, tmp_path / "model.onnx")
    assert len(check_export(model, tmp_path / "model.onnx")) == 3


@pytest.mark.parametrize(
    ("folder", "setting"),
    [
        ("hf_segformer", "segformer"),
        ("hf_segformer", "beit"),
        ("hf_dpt_seg", "dpt_square"),
        ("hf_dpt_seg", "dpt_keep32"),
        ("hf_dpt_seg", "depth_anything"),
        ("hf_dpt_seg", "dpt_dinov2_pad"),
    ],
    indirect=["folder"],
)
def test_images_are_prepared_as_by_the_processor(shared: Path, folder: Path, setting: str) -> None:
    settings = json.loads((shared / "oracle_families/preprocess.json").read_text())[setting]["settings"]
    change(folder, "preprocessor_config.json", **settings)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.reduce_zero_label == (folder.name == "hf_segformer")  # a processor without the setting: False
    path = image_steps(checkpoint)
    assert path.warnings == ()
    compared = 0
    with np.load(shared / "oracle_families/preprocess.npz") as golden:
        for key in [key for key in golden.files if re.fullmatch(rf"{setting}_\d+x\d+_tensor", key)]:
            shape = key.split("_")[-2]
            image = np.ascontiguousarray(golden[f"rgb_{shape}"][..., ::-1])
            (found,) = network_inputs(image, Protocol("own", path.preprocess, Inference()), 1)
            np.testing.assert_allclose(found[0][:, ::5, ::3], golden[key], atol=2e-6, rtol=0)
            compared += 1
    assert compared >= 4


def test_names_of_transformers_5_are_known(folder: Path) -> None:
    _, old = load(folder)
    weights: dict[str, Tensor] = {}
    for key, value in load_file(folder / "model.safetensors").items():
        for pattern, name in FIVE:
            key = re.sub(pattern, name, key)
        weights[key] = value
    assert "segformer.stages.1.blocks.0.attention.sequence_reduction.layer_norm.bias" in weights
    save_file(weights, folder / "model.safetensors")
    _, new = load(folder)
    assert all(torch.equal(value, new.state_dict()[key]) for key, value in old.state_dict().items())


def test_weights_of_torch_and_old_settings_are_read(folder: Path) -> None:
    """Folders of 2022: pytorch_model.bin, ``size`` as a number, ``reduce_labels``, ``feature_extractor_type``."""
    expected, _ = load(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    old = {"feature_extractor_type": "SegformerFeatureExtractor", "size": 96, "reduce_labels": True}
    old |= {"do_normalize": True, "do_resize": True, "resample": 2}
    old |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    found, _ = load(folder)
    assert image_steps(found) == image_steps(expected) and found.reduce_zero_label
    assert found.state_dict.keys() == expected.state_dict.keys()


def test_without_a_processor_its_steps_are_assumed(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    warnings = image_steps(read_checkpoint(folder)).warnings
    assert any("does not say how images are resized" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("file", "settings", "words"),
    [
        ("preprocessor_config.json", {"keep_aspect_ratio": True}, "keep_aspect_ratio is True; only False is supported"),
        ("preprocessor_config.json", {"size": 9.5}, "cannot be used: TypeError('9.5 is not a whole number')"),
        ("preprocessor_config.json", {"size": {"width": 0, "height": 9}}, "size (0, 9) has a side that is not in"),
        ("config.json", {"architectures": ["ZoeDepthForDepthEstimation"]}, "is ['ZoeDepthForDepthEstimation']; of"),
        ("config.json", {"architectures": None}, "architectures is None"),
        ("config.json", {"architectures": 5}, "architectures is 5"),
        ("config.json", {"num_encoder_blocks": 10**9}, "num_stages is 1000000000, and the weights show 4"),
        ("preprocessor_config.json", {"image_processor_type": []}, "its processor is []"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu' is supported"),
        ("config.json", {"reshape_last_stage": False}, "reshape_last_stage is False; only True is supported"),
        ("config.json", {"window_size": 7}, "window_size is 7, which is not known and may change the result"),
        ("config.json", {"id2label": {"1": "wall"}}, "config.json: cannot be used: KeyError('0')"),
        ("config.json", {"num_attention_heads": [1, 2]}, "config.json: cannot be used: ValueError"),
        ("config.json", {"depths": [2, 2, 2, 2]}, "num_layers is [2, 2, 2, 2], and the weights show [1, 2, 1, 1]"),
        ("config.json", {"sr_ratios": [4, 2, 1, 1]}, "sr_ratios is [4, 2, 1, 1], and the weights show"),
        ("config.json", {"decoder_hidden_size": 32}, "decode_head.channels is 32, and the weights show 16"),
        ("config.json", {"hidden_sizes": [16, 32, 48, 64]}, "embed_dims is 16, and the weights show 8"),
        ("preprocessor_config.json", {"do_pad": True}, "do_pad is True; only False is supported"),
        ("preprocessor_config.json", {"blur": 3}, "blur is 3, which is not known and may change the result"),
        ("preprocessor_config.json", {"resample": 9}, "preprocessor_config.json: cannot be used: KeyError(9)"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 9}}, "cannot be used: KeyError('width')"),
        (
            "preprocessor_config.json",
            {"image_processor_type": "BeitImageProcessor"},
            "is 'BeitImageProcessor', not one",
        ),
    ],
    ids=str,
)
def test_what_is_not_carried_out_is_refused(folder: Path, file: str, settings: dict[str, Any], words: str) -> None:
    change(folder, file, **settings)
    with pytest.raises(CheckpointError) as caught:
        recognise(read_checkpoint(folder))
    assert words in str(caught.value)


@pytest.mark.parametrize("folder", ["hf_dpt_seg"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"is_hybrid": True}, "is_hybrid is True; only False is supported"),
        ({"use_batch_norm_in_fusion_residual": False}, "only True is supported"),
        ({"reassemble_factors": [8, 4, 2, 1]}, "reassemble_factors is [8, 4, 2, 1]; only [4, 2, 1, 0.5]"),
        ({"backbone_config": {"model_type": "dinov2"}}, "only None is supported"),
        ({"backbone_out_indices": [0, 1]}, "does not go with 2 levels"),
        ({"num_attention_heads": 3}, "num_heads 3 does not divide embed_dims 16"),
        ({"neck_hidden_sizes": [1, 2, 3, 4]}, "post_process_channels is [1, 2, 3, 4], and the weights show"),
        ({"layer_norm_eps": "small"}, "norm_cfg.eps 'small' is not a number"),
    ],
    ids=str,
)
def test_a_dpt_with_other_parts_is_refused(folder: Path, settings: dict[str, Any], words: str) -> None:
    change(folder, **settings)
    with pytest.raises(CheckpointError) as caught:
        recognise(read_checkpoint(folder))
    assert words in str(caught.value)


def test_weights_that_are_no_such_networks_do_not_fit(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["segformer.encoder.block.0.0.attention.self.key.weight"]
    save_file({**weights, "segformer.extra.weight": torch.zeros(2)}, folder / "model.safetensors")
    checkpoint = read_checkpoint(folder)
    with pytest.raises(CheckpointError) as caught:
        load_model(checkpoint, recognise(checkpoint).spec)
    for words in ("missing backbone.layers.0.1.0.attn.attn.in_proj_weight", "unexpected segformer.extra.weight"):
        assert words in str(caught.value)
    save_file(
        {**weights, "segformer.stages.0.blocks.0.attention.o_proj.bias": torch.zeros(8)}, folder / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match="two of its keys mean"):
        read_checkpoint(folder)


def test_folders_that_cannot_be_read_are_refused(folder: Path, tmp_path: Path) -> None:
    def refusal(path: Path, config: Path | None = None) -> str:
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path, config)
        return str(caught.value)

    assert "this is a folder, without config.json" in refusal(tmp_path)
    (tmp_path / "c.py").write_text("model = dict()")
    assert "--config is mmsegmentation's" in refusal(folder, tmp_path / "c.py")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "holds neither model.safetensors nor pytorch_model.bin" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "in several files (model.safetensors.index.json)" in refusal(folder)
    (folder / "model-00001-of-00002.safetensors").rename(folder / "model.safetensors")
    for text, words in (
        ("[1]", "holds a list, not a JSON object"),
        ("{", "not JSON"),
        ('{"a": 1, "a": 2}', "'a' is said twice"),
        (" " * 10_000_001, "above"),
    ):
        (folder / "config.json").write_text(text)
        assert words in refusal(folder)


@pytest.mark.parametrize("folder", ["hf_dpt_seg"], indirect=True)
def test_the_arithmetic_of_both_dpts_is_told_apart(folder: Path) -> None:
    """The same weights as mmsegmentation's checkpoint would be padded, and their logits half as large."""
    checkpoint, model = load(folder)
    assert (model.spec.stride, model.spec.backbone.cuts_rest, model.spec.backbone.keeps_equal_count) == (1, True, False)
    other = recognise(dataclasses.replace(checkpoint, layout="mmseg 1.x")).spec
    assert (other.stride, other.backbone.cuts_rest, other.backbone.keeps_equal_count) == (2, False, True)
