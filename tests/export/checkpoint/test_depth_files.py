"""Files of depth networks: both generations of names, what no file shows is asked for, what differs is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from depth_networks import ANSWERS, checkpoint_of, config_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from denseport.export.bundle import export_bundle
from denseport.export.checkpoint.file import Checkpoint, read_checkpoint
from denseport.export.checkpoint.pipeline import image_steps
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.settings import depth_of
from denseport.export.checkpoint.weights import load_model
from denseport.export.errors import CheckpointError
from denseport.export.models.head_spec import DepthAnythingHeadSpec, DPTDepthHeadSpec
from denseport.export.models.presets import DEPTH_PRESETS
from denseport.export.models.segmentor import Segmentor, build
from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.bundle.steps import Load, Normalise, ResizeRounded
from denseport.runtime.errors import InputError

V2 = "depth_anything_v2_metric_hypersim_vits"
# As transformers 5.24 calls in memory what transformers 4 calls otherwise (its conversion_mapping.py).
FIVE = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
)


@pytest.fixture
def families(shared: Path) -> Path:
    return shared / "oracle_families"


@pytest.fixture
def copy(families: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of an oracle's folder, to be changed."""
    folder = tmp_path / request.param
    shutil.copytree(families / request.param, folder, ignore=shutil.ignore_patterns("*.npz"))
    return folder


def change(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def read(path: Path, place: Path, answers: dict[str, Any] | None) -> Checkpoint:
    config = None
    if answers is not None:
        config = place / "answers.json"
        config.write_text(json.dumps(answers))
    return read_checkpoint(path, config)


def refusal(path: Path, place: Path, answers: dict[str, Any] | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        recognise(read(path, place, answers))
    return str(caught.value)


def load(checkpoint: Checkpoint) -> Segmentor:
    return load_model(checkpoint, recognise(checkpoint).spec)


@pytest.mark.parametrize("name", ["hf_depth_anything", "hf_dpt_dinov2"])
def test_names_of_transformers_5_are_known(families: Path, tmp_path: Path, name: str) -> None:
    answers = ANSWERS[name]
    expected = load(read(families / name, tmp_path, answers)).state_dict()
    weights: dict[str, Tensor] = {}
    for key, value in load_file(families / name / "model.safetensors").items():
        for old, new in FIVE:
            key = key.replace(old, new)
        weights[key] = value
    assert "backbone.encoder.layer.0.attention.q_proj.weight" in weights
    shutil.copytree(families / name, tmp_path / name)
    save_file(weights, tmp_path / name / "model.safetensors")
    found = load(read(tmp_path / name, tmp_path, answers)).state_dict()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("da2_relative", "the weights do not show which layers feed the head"),
        ("da2_relative", "nor whether its depth is relative, or metres up to a limit (max_depth); a wrong guess"),
        ("da2_relative", 'such as {"out_indices": [2, 5, 8, 11], "depth": "relative"}'),
        ("isl_depth", "the weights do not show whether its numbers are metres, or relative"),
        ("hf_dpt_depth", 'such as {"depth": "relative"}'),
    ],
)
def test_what_a_file_cannot_show_is_asked_for(families: Path, tmp_path: Path, name: str, words: str) -> None:
    assert words in refusal(checkpoint_of(families / name), tmp_path)


