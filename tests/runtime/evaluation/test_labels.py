"""How labels are read, against mmsegmentation 1.2.2 and a slow copy of its rules; what masks leave unknown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hostile import enter, graph, rewrite, tiny_bundle
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from denseport.runtime import Gate, evaluate
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import DatasetError, InputError
from denseport.runtime.evaluation.dataset import Dataset, Sample, open_dataset
from denseport.runtime.evaluation.metrics import ConfusionMatrix


def mask_file(folder: Path, labels: NDArray[np.uint8]) -> Sample:
    path = folder / "m.png"
    cv2.imwrite(str(path), labels)
    return Sample("m", path, path)


def test_a_label_map_gives_mmsegmentations_metrics(shared: Path, tmp_path: Path) -> None:
    case = json.loads((shared / "cases/mmseg/cases.json").read_text())["label_map"]
    arrays = np.load(shared / "cases/mmseg/cases.npz")
    sample = mask_file(tmp_path, arrays["label_map_gt"])
    label_map = {int(old): new for old, new in case["label_map"].items()}
    matrix = ConfusionMatrix(6)
    matrix.update(Dataset((sample,), label_map=label_map).read_mask(sample, 6), arrays["label_map_prediction"])
    scores = matrix.scores(tuple("abcdef"))
    assert {name: round(getattr(scores, name), 2) for name in case["metrics"]} == case["metrics"]


def as_upstream(stored: int, reduce: bool, label_map: dict[int, int], ignore: int) -> int | None:
    """A label on its way through LoadAnnotations and IoUMetric of 1.2.2; None: not counted."""
    label = stored
    if reduce:
        label = 255 if label == 0 else label
        label -= 1
        label = 255 if label == 254 else label
    label = label_map.get(label, label)
    return None if label == ignore else label


@given(
    st.booleans(),
    st.dictionaries(st.sampled_from([0, 1, 2, 3, 7, 255]), st.sampled_from([0, 1, 2, 3, 255]), max_size=5),
    st.sampled_from([255, 255, 0, 2, 7]),
)
def test_labels_take_the_way_they_take_upstream(reduce: bool, label_map: dict[int, int], ignore: int) -> None:
    if ignore != 255 and (reduce or 255 in label_map.values()):
        return  # there upstream counts what was dropped; a test below holds that this is told
    dataset = Dataset((Sample("m", Path("m"), Path("m")),), reduce, ignore, label_map)
    classes, is_ignored = dataset._classes_of(255)
    for stored in range(256):
        expected = as_upstream(stored, reduce, label_map, ignore)
        assert (None if is_ignored[stored] else int(classes[stored])) == expected, stored


def test_what_becomes_no_class_names_the_map(tmp_path: Path) -> None:
    sample = mask_file(tmp_path, np.array([[0, 7]], np.uint8))
    with pytest.raises(DatasetError, match=r"labels 7 are outside 0\.\.1, once the label map 0:1 is applied") as caught:
        Dataset((sample,), label_map={0: 1}).read_mask(sample, 2)
    assert "--label-map none" in str(caught.value.remedy)


@pytest.mark.parametrize("classes", [1, 2])
def test_no_remedy_makes_a_single_class_vanish(tmp_path: Path, classes: int) -> None:
    sample = mask_file(tmp_path, np.array([[0, classes]], np.uint8))
    with pytest.raises(DatasetError) as caught:
        Dataset((sample,)).read_mask(sample, classes)
    assert "reduce-zero-label" not in str(caught.value.remedy)


# The bundle's data set


def data_of(folder: Path, labels: NDArray[np.uint8]) -> Path:
    """One image of 32 x 64 whose left half is red and whose right half is green, and its mask."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32, 2] = image[:, 32:, 1] = 255
    for kind, array in (("images", image), ("masks", labels)):
        (folder / kind).mkdir(parents=True)
        cv2.imwrite(str(folder / kind / "a.png"), array)
    return folder


def halves(left: int, right: int) -> NDArray[np.uint8]:
    labels = np.full((32, 64), left, np.uint8)
    labels[:, 32:] = right
    return labels


