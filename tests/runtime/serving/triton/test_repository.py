"""Model repositories on disk: forms, versions, and what is refused. No server is needed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import onnx_artifact

from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.engine_record import Profile
from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.cli.main import main
from denseport.runtime.errors import BundleError, InputError, OutputError
from denseport.runtime.serving.triton.repository import export_repository
from denseport.runtime.serving.triton.variants import Options, model_name, served_models
from denseport.runtime.system.files import sha256_of

text_format = pytest.importorskip("google.protobuf.text_format")
model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")

OPTIONS = Options(name="street", instances=2, ensemble=True)
TWO = (2, 3, 64, 64)
SM_86, SM_90 = {"compute_capability": "sm_86"}, {"compute_capability": "sm_90"}


def config_of(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def tensors(config: Any) -> list[tuple[str, int, list[int]]]:
    return [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in (*config.input, *config.output)]


def test_the_python_back_end(sample: Bundle, tmp_path: Path) -> None:
    done = export_repository(sample, tmp_path / "new/repo", OPTIONS)
    assert (done.model, done.version) == ("street", 1)
    assert files(done.repository) == {
        "README.md",
        "street/config.pbtxt",
        "street/labels.txt",
        "street/1/denseport.json",
        "street/1/model.py",
        "street/1/bundle/manifest.json",
        "street/1/bundle/model.onnx",
        "street_decode/config.pbtxt",
        "street_decode/1/denseport.json",
        "street_decode/1/model.py",
        "street_encoded/config.pbtxt",
        "street_encoded/labels.txt",
        "street_encoded/1/denseport.json",
    }
    assert not [path for path in (tmp_path / "new").iterdir() if path.name != "repo"], "work is left lying about"
    assert (done.repository / "street/labels.txt").read_text().splitlines() == list(sample.manifest.classes)
    copy = Bundle(done.repository / "street/1/bundle")
    assert copy.verified("model.onnx").is_file()
    readme = (done.repository / "README.md").read_text()
    assert "| `street` | 1 | python |" in readme and "--http-address=127.0.0.1" in readme and "$VENV" in readme
    config = config_of(done.repository / "street")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0  # waiting gains nothing on a CPU
    assert config.instance_group[0].count == 2 and config.parameters["instances"].string_value == "2"


def test_a_depth_bundle_gives_depths(depth_sample: Bundle, sample: Bundle, tmp_path: Path) -> None:
    repository = export_repository(depth_sample, tmp_path / "repo", OPTIONS).repository
    config, ensemble = config_of(repository / "street"), config_of(repository / "street_encoded")
    assert [(each.name, each.data_type, list(each.dims)) for each in config.output] == [("depth", 11, [-1, -1])]
    assert config.parameters["output"].string_value == "depth" and "labels" not in " ".join(files(repository))
    assert dict(ensemble.ensemble_scheduling.step[1].output_map) == {"depth": "depth"}
    network = Options(name="room", backend="onnxruntime")
    export_repository(depth_sample, repository, network)
    assert ("depth", 11, [1, -1, -1]) in tensors(config_of(repository / "room_network"))
    with pytest.raises(OutputError, match="has other classes"):
        export_repository(sample, repository, OPTIONS)
    other = Bundle(depth_sample.path)
    other.manifest = dataclasses.replace(other.manifest, depth=DepthOutput("relative", "nearer", None, "bicubic"))
    with pytest.raises(OutputError, match="its numbers mean other depths"):
        export_repository(other, repository, OPTIONS)
    assert export_repository(depth_sample, repository, OPTIONS).version == 2


def test_the_ensemble_decodes_and_asks_the_model(sample: Bundle, tmp_path: Path) -> None:
    done = export_repository(sample, tmp_path / "repo", OPTIONS)
    ensemble, decoder = (config_of(done.repository / f"street_{name}") for name in ("encoded", "decode"))
    assert ensemble.platform == "ensemble" and not ensemble.backend and ensemble.max_batch_size == 1
    decode, segment = ensemble.ensemble_scheduling.step
    assert (decode.model_name, decode.model_version) == ("street_decode", -1)
    assert (dict(decode.input_map), dict(decode.output_map)) == ({"encoded": "encoded"}, {"image": "image"})
    assert (segment.model_name, segment.model_version) == ("street", -1)
    assert (dict(segment.input_map), dict(segment.output_map)) == ({"image": "image"}, {"mask": "mask"})
    assert tensors(decoder)[1] == ("image", model_config_pb2.TYPE_UINT8, [-1, -1, 3])
    assert decoder.instance_group[0].count == 2 and decoder.dynamic_batching.default_queue_policy.max_queue_size == 128
    assert ensemble.parameters["classes"] == config_of(done.repository / "street").parameters["classes"]


def test_all_forms_have_the_same_tensors(sample: Bundle, with_engines: Callable[..., Bundle], tmp_path: Path) -> None:
    found = []
    for backend in ("python", "onnxruntime", "tensorrt_plan"):
        bundle = with_engines(a=SM_86) if backend == "tensorrt_plan" else sample
        done = export_repository(bundle, tmp_path / backend, Options(backend=backend, name="m"))
        found.append(tensors(config_of(done.repository / "m")))
    uint8 = model_config_pb2.TYPE_UINT8
    assert found == [[("image", uint8, [-1, -1, 3]), ("mask", uint8, [-1, -1])]] * 3


def test_the_onnxruntime_form(sample: Bundle, tmp_path: Path) -> None:
    options = Options(backend="onnxruntime", name="m", warmup=(120, 160), versions="latest:2")
    done = export_repository(sample, tmp_path / "repo", options)
    assert done.models == ("m_network", "m")  # what is asked must be there first
    assert {"m_network/1/model.onnx", "m/1/bundle/manifest.json"} <= files(done.repository)
    network, front = config_of(done.repository / "m_network"), config_of(done.repository / "m")
    assert network.backend == "onnxruntime" and front.backend == "python"
    assert front.parameters["network"].string_value == "m_network"
    (image,), (logits,) = network.input, network.output
    assert (image.name, list(image.dims)) == ("image", [3, -1, -1])
    assert (logits.name, list(logits.dims)) == ("logits", [150, -1, -1])
    # While the front changes over to a new version, its old one still asks the old network.
    assert front.version_policy.latest.num_versions == 2 and network.version_policy.latest.num_versions == 3
    # (1024, 160) at keep-ratio: the shorter side becomes 160
    assert list(network.model_warmup[0].inputs["image"].dims) == [3, 160, 213]
    assert list(json.loads((done.repository / "m/1/bundle" / MANIFEST).read_text())["artifacts"]) == [
        sample.manifest.source
    ]


def test_external_data_keeps_its_name(sample: Bundle, tmp_path: Path) -> None:
    shutil.copytree(sample.path, tmp_path / "bundle")
    (tmp_path / "bundle/model.onnx").rename(tmp_path / "bundle/other.onnx")
    data = tmp_path / "bundle/other.onnx.data"
    data.write_bytes(b"weights")
    bundle = Bundle(tmp_path / "bundle")
    (digest,) = bundle.artifact("model.onnx").files.values()
    bundle.add("other.onnx", onnx_artifact({"other.onnx": digest, data.name: sha256_of(data)}))
    for backend, found in (("onnxruntime", "m_network/1/model.onnx"), ("python", "m/1/bundle/other.onnx")):
        done = export_repository(
            bundle, tmp_path / backend, Options(backend=backend, name="m", artifacts=("other.onnx",))
        )
        assert (done.repository / found).is_file()
        assert (done.repository / found).with_name("other.onnx.data").read_bytes() == b"weights"
    data.write_bytes(b"altered")
    with pytest.raises(BundleError, match="altered"):
        export_repository(bundle, tmp_path / "new/repo", Options(name="m", artifacts=("other.onnx",)))
    assert not (tmp_path / "new").exists()


def test_the_plan_form_has_an_engine_for_each_gpu(with_engines: Callable[..., Bundle], tmp_path: Path) -> None:
    two = (Profile((1, 3, 64, 64), (1, 3, 160, 224), (4, 3, 512, 2048)),) * 2
    bundle = with_engines(
        a={**SM_86, "profiles": two},
        b={**SM_90, "profiles": two},
        c={"hardware_compatibility": "ampere_plus", "profiles": two},
    )
    done = export_repository(bundle, tmp_path / "repo", Options(backend="tensorrt_plan", name="m", network_instances=2))
    config = config_of(done.repository / "m_network")
    assert config.backend == "tensorrt" and config.max_batch_size == 4
    assert dict(config.cc_model_filenames) == {"8.6": "sm_86.plan", "9.0": "sm_90.plan"}
    assert config.default_model_filename == "model.plan"
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.profile)) == (group.KIND_GPU, 2, ["0", "1"])
    contents = {
        name: (done.repository / f"m_network/1/{name}.plan").read_text() for name in ("sm_86", "sm_90", "model")
    }
    assert contents == {"sm_86": "a", "sm_90": "b", "model": "c"}


def test_an_engine_folded_for_one_size_has_no_batch_axis(with_engines: Callable[..., Bundle], tmp_path: Path) -> None:
    shape = (1, 3, 160, 224)
    bundle = with_engines(a={"folded": True, "profiles": (Profile(shape, shape, shape),)})
    done = export_repository(bundle, tmp_path / "repo", Options(backend="tensorrt_plan", name="m"))
    config = config_of(done.repository / "m_network")
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [1, 3, -1, -1] and list(config.output[0].dims) == [1, 150, -1, -1]


def test_versions_are_added_and_old_ones_stay(with_engines: Callable[..., Bundle], tmp_path: Path) -> None:
    repository, options = tmp_path / "repo", Options(backend="tensorrt_plan", name="m")
    export_repository(with_engines(a=SM_86), repository, options)
    kept = [repository / "m_network/1/sm_86.plan", repository / "m/config.pbtxt"]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in kept]
    done = export_repository(with_engines(b=SM_90), repository, options)
    assert done.version == 2
    # An unchanged configuration is left alone too: a server that watches would load the model again.
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in kept] == before
    assert (repository / "m_network/2/sm_90.plan").is_file()
    # The configuration is that of all versions, so both engines are in it.
    network = config_of(repository / "m_network")
    assert dict(network.cc_model_filenames) == {"8.6": "sm_86.plan", "9.0": "sm_90.plan"}
    assert "| `m` | 1, 2 |" in (repository / "README.md").read_text()
    (repository / "m/9").mkdir()
    assert export_repository(with_engines(b=SM_90), repository, options).version == 10


def test_scheduling_may_change_with_a_version(sample: Bundle, tmp_path: Path) -> None:
    export_repository(sample, tmp_path / "repo", OPTIONS)
    done = export_repository(sample, tmp_path / "repo", dataclasses.replace(OPTIONS, instances=3, cache=True))
    config = config_of(done.repository / "street")
    assert config.instance_group[0].count == 3 and config.response_cache.enable
    assert sorted(path.name for path in (done.repository / "street_decode").iterdir() if path.is_dir()) == ["1"]


def other_classes(bundle: Bundle, folder: Path) -> Bundle:
    shutil.copytree(bundle.path, folder)
    classes = ("another", *bundle.manifest.classes[1:])
    text = dataclasses.replace(bundle.manifest, classes=classes).to_json()
    (folder / MANIFEST).write_text(text)
    return Bundle(folder)


def test_a_version_that_would_change_the_others_is_refused(sample: Bundle, tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    export_repository(sample, repository, OPTIONS)
    before = files(repository)
    with pytest.raises(OutputError, match="for the back end python"):
        export_repository(sample, repository, dataclasses.replace(OPTIONS, backend="onnxruntime"))
    with pytest.raises(OutputError, match="other classes"):
        export_repository(other_classes(sample, tmp_path / "other"), repository, OPTIONS)
    (repository / "foreign/1").mkdir(parents=True)
    with pytest.raises(OutputError, match="did not write it"):
        export_repository(sample, repository, Options(name="foreign"))
    assert files(repository) == before


def test_a_failed_copy_leaves_the_repository_as_it_was(
    sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repo"
    export_repository(sample, repository, OPTIONS)
    before = files(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        export_repository(sample, repository, OPTIONS)
    assert files(tmp_path) == before
    with pytest.raises(OutputError, match="No space left"):
        export_repository(sample, tmp_path / "deep/er/repo", OPTIONS)
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("engines", "options", "words"),
    [
        ({}, {}, "holds no TensorRT engine"),
        ({"a": {"flavour": "tensorrt_rtx"}}, {"artifacts": ("a",)}, "not a TensorRT engine"),
        ({"a": SM_86, "b": SM_86}, {}, "for the same GPU"),
        ({"a": SM_86, "b": {**SM_90, "folded": True}}, {}, "one size only"),
        ({"a": {"profiles": (Profile(TWO, TWO, TWO),)}}, {}, "batches from"),
        ({"a": {"compute_capability": None}}, {}, "for which GPU"),
        ({"a": SM_86}, {"artifacts": ("model.onnx",)}, "not a TensorRT engine"),
        ({"a": {**SM_86, "output": "mask"}}, {"artifacts": ("a",)}, "gives masks"),
        ({"a": {**SM_86, "output": "mask"}}, {}, "holds no TensorRT engine"),
    ],
    ids=["none", "rtx", "twice", "folded", "batch", "gpu", "onnx", "mask", "masks alone"],
)
def test_engines_that_cannot_be_served(
    with_engines: Callable[..., Bundle], tmp_path: Path, engines: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        export_repository(with_engines(**engines), tmp_path / "repo", Options(backend="tensorrt_plan", **options))
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("backend", ["python", "onnxruntime"])
def test_a_graph_that_ends_in_masks_cannot_be_served(sample_copy: Bundle, tmp_path: Path, backend: str) -> None:
    fp32 = sample_copy.artifact("model.onnx")
    sample_copy.add("fp32.mask.onnx", dataclasses.replace(fp32, output="mask"))
    with pytest.raises(InputError, match="gives masks"):
        export_repository(sample_copy, tmp_path / "repo", Options(backend=backend, artifacts=("fp32.mask.onnx",)))
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "../x"], "cannot be a model's name"),
        (["--name", ".x"], "cannot be a model's name"),
        (["--artifact", "nothing"], "no artifact 'nothing'"),
        (["--artifact", "model.onnx", "model.onnx"], "serves one artifact"),
        (["--instances", "0"], "--instances: '0' is not"),
        (["--max-batch", "0"], "--max-batch: '0' is not"),
        (["--delay", "-1"], "--delay: '-1' is not"),
        (["--timeout", "nan"], "--timeout"),
        (["--versions", "newest"], "--versions: 'newest' names no versions"),
        (["--warmup", "big"], "--warmup: 'big'"),
        (["--warmup", "9999x9999"], "warm-up image"),
        (["--gpu"], "--gpu does not go with"),
    ],
)
def test_bad_arguments_leave_nothing(
    sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["triton", str(sample.path), "-o", str(tmp_path / "new/repo"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command(sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["triton", str(sample.path), "-o", str(tmp_path / "repo"), "--warmup", "none", "--json"]
    assert main(command) == main(command) == 0
    first, second = capsys.readouterr().out.strip().split("\n}\n", 1)
    assert json.loads(first + "\n}")["version"] == 1
    assert json.loads(second) == {
        "repository": str(tmp_path / "repo"),
        "model": "dpt_tiny_street",
        "version": 2,
        "models": ["dpt_tiny_street"],
    }


def test_names_fit_folders_and_urls(sample: Bundle) -> None:
    bundle = Bundle(sample.path)
    bundle.manifest = dataclasses.replace(bundle.manifest, name="../dpt ViT/ä")
    assert model_name(bundle, None) == "dpt_ViT"


def test_a_container_gets_as_many_instances_as_its_quota_allows(
    sample: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "denseport.runtime.serving.triton.variants.usable_cpus", lambda: 3
    )  # of more in the affinity mask
    (model,) = served_models(sample, Options())
    assert [group.count for group in model.config.instance_group] == [3]


def test_an_artifact_for_openvino_is_served_by_python_alone(sample_copy: Bundle) -> None:
    fp32 = sample_copy.artifact("model.onnx")
    what = {"target": "openvino", "made_of": "model.onnx", "proof": (), "record": {}}
    sample_copy.add("fp32.openvino", dataclasses.replace(fp32, **what))
    named = {"artifacts": ("fp32.openvino",)}
    with pytest.raises(InputError, match=r"fp32\.openvino runs on OpenVINO, not on ONNX Runtime"):
        served_models(sample_copy, Options(backend="onnxruntime", **named))
    (front,) = served_models(sample_copy, Options(backend="python", **named))
    assert front.files["bundle/model.onnx"] == sample_copy.path / "model.onnx"
