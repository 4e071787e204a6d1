"""Files made to harm: nothing in them runs, nothing outside the bundle is read, nothing acts on the terminal.

docs/security.md says which of these tests holds which promise.
"""

from __future__ import annotations

import copyreg
import dataclasses
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from build_records import build_record
from bundles import engine_artifact
from hostile import enter, external, graph, repack, rewrite, tiny_bundle, tiny_model
from onnx import ModelProto, TensorProto, helper, numpy_helper

from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import BundleError, DenseportError, InputError, MachineError
from denseport.runtime.media.images import write_image
from denseport.runtime.media.inputs import find_inputs
from denseport.runtime.segmenter import Segmenter

IMAGE = np.full((16, 24, 3), (0, 255, 0), np.uint8)
WEIGHTS = {"a": torch.arange(16.0)}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle")


def segment(bundle: Bundle) -> np.ndarray:
    with Segmenter(bundle, artifact="model.onnx", threads=1) as segmenter:
        return segmenter(IMAGE).mask


def test_the_tiny_bundle_is_a_real_one(bundle: Bundle) -> None:
    assert (segment(bundle) == 1).all()  # green


# Pickles, opcode by opcode. In each, `touch MARKER` would run if the callable were ever resolved.


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


SYSTEM = b"cposix\nsystem\n"
STACKED = text("posix") + text("system") + b"\x93"
GADGETS: dict[str, Callable[[bytes], bytes]] = {
    "GLOBAL, REDUCE": lambda run: SYSTEM + b"(" + run + b"tR",
    "STACK_GLOBAL, REDUCE": lambda run: STACKED + b"(" + run + b"tR",
    "STACK_GLOBAL, TUPLE1": lambda run: STACKED + run + b"\x85R",
    "INST": lambda run: b"(" + run + b"iposix\nsystem\n",
    "OBJ": lambda run: b"(" + SYSTEM + run + b"o",
    "NEWOBJ": lambda run: SYSTEM + run + b"\x85\x81",
    "NEWOBJ_EX": lambda run: SYSTEM + run + b"\x85}\x92",
    "memo": lambda run: SYSTEM + b"q\x00" + b"0h\x00" + run + b"\x85R",
    "BUILD of a module": lambda run: b"cos\n__dict__\n}" + text("x") + run + b"sb",
    "nested name": lambda run: text("torch") + text("serialization.os.system") + b"\x93" + run + b"\x85R",
    "torch's own loader": lambda run: b"ctorch\nload\n" + run + b"\x85R",
    "hub": lambda run: b"ctorch.hub\nload\n" + run + b"\x85R",
    "dill": lambda run: b"cdill._dill\n_create_function\n" + run + b"\x85R",
    "joblib": lambda run: b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81" + run + b"b",
    "cloudpickle": lambda run: b"ccloudpickle.cloudpickle\n_builtin_type\n" + run + b"\x85R",
    "numpy's loader": lambda run: b"cnumpy\nload\n" + run + b"\x85R",
    "the stub's own class": lambda run: b"cdenseport.export.checkpoint.file\n_Stub\n" + run + b"\x85R",
    "EXT1": lambda run: b"\x82\xf0" + run + b"\x85R",
    "EXT2": lambda run: b"\x83\xf0\x00" + run + b"\x85R",
    "EXT4": lambda run: b"\x84\xf0\x00\x00\x00" + run + b"\x85R",
    "PERSID": lambda run: b"Psomething\n",
    "BINPERSID": lambda run: run + b"Q",
}


@pytest.fixture
def extension() -> Iterator[None]:
    """The extension registry, which pickles name callables by, with `os.system` in it."""
    copyreg.add_extension("posix", "system", 0xF0)
    yield
    copyreg.remove_extension("posix", "system", 0xF0)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", GADGETS)
def test_no_opcode_calls_anything(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    body = GADGETS[name](text(f"touch {marker}"))
    pickled = b"\x80\x02}" + text("state_dict") + body + b"s."
    if name in ("GLOBAL, REDUCE", "STACK_GLOBAL, REDUCE", "INST", "OBJ", "memo", "EXT1"):
        pickle.loads(pickled)  # the gadget works where nobody looks
        assert marker.exists()
        marker.unlink()
    (tmp_path / "bare.pth").write_bytes(pickled)
    magic = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    (tmp_path / "legacy.pth").write_bytes(magic + pickled + pickle.dumps([], 2))
    torch.save({}, tmp_path / "empty.pth")
    repack(tmp_path / "empty.pth", tmp_path / "zip.pth", lambda n, d: pickled if n.endswith("data.pkl") else d)
    for file in ("bare.pth", "legacy.pth", "zip.pth"):
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / file)
    assert not marker.exists()