@pytest.mark.parametrize(
    ("name", "answers", "words"),
    [
        ("da2_metric", {"max_depth": 20}, "do not show which layers feed the head (V1: the last four; V2: others); a"),
        ("da2_metric", {"out_indices": [2, 5, 8, 11]}, "do not show whether its depth is relative"),
        ("da2_metric", {"out_indices": [2, 5, 8, 11], "depth": "metres"}, "do not show how far its metres go"),
        ("da2_metric", {"out_indices": [2, 5], "max_depth": 20}, "does not go with 2 levels"),
        ("da2_metric", {"out_indices": [2, 5, 8, 11], "max_depth": 0}, "max_depth 0.0 is not a depth"),
        (
            "da2_metric",
            {"out_indices": [2, 5, 8, 11], "max_depth": 20, "depth": "relative"},
            "'relative' does not go with max_depth 20",
        ),
        ("da2_metric", {"depth": "far", "out_indices": [8, 9, 10, 11]}, "'far' is neither 'relative' nor 'metres'"),
        ("da2_metric", {"mean": [0.5]}, "answers.json says mean [0.5]"),
        ("da2_metric", {"norm_eps": 1e-5}, "answers.json says norm_eps 1e-05, and the checkpoint 1e-06"),
        (
            "da2_metric",
            {"out_indices": [2, 5, 8, 11], "max_depth": 20, "readout": "add"},
            "readout_type is 'add', and the weights show 'ignore'",
        ),
        ("isl_depth", {"inversion": [0.1, 0.2], "depth": "relative"}, "does not go with inversion"),
        ("isl_depth", {"inversion": [0.1, 0.0]}, "is not a scale and a shift above 0"),
        ("isl_depth", {"inversion": [0.1]}, "inversion [0.1] is not a scale and a shift"),
        ("isl_depth", {"max_depth": 20, "depth": "metres"}, "max_depth is 20"),
        ("isl_seg", {"depth": "metres"}, "decode_head.depth is 'metres'"),
        ("hf_dpt_depth", {"num_heads": 4}, "answers.json says num_heads 4, and the checkpoint 2"),
        ("hf_depth_anything", {"depth": "metres"}, "says depth 'metres', and the checkpoint 'relative'"),
        ("hf_depth_anything_metric", {"max_depth": 80}, "says max_depth 80"),
    ],
    ids=str,
)
def test_answers_that_do_not_fit_are_refused(
    families: Path, tmp_path: Path, name: str, answers: dict[str, Any], words: str
) -> None:
    text = refusal(checkpoint_of(families / name), tmp_path, answers)
    assert words in text and "mmsegmentation's own file" not in text, "the remedy is of its own settings"


def test_fields_of_depth_alone_are_named(families: Path, tmp_path: Path) -> None:
    text = refusal(checkpoint_of(families / "da2_metric"), tmp_path, {"max_deph": 20})
    assert "'max_deph' is neither a field" in text and "max_depth, inversion" in text
    assert not {"pool_scales", "classes", "threshold"} & {*text.replace(",", " ").split()}
    folder = refusal(checkpoint_of(families / "hf_dpt_depth"), tmp_path, {"max_deph": 20})
    assert folder.rstrip(".").endswith("Fields are depth")


def test_a_whole_configuration_of_mmsegmentation_is_refused(families: Path, tmp_path: Path) -> None:
    answers = {"model": {"backbone": {"num_heads": 2}}}
    for name in ("da2_relative", "hf_dpt_depth"):
        assert "--config is mmsegmentation's" in refusal(checkpoint_of(families / name), tmp_path, answers)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("hf_depth_anything", {"max_depth": 20}, "max_depth 20 of a relative depth"),
        ("hf_depth_anything", {"depth_estimation_type": "both"}, "'both' is neither 'relative' nor 'metres'"),
        ("hf_depth_anything", {"patch_size": 16}, "patch_size 16 is not that of backbone_config"),
        ("hf_depth_anything", {"backbone_config": None}, "cannot be used"),
        ("hf_depth_anything", {"head_hidden_size": 8, "blur": 1}, "blur is 1, which is not known"),
        ("hf_depth_anything", {"neck_hidden_sizes": [1, 2, 3, 4]}, "and the weights show [8, 10, 12, 16]"),
        ("hf_dpt_depth", {"is_hybrid": True}, "is_hybrid is True; only False is supported"),
        ("hf_dpt_depth", {"use_batch_norm_in_fusion_residual": True}, "unit_norm is True, and the weights show False"),
        ("hf_dpt_depth", {"use_bias_in_fusion_residual": False}, "unit_bias is False, and the weights show True"),
        ("hf_dpt_depth", {"add_projection": True}, "projects is True, and the weights show False"),
        ("hf_dpt_hybrid", {}, "is_hybrid is True; only False is supported"),
    ],
    ids=str,
)
def test_other_networks_of_hugging_face_are_refused(
    families: Path, tmp_path: Path, name: str, settings: dict[str, Any], words: str
) -> None:
    folder = shutil.copytree(families / name, tmp_path / name, ignore=shutil.ignore_patterns("*.npz"))
    change(folder, **settings)
    assert words in refusal(folder, tmp_path, ANSWERS.get(name))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            {"model_type": "dinov2_with_registers"},
            "backbone_config.model_type is 'dinov2_with_registers'; only 'dinov2'",
        ),
        ({"use_swiglu_ffn": True}, "backbone_config.use_swiglu_ffn is True; only False is supported"),
        ({"out_features": ["stage1", "stage2", "stage3", "stage3"]}, "differ"),
        ({"out_indices": None, "out_features": None}, "does not go with 1 levels"),
        ({"out_indices": [0, 1, 2, 3], "out_features": None}, "name more than the 4 layers"),
        ({"out_indices": [-7, 2, 3, 4], "out_features": None}, "name more than the 4 layers"),
        ({"out_indices": None, "out_features": ["stem", "stage1", "stage2", "stage3"]}, "name more than the 4 layers"),
        ({"antialias": True}, "backbone_config.antialias is True, which is not known"),
        ({"num_attention_heads": 3}, "num_heads 3 does not divide embed_dims 16"),
    ],
    ids=str,
)
@pytest.mark.parametrize("copy", ["hf_depth_anything"], indirect=True)
def test_other_encoders_of_hugging_face_are_refused(
    copy: Path, tmp_path: Path, part: dict[str, Any], words: str
) -> None:
    own = json.loads((copy / "config.json").read_text())["backbone_config"]
    change(copy, backbone_config={**own, **part})
    assert words in refusal(copy, tmp_path)