def two_classes(folder: Path) -> Bundle:
    """Red is background, green is leaf."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 3, 1, 1], [1, 0, 0, 0, 1, 0])
    node = helper.make_node("Conv", ["image", "w"], ["logits"], kernel_shape=[1, 1], strides=[4, 4])
    bundle = enter(tiny_bundle(folder), graph(node, initializers=(weights,)).SerializeToString())
    colours = [[0, 0, 0], [0, 255, 0]]
    return Bundle(rewrite(bundle, lambda data: data.update(classes=["background", "leaf"], palette=colours)))


def test_the_manifests_labels_are_carried_out_and_overridden(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, bundle = data_of(tmp_path / "data", halves(9, 4)), tiny_bundle(tmp_path / "bundle")
    with pytest.raises(DatasetError, match="labels 4, 9 are outside"):
        evaluate(bundle, data)
    rewrite(bundle, lambda each: each.update(label_map={"9": 0, "4": 1}))
    found = evaluate(bundle.path, data)
    assert (found.mIoU, found.label_map, found.warnings) == (100.0, {9: 0, 4: 1}, ())
    assert found.to_dict()["label_map"] == {"9": 0, "4": 1}
    opened = evaluate(bundle.path, open_dataset(data, manifest=Bundle(bundle.path).manifest))
    assert opened.mIoU == 100.0 and opened.label_map == found.label_map
    assert main(["eval", str(bundle.path), "--data", str(data), "--label-map", "9:1", "4:255"]) == 0
    text = capsys.readouterr()
    assert "masks: label map 9:1 4:255" in text.out and "ignored: 50.00 % of the labels\n" in text.out
    assert "the labels were read with label_map {9: 1, 4: 255}; the bundle's data set has {9: 0, 4: 1}" in text.out
    assert f"data: 1 image of {data / 'images'} with masks of {data / 'masks'}" in text.out
    assert text.err.startswith(f"1 image of {data / 'images'}")
    with pytest.raises(DatasetError, match=r"labels 4, 9 are outside 0\.\.2"):
        evaluate(bundle.path, data, label_map={})
    assert main(["eval", str(bundle.path), "--data", str(data), "--label-map", "none"]) == 2
    for odd in (["0:1", "0:2"], ["none", "0:1"]):
        assert main(["eval", str(bundle.path), "--data", str(data), "--label-map", *odd]) == 2
    told = evaluate(bundle.path, data, reduce_zero_label=True, label_map={8: 0, 3: 1}, ignore_index=0).warnings
    assert "the labels were read with reduce_zero_label True; the bundle's data set has False" in told
    assert "the labels were read with ignore_index 0; the bundle's data set has 255" in told
    rewrite(bundle, lambda each: each.update(label_map={"9": 0}, ignore_index=4))
    assert evaluate(bundle.path, data).ignored == 0.5
    told = evaluate(bundle.path, data, label_map={9: 255, 4: 1}, ignore_index=2)
    assert any("mmsegmentation ignores 2 alone" in text for text in told.warnings)


def test_masks_of_0_and_255_are_told_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The only foreground is ignored, so that a gate says nothing of it."""
    data, bundle = data_of(tmp_path / "data", halves(0, 255)), two_classes(tmp_path / "bundle")
    found = evaluate(bundle, data, gate=Gate(100.0))
    assert (found.mIoU, found.ignored, found.never_in_masks, found.never_predicted) == (100.0, 0.5, ["leaf"], [])
    (warning,) = found.warnings
    assert warning.endswith("no mask holds the class 'leaf': if 255 is that class, add --label-map 255:1")
    unknown = ("1 of 2 classes never occurred in the masks: leaf", "50.0 % of the labels were ignored")
    assert found.gate is not None and found.gate.passed and found.gate.notes[:2] == unknown
    strict = evaluate(bundle, data, gate=Gate(100.0, strict=True)).gate
    assert strict is not None and not strict.passed
    assert strict.reasons == tuple(f"{each} (strict)" for each in unknown)
    options = ["eval", str(bundle.path), "--data", str(data), "--gate", "100"]
    assert [main([*options, *more]) for more in ([], ["--strict"])] == [0, 1]
    text = capsys.readouterr().out
    assert "(left out: 1 class that no counted pixel of masks or predictions has)" in text
    assert text.count(f"warning: {warning}") == 2 and "never in the masks: 1 of 2 classes (leaf)" in text
    assert "ignored: 50.00 % of the labels, which are 255\n" in text
    whole = evaluate(bundle, data, label_map={255: 1}, gate=Gate(100.0, strict=True))
    assert whole.gate is not None and whole.gate.passed and whole.ignored == 0
    assert main(["eval", str(bundle.path), "--data", str(data), "--strict"]) == 2, "without a gate nothing fails"


def test_a_class_that_is_nowhere_is_named_in_data_and_on_the_page(tmp_path: Path) -> None:
    data, bundle = data_of(tmp_path / "data", halves(0, 1)), tiny_bundle(tmp_path / "bundle")
    found = evaluate(bundle, data, report=tmp_path / "report")
    result = found.to_dict()
    assert (result["never_in_masks"], result["never_predicted"], result["ignored"]) == (["blue"], ["blue"], 0.0)
    assert found.report is not None
    page = found.report.read_text()
    for words in ("<dt>Never in the masks</dt><dd>blue</dd>", "<dt>Ignored</dt><dd>0.00 % of the labels</dd>"):
        assert words in page


