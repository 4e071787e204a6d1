"""Names, colours and numbers of labels: from a checkpoint, its configuration, or what was given for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from denseport.export.checkpoint.config import parse_config
from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.labels import check_count, labels_of, read_classes, read_palette
from denseport.export.errors import CheckpointError
from denseport.runtime.errors import InputError

TEST_1 = (
    "test_dataloader = dict(dataset=dict(type='{}', reduce_zero_label=True, metainfo=dict(classes=('a', 'b'), {})))"
)
TEST_0 = "data = dict(test=dict(type='{}', reduce_zero_label=True, classes=['a', 'b'], {}))"


def labels(meta: dict[str, Any], text: str = "", first: str = "meta") -> dict[str, Any]:
    return labels_of(Path("c.pth"), meta, parse_config(text), first=first)


@pytest.mark.parametrize("text", [TEST_1, TEST_0], ids=["1.x", "0.x"])
def test_the_configuration_names_classes_where_the_checkpoint_does_not(text: str) -> None:
    found = labels({}, text.format("BaseSegDataset", "palette=[[1, 2, 3], [4, 5, 6]]"))
    assert (found["classes"], found["palette"]) == (("a", "b"), ((1, 2, 3), (4, 5, 6)))
    assert found["reduce_zero_label"] is True and found["warnings"] == ()
    (warning,) = labels({}, text.format("mmseg.ADE20KDataset", "x=1"))["warnings"]
    assert "ADE20KDataset may have class names of its own" in warning


def test_what_counts_where_both_say_something() -> None:
    text, meta = TEST_1.format("X", "x=1"), {"classes": ["c"], "reduce_zero_label": False}
    found = labels(meta, text)
    assert (found["classes"], found["reduce_zero_label"], found["warnings"]) == (("c",), False, ())
    found = labels(meta, text, first="config")
    assert (found["classes"], found["reduce_zero_label"]) == (("a", "b"), True)
    assert any("names other classes" in warning for warning in found["warnings"])


@pytest.mark.parametrize("value", ["'names.txt'", "read('names.txt')"])
def test_names_that_the_configuration_does_not_hold_are_said(value: str) -> None:
    found = labels({}, f"test_dataloader = dict(dataset=dict(metainfo=dict(classes={value})))")
    assert found["classes"] is None
    assert "--classes" in found["warnings"][0] and "names.txt" in found["warnings"][0]


def test_a_configuration_without_a_data_set_names_nothing() -> None:
    for nothing in ("[]", "()", "None", "dict(type='ConcatDataset', datasets=[])", "dict(dataset=dict(datasets=[]))"):
        found = labels({}, f"test_dataloader = dict(dataset={nothing})")
        assert (found["classes"], found["palette"], found["warnings"]) == (None, None, ())


def test_label_map() -> None:
    assert labels({"label_map": {0: 1, 3: -1, 4: 255}})["label_map"] == {"0": 1, "3": 255, "4": 255}
    assert labels({"label_map": None})["label_map"] == {}
    for bad in ({"0": 1}, {0: "wall"}, {0: True}, [1]):
        with pytest.raises(CheckpointError, match="label_map does not map numbers"):
            labels({"label_map": bad})


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("", 255),
        ("test_evaluator = dict(type='IoUMetric', ignore_index=7)", 7),
        ("test_evaluator = [dict(type='Other', ignore_index=1), dict(type='mmseg.IoUMetric', ignore_index=7)]", 7),
        ("test_evaluator = dict(type='Evaluator', metrics=[dict(type='IoUMetric', ignore_index=0)])", 0),
        ("test_evaluator = dict(type='IoUMetric')\nval_evaluator = dict(ignore_index=7)", 255),
        ("val_evaluator = dict(type='IoUMetric', ignore_index=7)", 7),
        ("data = dict(test=dict(type='CustomDataset', ignore_index=7))", 7),
    ],
)
def test_ignore_index(text: str, index: int) -> None:
    assert labels({}, text)["ignore_index"] == index


def test_an_ignore_index_that_is_no_number_is_refused() -> None:
    with pytest.raises(CheckpointError, match="ignore_index 'x' is not a whole number"):
        labels({}, "test_evaluator = dict(ignore_index='x')")


@pytest.mark.parametrize("kind", ["uint8", "int64", "float32"])
def test_a_palette_of_numpy_is_read(tmp_path: Path, kind: str) -> None:
    colours = np.array([[1, 2, 3], [250, 5, 0]], kind)
    torch.save({"meta": {"PALETTE": colours}, "state_dict": {"a": torch.zeros(1)}}, tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth").palette == ((1, 2, 3), (250, 5, 0))
    for bad in (np.array([["red"]]), np.asfortranarray(colours), np.array([[1, 2, 300]]), np.array(3)):
        torch.save({"meta": {"PALETTE": bad}, "state_dict": {"a": torch.zeros(1)}}, tmp_path / "c.pth")
        with pytest.raises(CheckpointError, match="its palette"):
            read_checkpoint(tmp_path / "c.pth")


def test_classes_that_are_given(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("# the order of the labels\r\n\r\ntraffic light\r\n  fußweg \r\n".encode())
    assert read_classes(str(tmp_path / "names.txt")) == ("traffic light", "fußweg")
    assert read_classes("road, traffic light,car") == ("road", "traffic light", "car")
    assert read_classes("crack") == ("crack",)
    for bad, words in (("a,,b", "an empty name"), ("", "an empty name"), (str(tmp_path / "x.txt"), "no such file")):
        with pytest.raises(InputError, match=words):
            read_classes(bad)
    (tmp_path / "names.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read"):
        read_classes(str(tmp_path / "names.txt"))
    with pytest.raises(InputError, match=r"^/proc/self/mem: cannot be read: Input/output error"):
        read_classes("/proc/self/mem")


def test_a_palette_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "colours"
    for text in ("# comment\n1 2 3\n\n#FF0a00\n", "[[1, 2, 3],\n [255, 10, 0]]", "1,2,3\n255, 10, 0"):
        path.write_text(text)
        assert read_palette(path) == ((1, 2, 3), (255, 10, 0))
    for text, words in (
        *(("1 2", "line 1 is not a colour: '1 2'"), ("1 2 3\n#12345g\nred", "line 3 is not a colour")),
        ("1 2 256", "line 1"),
        *(("[[1, 2]]", "not a list of RGB"), ("[", "not JSON"), ("[" * 100_000, "not JSON")),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_palette(path)
    with pytest.raises(InputError, match="No such file"):
        read_palette(tmp_path / "none")


def test_counts_are_named() -> None:
    check_count("--classes", None, {3})
    with pytest.raises(InputError, match="--classes gives 2, but the network has 1 or 3 classes"):
        check_count("--classes", ["a", "b"], {1, 3})