@pytest.mark.parametrize("copy", ["hf_depth_anything"], indirect=True)
def test_what_transformers_4_wrote_into_a_backbone_is_known(copy: Path, tmp_path: Path) -> None:
    """Folders of 2023 hold every default, also those of networks for text; the names of layers alone will do."""
    own = json.loads((copy / "config.json").read_text())["backbone_config"]
    expected = recognise(read_checkpoint(copy)).spec
    del own["out_indices"]
    change(copy, max_depth=None, backbone_config={**own, "top_k": 50, "pruned_heads": {}, "bad_words_ids": None})
    assert recognise(read_checkpoint(copy)).spec == expected


@pytest.mark.parametrize("copy", ["hf_depth_anything"], indirect=True)
def test_layers_that_are_counted_from_the_last(copy: Path) -> None:
    """transformers has the embedding first, so -1 is its last of 5 stages: the fourth layer."""
    own = json.loads((copy / "config.json").read_text())["backbone_config"]
    expected = recognise(read_checkpoint(copy)).spec
    for named in (own["out_features"], None):
        change(copy, backbone_config={**own, "out_indices": [-4, -3, -2, -1], "out_features": named})
        assert recognise(read_checkpoint(copy)).spec == expected


@pytest.mark.parametrize("copy", ["hf_dpt_dinov2"], indirect=True)
def test_the_projection_before_the_head_is_carried_out(copy: Path, tmp_path: Path) -> None:
    """``add_projection``, of the heads that facebook released: a convolution and ReLU behind the fusion."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(8, 8, 3, 3, generator=generator), torch.randn(8, generator=generator)
    plain = load(read(copy, tmp_path, ANSWERS["hf_dpt_dinov2"]))
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, "head.projection.weight": weight, "head.projection.bias": bias}, copy / "model.safetensors")
    change(copy, add_projection=True)
    model = load(read(copy, tmp_path, ANSWERS["hf_dpt_dinov2"]))
    image = torch.randn(1, 3, 70, 98, generator=generator)
    fused = plain.decode_head.fuse(plain.backbone(image))
    wanted = plain.decode_head.head(F.relu(F.conv2d(fused, weight, bias, padding=1)))
    assert wanted.std() > 0
    torch.testing.assert_close(model(image), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("copy", ["hf_depth_anything"], indirect=True)
def test_an_attention_without_biases_of_its_projections_has_zeros(copy: Path) -> None:
    """``qkv_bias: false``: the last projection has its bias nevertheless, unlike in mmsegmentation."""
    biases = [f"attention.attention.{name}.bias" for name in ("query", "key", "value")]
    weights = load_file(copy / "model.safetensors")
    zeros = {key: torch.zeros_like(value) for key, value in weights.items() if key.endswith(tuple(biases))}
    save_file({**weights, **zeros}, copy / "model.safetensors")
    expected = load(read_checkpoint(copy)).state_dict()
    save_file({key: value for key, value in weights.items() if key not in zeros}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="qkv_bias is True, and the weights show False"):
        load(read_checkpoint(copy))
    own = json.loads((copy / "config.json").read_text())["backbone_config"]
    change(copy, backbone_config={**own, "qkv_bias": False})
    found = load(read_checkpoint(copy)).state_dict()
    assert len(zeros) == 12 and all(torch.equal(value, found[key]) for key, value in expected.items())


def released(preset: str, file: str, families: Path, place: Path, answers: dict[str, Any]) -> Checkpoint:
    """A file with a published network's keys and shapes, and no weights."""
    read_as = read(checkpoint_of(families / "da2_metric"), place, answers)
    with torch.device("meta"):
        weights = build(DEPTH_PRESETS[preset].spec).state_dict()
    return dataclasses.replace(read_as, path=place / file, state_dict=weights)