# Zip files


def test_zip_files_that_lie_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"state_dict": WEIGHTS}, whole)
    other = ("whole/data/0", np.ones(16, np.float32).tobytes())
    files = {
        "compressed": repack(whole, tmp_path / "1.pth", compression=zipfile.ZIP_DEFLATED),
        "a bomb": repack(
            whole,
            tmp_path / "2.pth",
            lambda name, data: bytes(1 << 26) if "/data/" in name else data,
            compression=zipfile.ZIP_DEFLATED,
        ),
        "outside": repack(whole, tmp_path / "4.pth", extra=(("../../outside", b"x"),)),
        "absolute": repack(whole, tmp_path / "5.pth", extra=((str(tmp_path / "absolute"), b"x"),)),
        # 16 numbers are there, 2^20 are claimed: reading them would read the process's memory.
        "too short": repack(whole, tmp_path / "6.pth", lambda _, data: data.replace(b"K\x10", b"J\x00\x00\x10\x00")),
    }
    with pytest.warns(UserWarning, match="Duplicate name"):
        files["twice"] = repack(whole, tmp_path / "3.pth", extra=(other,))
    before = sorted(tmp_path.iterdir())
    for file in files.values():
        with pytest.raises(CheckpointError):
            read_checkpoint(file)
    assert sorted(tmp_path.iterdir()) == before and not (tmp_path.parent / "outside").exists()


def test_a_tensor_of_more_numbers_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1).expand(1 << 36)}}, tmp_path / "c.pth")
    assert (tmp_path / "c.pth").stat().st_size < 2000
    with pytest.raises(CheckpointError, match="claims more numbers"):
        read_checkpoint(tmp_path / "c.pth")


def test_names_that_would_be_terabytes_when_written_are_refused(tmp_path: Path) -> None:
    names: list[object] = ["x"]
    for _ in range(12):
        names = [names] * 10
    torch.save({"state_dict": WEIGHTS, "meta": {"CLASSES": names}}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="class names are not all texts"):
        read_checkpoint(tmp_path / "c.pth")
    torch.save({"state_dict": WEIGHTS, "meta": {"exp_name": names}}, tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth").experiment == ""


# ONNX files in a bundle whose manifest is the attacker's: every hash is right


def with_weights(location: str) -> bytes:
    total = helper.make_node("ReduceSum", ["image"], ["sum"], keepdims=0)
    add = helper.make_node("Add", ["sum", "w"], ["logits"])
    return graph(total, add, initializers=(external(location),)).SerializeToString()


@pytest.mark.parametrize("where", ["beside", "above", "absolute", "link", "device", "round about", "address"])
def test_weights_outside_of_what_was_verified_are_refused_by_us(bundle: Bundle, tmp_path: Path, where: str) -> None:
    """In one place, before ONNX Runtime, onnx or onnx_ir look at the file."""
    (tmp_path / "secret").write_bytes(bytes(48))
    (bundle.path / "link").symlink_to("../secret")
    location = {
        "beside": "unlisted",
        "above": "../secret",
        "absolute": str(tmp_path / "secret"),
        "link": "link",
        "device": "/dev/zero",
        "round about": "./../bundle/../secret",
        "address": "*/_ORT_MEM_ADDR_/*",
    }[where]
    changed = enter(bundle, with_weights(location), unlisted=bytes(48))
    with pytest.raises(BundleError, match="which the manifest does not list"):
        changed.verified("model.onnx")


def test_weights_in_a_file_that_the_manifest_lists_are_read(bundle: Bundle) -> None:
    from denseport.runtime.system.files import sha256_of

    changed = enter(bundle, with_weights("w.data"), **{"w.data": bytes(48)})
    digest = sha256_of(bundle.path / "w.data")
    rewrite(changed, lambda data: data["artifacts"]["model.onnx"]["files"].update({"w.data": digest}))
    assert Bundle(bundle.path).verified("model.onnx").name == "model.onnx"


@pytest.mark.parametrize("place", ["attribute", "subgraph", "function", "sparse"])
def test_no_corner_of_a_model_hides_a_path(bundle: Bundle, place: str) -> None:
    model = tiny_model()
    tensor = external("../secret")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    if place == "attribute":
        model.graph.node.append(constant)
    elif place == "subgraph":
        branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)])
        model.graph.node.append(helper.make_node("If", ["w"], ["x"], then_branch=branch, else_branch=branch))
    elif place == "function":
        model.functions.append(helper.make_function("d", "F", [], ["c"], [constant], [helper.make_opsetid("", 20)]))
    else:
        sparse = model.graph.sparse_initializer.add()
        sparse.values.CopyFrom(tensor)
    with pytest.raises(BundleError, match=r"\.\./secret"):
        enter(bundle, model.SerializeToString()).verified("model.onnx")