def test_labels_ignored_up_to_a_tenth_are_no_matter_for_the_gate(tmp_path: Path) -> None:
    labels = halves(0, 1)
    labels[:3] = 255  # 3 of 32 rows
    found = evaluate(two_classes(tmp_path / "b"), data_of(tmp_path / "d", labels), gate=Gate(99.0, strict=True))
    assert found.gate is not None and found.gate.passed and found.ignored == 3 / 32
    labels[3] = 255
    found = evaluate(Bundle(tmp_path / "b"), data_of(tmp_path / "e", labels), gate=Gate(99.0, strict=True))
    assert found.gate is not None and found.gate.reasons == ("12.5 % of the labels were ignored (strict)",)


def test_a_state_of_other_labels_is_not_taken_up(tmp_path: Path) -> None:
    from denseport.runtime.evaluation.task import open_task

    data, bundle = data_of(tmp_path / "data", halves(0, 1)), tiny_bundle(tmp_path / "bundle")
    dataset = open_dataset(data)
    keys = set()
    for each in (dataset, dataclasses.replace(dataset, label_map={0: 1}), dataclasses.replace(dataset, ignore_index=1)):
        with open_task(bundle, each, None, "reference", None, None, 1) as task:
            keys.add(task.key)
    assert len(keys) == 3


# What a data set takes


SAMPLE = Sample("m", Path("m"), Path("m"))


def test_labels_are_16_bits_wide() -> None:
    found = Dataset((SAMPLE,), label_map={0: 65535, 65535: 0})
    assert found.label_map == {0: 65535, 65535: 0}
    for label_map in ({65536: 0}, {-1: 0}, {0: 65536}, {0: -1}, {0: 1.5}, {"a": 0}):
        with pytest.raises(
            InputError, match=r"label_map's (label|class) cannot be .*\n  Give a whole number from 0 to 65535"
        ):
            Dataset((SAMPLE,), label_map=label_map)  # type: ignore[arg-type]


def test_zero_is_dropped_or_not() -> None:
    for yes in (True, np.True_, 1):
        assert Dataset((SAMPLE,), reduce_zero_label=yes).reduce_zero_label is True  # type: ignore[arg-type]
    for other in (2, -1, None, "no"):
        with pytest.raises(DatasetError, match="reduce_zero_label cannot be"):
            Dataset((SAMPLE,), reduce_zero_label=other)  # type: ignore[arg-type]


def test_with_16_bits_255_is_a_class_like_any_other() -> None:
    classes, is_ignored = Dataset((SAMPLE,), True, 65535)._classes_of(65535)
    assert classes[[1, 2, 255, 256, 65534]].tolist() == [0, 1, 254, 255, 65533]
    assert np.flatnonzero(is_ignored).tolist() == [0, 65535]


@pytest.mark.parametrize(
    ("labels", "classes", "reduce", "remedy"),
    [
        ([0, 3], 3, False, "If 0 means unlabelled, as in ADE20K, add --reduce-zero-label."),
        ([0, 4], 3, False, "If 4 marks pixels to ignore, add --ignore-index 4."),
        ([0, 2], 2, False, "If 2 marks pixels to ignore, add --ignore-index 2."),
        ([1, 9], 3, True, "If 9 marks pixels to ignore, add --ignore-index 8."),
        ([0, 4, 5], 3, False, "Use the bundle that was trained for these labels, or masks of its classes."),
    ],
)
def test_the_remedy_for_a_label_that_is_no_class(
    tmp_path: Path, labels: list[int], classes: int, reduce: bool, remedy: str
) -> None:
    sample = mask_file(tmp_path, np.array([labels], np.uint8))
    with pytest.raises(DatasetError) as caught:
        Dataset((sample,), reduce).read_mask(sample, classes)
    assert caught.value.remedy == remedy
    # As it says, the file can be read then.
    if "--ignore-index" in remedy:
        ignored = int(remedy.rstrip(".").rpartition(" ")[2])
        assert Dataset((sample,), reduce, ignored).read_mask(sample, classes).max() == 255


def test_a_split_is_of_a_layout(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\n")
    for options in ({"masks": tmp_path}, {"list_file": tmp_path / "list.txt"}):
        with pytest.raises(
            DatasetError, match="--split training applies to a layout, and does not go with --masks or --list"
        ):
            open_dataset(tmp_path, split="training", **options)