def test_a_released_file_is_known_by_its_name_and_another_asked_about(families: Path, tmp_path: Path) -> None:
    """The name of the file must be the whole name: "…_vits_mine.pth" is fine-tuned to something else."""
    found = recognise(released(V2, f"{V2}.pth", families, tmp_path, {}))
    assert found.preset is DEPTH_PRESETS[V2] and found.spec == found.preset.spec
    (warning,) = found.warnings
    assert f"Taken for {V2} by the name '{V2}.pth', not by its hash" in warning
    mine = released(V2, f"{V2}_mine.pth", families, tmp_path, {})
    with pytest.raises(CheckpointError, match="do not show which layers feed the head"):
        recognise(mine)
    named = recognise(mine, DEPTH_PRESETS[V2])
    assert named.spec == found.spec and named.warnings == ()
    by_hash = recognise(dataclasses.replace(mine, sha256=f"{DEPTH_PRESETS[V2].sha256_start}0123"))
    assert by_hash.preset is DEPTH_PRESETS[V2] and by_hash.warnings == ()
    other = released(V2, "mine.pth", families, tmp_path, {"out_indices": [2, 5, 8, 11], "max_depth": 5})
    with pytest.raises(CheckpointError, match=r"is not depth_anything_v2_vitb: backbone\.embed_dims"):
        recognise(other, DEPTH_PRESETS["depth_anything_v2_vitb"])
    with pytest.raises(CheckpointError, match=r"head\.max_depth is 5\.0, published 20\.0"):
        recognise(other, DEPTH_PRESETS[V2])
    # A published name with another network in it is not taken for that model; nor is what --preset names.
    wrong = released(V2, "depth_anything_v2_vitb.pth", families, tmp_path, {})
    for given in (None, DEPTH_PRESETS["depth_anything_v2_vitb"]):
        with pytest.raises(CheckpointError, match="do not show which layers feed the head") as err:
            recognise(wrong, given)
        assert (
            "has 12 layers of 384 channels, and the published model that it is taken for 12 of 768" in err.value.message
        )
        assert "Name the published model of these sizes by --preset" in str(err.value.remedy)


def test_the_published_networks_are_those_of_the_papers() -> None:
    """V1 and V2 differ in layers, relative and metric in the end, and B and L of V2 in the licence."""
    for preset in DEPTH_PRESETS.values():
        backbone = preset.spec.backbone
        layers = {"ViT-S": 12, "ViT-B": 12, "ViT-L": 24}[preset.backbone]
        assert (backbone.num_layers, preset.name) == (layers, preset.name)  # type: ignore[union-attr]
        if "v2" in preset.name:
            assert backbone.out_indices == {12: (2, 5, 8, 11), 24: (4, 11, 17, 23)}[layers]
            limit = {"hypersim": 20.0, "vkitti": 80.0}.get(preset.name.split("_")[4] if "metric" in preset.name else "")
            assert preset.spec.head.max_depth == limit  # type: ignore[union-attr]
            assert ("CC-BY-NC-4.0" in preset.licence) == (preset.backbone != "ViT-S")
        elif preset.name.startswith("depth_anything"):
            assert backbone.out_indices == tuple(range(layers - 4, layers)) and preset.licence == "Apache-2.0"
    starts = [preset.sha256_start for preset in DEPTH_PRESETS.values()]
    assert len(DEPTH_PRESETS) == len(set(starts)) == 13


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("da2_relative", DepthOutput("relative", "nearer", None, "bilinear")),
        ("da2_metric", DepthOutput("metres", "farther", 20.0, "bilinear")),
        ("hf_depth_anything", DepthOutput("relative", "nearer", None, "bicubic")),
        ("hf_depth_anything_metric", DepthOutput("metres", "farther", 20.0, "bicubic")),
        ("hf_dpt_dinov2", DepthOutput("metres", "farther", None, "bicubic")),
        ("isl_depth", DepthOutput("relative", "nearer", None, "bicubic")),
    ],
)
def test_what_the_numbers_mean(families: Path, tmp_path: Path, name: str, expected: DepthOutput) -> None:
    checkpoint = read_checkpoint(checkpoint_of(families / name), config_of(name, tmp_path))
    head = recognise(checkpoint).spec.head
    assert isinstance(head, DPTDepthHeadSpec | DepthAnythingHeadSpec)
    assert depth_of(checkpoint, head) == expected
    assert head.align_corners == (expected.interpolation == "bilinear")