def endless() -> ModelProto:
    """A loop that says it runs 2^62 times and is over at once only if its condition is looked at; and needs a shape."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.INT64, [2]),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.INT64, [2]),
        ],
    )
    trips = numpy_helper.from_array(np.array(2**62, np.int64), "trips")
    go = numpy_helper.from_array(np.array(False), "go")
    start = numpy_helper.from_array(np.array([1, 1], np.int64), "start")
    loop = helper.make_node("Loop", ["trips", "go", "start"], ["logits"], body=body)
    return graph(loop, initializers=(trips, go, start), output=TensorProto.INT64)


def constant_of_shape(*shape: int) -> ModelProto:
    sizes = numpy_helper.from_array(np.array(shape, np.int64), "shape")
    return graph(helper.make_node("ConstantOfShape", ["shape"], ["logits"]), initializers=(sizes,))


GRAPHS: dict[str, tuple[Callable[[], ModelProto], type[DenseportError], str]] = {
    "unknown operator": (
        lambda: graph(helper.make_node("Evil", ["image"], ["logits"], domain="x.y"), domains=("x.y",)),
        BundleError,
        "cannot load it",
    ),
    "2^50 numbers": (lambda: constant_of_shape(1 << 20, 1 << 30), DenseportError, "memory ran out|cannot run it"),
    "another rank": (lambda: constant_of_shape(3, 3), BundleError, "gave an array"),
    "another batch": (lambda: constant_of_shape(2, 3, 4, 6), BundleError, "gave an array"),
    "no numbers": (lambda: constant_of_shape(1, 3, 0, 0), BundleError, "gave an array"),
    "a loop": (endless, BundleError, "gave an array"),
    "texts": (
        lambda: graph(
            helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.STRING), output=TensorProto.STRING
        ),
        BundleError,
        "not a segmentation network",
    ),
    "NaN": (
        lambda: graph(
            helper.make_node("Conv", ["image", "w"], ["c"], strides=[4, 4]),
            helper.make_node("Log", ["c"], ["logits"]),
            initializers=(helper.make_tensor("w", TensorProto.FLOAT, [3, 3, 1, 1], [-1.0] * 9),),
        ),
        BundleError,
        "not finite",
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_that_are_no_network_are_refused(bundle: Bundle, name: str) -> None:
    make, kind, words = GRAPHS[name]
    with pytest.raises(kind, match=words):
        segment(enter(bundle, make().SerializeToString()))


@pytest.mark.parametrize("data", [b"", b"\x00", b"hello", b"\xff" * 100, b"\x3a\x7f", b"\x0b" * 9])
def test_what_is_no_protobuf_is_refused(bundle: Bundle, data: bytes) -> None:
    with pytest.raises(BundleError, match="no ONNX model"):
        enter(bundle, data).verified("model.onnx")


# Bundles


def test_an_engine_that_was_swapped_after_the_build_is_not_opened(bundle: Bundle) -> None:
    (bundle.path / "x.engine").write_bytes(b"other machine code")
    entry = dataclasses.asdict(engine_artifact("x.engine", build_record()))
    rewrite(bundle, lambda data: data["artifacts"].update({"x.engine": entry}))
    with pytest.raises(BundleError, match=r"x\.engine: altered"):
        Segmenter(bundle.path, artifact="x.engine")


def test_a_pipe_in_the_place_of_a_file_does_not_keep_us_waiting(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "model.onnx").unlink()
    os.mkfifo(bundle.path / "model.onnx")
    with pytest.raises(BundleError, match="missing"):
        bundle.verified("model.onnx")
    (bundle.path / MANIFEST).unlink()
    os.mkfifo(bundle.path / MANIFEST)
    with pytest.raises(BundleError, match="not an ordinary file"):
        Bundle(bundle.path)
    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / "images/x.png")
    with pytest.raises(InputError, match="no image or video"):
        find_inputs([str(tmp_path / "images")])


def test_a_manifest_without_end_is_not_read(bundle: Bundle) -> None:
    with (bundle.path / MANIFEST).open("r+b") as file:
        file.truncate(1 << 40)  # of holes
    with pytest.raises(BundleError, match="larger than 64 MiB"):
        Bundle(bundle.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(name="x\x1b[2J"),
        lambda data: data.update(classes=["a\ndenseport: PASS", "b", "c"]),
        lambda data: data.update(classes=["\u202egnp", "b", "c"]),
        lambda data: data.update(classes=["\ud800", "b", "c"]),
        lambda data: data["preprocess"][0].update(size=[2**40, 2**40]),
        lambda data: data["preprocess"][1].update(mean=[1e999, 0, 0]),
        lambda data: data.update(budgets={"fp32": float("nan")}),
        lambda data: data.update(parameters=10**400),
    ],
)
def test_manifests_with_values_that_harm_are_refused(
    bundle: Bundle, change: Callable[[dict[str, object]], object]
) -> None:
    with pytest.raises(BundleError):
        Bundle(rewrite(bundle, change))


def test_records_of_any_kind_are_shown_or_refused_in_words(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    for record in ({"accuracy": {"mIoU": "x"}}, {"audit": 3}, {"calibration": []}, {"verdict": []}, {"checks": 1}):
        rewrite(bundle, lambda data, record=record: data["artifacts"]["model.onnx"].update(record=record))
        code, err = main(["inspect", str(bundle.path)]), capsys.readouterr().err
        assert code == 0 or ((code == 2 and "record" in err) or "verdict" in err)


@pytest.mark.parametrize(
    "record",
    [
        {"calibration": 3},
        {"calibration": {"budget": {"miou": 0.5}}, "form": {}},
        {"calibration": {"budget": {"x": 1}}, "form": {"loss": {"error": 0.1, "agreement": 1.0}}},
        {"calibration": {"budget": {"miou": 0.5}}, "form": {"loss": {"error": 0.1, "agreement": "all"}}},
    ],
)
def test_a_calibration_record_of_another_form_is_refused_before_anything_is_measured(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], record: dict[str, object]
) -> None:
    rewrite(bundle, lambda data: data["artifacts"]["model.onnx"].update(record=record))
    write_image(tmp_path / "p.png", np.zeros((16, 16, 3), np.uint8))
    command = ["calibrate", str(bundle.path), "--images", str(tmp_path / "p.png"), "--measure", "model.onnx"]
    assert main(command) == 2 and "record" in capsys.readouterr().err


# Terminals


def test_nothing_that_is_printed_acts_on_the_terminal(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nasty = "\x1b]0;owned\x07\x9b2J\r\u202e"
    rewrite(bundle, lambda data: data["provenance"].update(checkpoint=nasty, warnings=["one\ntwo" + nasty]))
    assert main(["inspect", str(bundle.path)]) == 0
    assert main(["inspect", str(bundle.path), "--json"]) == 0
    assert main(["inspect", str(tmp_path / nasty)]) == 2
    assert main(["inspect", str(bundle.path), f"--{nasty}"]) == 2
    shown = "".join(capsys.readouterr())
    assert "\\x1b]0;owned\\x07" in shown and "\\u202e" in shown and "warning        one two" in shown
    assert not set(nasty) & set("\x1b\x07\x9b\r\u202e") & set(shown)


def test_running_out_of_memory_is_told_not_traced(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from denseport.runtime.cli.commands import inspect

    for error in (MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("[..] can't allocate memory: you")):

        def fail(_: object, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr(inspect, "run", fail)
        assert main(["inspect", str(bundle.path)]) == MachineError.exit_code
        err = capsys.readouterr().err
        assert "ran out of memory" in err and "Traceback" not in err
    monkeypatch.setattr(inspect, "run", lambda _: json.loads("{"))
    with pytest.raises(ValueError):  # a fault of ours is not hidden
        main(["inspect", str(bundle.path)])