def test_an_inversion_says_no_limit_up_to_which_depths_are_judged(families: Path, tmp_path: Path) -> None:
    checkpoint = read(checkpoint_of(families / "isl_depth"), tmp_path, {"num_heads": 2, "inversion": [0.0003, 0.125]})
    head = recognise(checkpoint).spec.head
    assert isinstance(head, DPTDepthHeadSpec)
    assert depth_of(checkpoint, head) == DepthOutput("metres", "farther", None, "bicubic")


def test_images_are_prepared_as_by_the_networks_own_code(families: Path, tmp_path: Path) -> None:
    def steps(name: str) -> tuple[Any, ...]:
        return image_steps(read_checkpoint(checkpoint_of(families / name), config_of(name, tmp_path))).preprocess

    load, resize, normalise = steps("da2_metric")
    assert load == Load(float32=True) and resize == ResizeRounded((518, 518), "lower_bound", 14, "bicubic")
    assert normalise == Normalise((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), bgr_to_rgb=True)
    assert steps("isl_depth")[1] == ResizeRounded((384, 384), "minimal", 32, "bicubic")
    assert steps("isl_seg")[1] == ResizeRounded((480, 480), "minimal", 32, "bicubic")
    assert steps("isl_depth")[2] == Normalise((127.5,) * 3, (127.5,) * 3, bgr_to_rgb=True)
    assert steps("hf_depth_anything")[1] == ResizeRounded((140, 140), "minimal", 14, "bicubic", "pillow")


@pytest.mark.parametrize("copy", ["hf_depth_anything"], indirect=True)
def test_options_of_classes_are_refused(copy: Path, tmp_path: Path) -> None:
    for option in ({"classes": ["road"]}, {"palette": [(1, 2, 3)]}):
        with pytest.raises(InputError, match="a network for depth has no classes"):
            export_bundle(copy, tmp_path / "out", **option)
    processor = copy / "preprocessor_config.json"
    processor.write_text(json.dumps({**json.loads(processor.read_text()), "size": {"width": 3, "height": 3}}))
    with pytest.raises(CheckpointError, match=r"3 x 3 is below one patch of 14 pixels\n  Give the folder's own"):
        export_bundle(copy, tmp_path / "out")


def test_a_folder_without_a_processor_makes_no_bundle_of_depth(families: Path, tmp_path: Path) -> None:
    """Of a segmentation network the steps are assumed with a warning; a depth network's size has its own rule."""
    config = config_of("hf_dpt_depth_add", tmp_path)
    with pytest.raises(CheckpointError, match=r"it has no preprocessor_config\.json"):
        export_bundle(families / "hf_dpt_depth_add", tmp_path / "out", config=config)
    with pytest.raises(CheckpointError, match=r"--scale 512 512: the size for a depth network follows the rule"):
        export_bundle(families / "hf_depth_anything", tmp_path / "out", scale=(512, 512))


@pytest.mark.parametrize(
    ("name", "extra", "words"),
    [
        ("isl_depth", "pretrained.model.patch_embed.backbone.stem.conv.weight", "its encoder is neither"),
        ("isl_depth", "pretrained.layer1.0.weight", "its encoder is neither a plain ViT nor DINOv2"),
        ("da2_relative", "pretrained.blocks.0.mlp.w12.weight", "its encoder is neither"),
        ("da2_relative", "pretrained.register_tokens", "its encoder is neither"),
        ("da2_relative", "core.core.pretrained.cls_token", "it is ZoeDepth's"),
    ],
)
def test_other_encoders_in_such_files_are_refused(
    families: Path, tmp_path: Path, name: str, extra: str, words: str
) -> None:
    weights = torch.load(checkpoint_of(families / name), weights_only=True)
    torch.save({**weights, extra: torch.zeros(2)}, tmp_path / "other.pth")
    assert words in refusal(tmp_path / "other.pth", tmp_path, ANSWERS[name])
