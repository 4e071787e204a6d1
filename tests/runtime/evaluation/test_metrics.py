from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from denseport.runtime.errors import DatasetError, InputError
from denseport.runtime.evaluation import metrics
from denseport.runtime.evaluation.metrics import ConfusionMatrix, mean_iou

SEVEN = tuple("abcdefg")


def measured(n_classes: int, *pairs: tuple[NDArray[np.generic], NDArray[np.generic]]) -> ConfusionMatrix:
    matrix = ConfusionMatrix(n_classes)
    for truth, pred in pairs:
        matrix.update(truth, pred)
    return matrix


def random_pair(seed: int, n_classes: int, dtype: type = np.uint8) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """A truth with ignored pixels, a prediction with values that are no class."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, (9, 11)).astype(dtype)
    truth[rng.random(truth.shape) < 0.2] = np.iinfo(dtype).max
    pred = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, n_classes + 2, truth.shape)).astype(dtype)
    return truth, pred


@pytest.mark.parametrize(("tag", "pred"), [("reduced", "pred"), ("pred_out_of_range", "pred_oob")])
def test_areas_and_scores_are_those_of_mmsegmentation(oracle: Path, tag: str, pred: str) -> None:
    arrays = np.load(oracle / "iou_metric.npz")
    expected = json.loads((oracle / "iou_metric.json").read_text())[tag]
    matrix = measured(7, *((arrays[f"label_{i}"], arrays[f"{pred}_{i}"]) for i in range(3)))

    found = {"intersect": matrix.intersect, "union": matrix.union, "label": matrix.label}
    found["pred"] = matrix.union + matrix.intersect - matrix.label
    for area, areas in found.items():
        np.testing.assert_array_equal(areas, expected["totals"][area], area)
    scores = matrix.scores(SEVEN)
    assert {name: round(getattr(scores, name), 2) for name in expected["summary"]} == expected["summary"]
    for name in ("IoU", "Acc"):
        found = [getattr(row, name) for row in scores.per_class]
        np.testing.assert_allclose(found, 100 * np.array(expected["per_class"][name]), rtol=1e-6)


@pytest.mark.parametrize(("n_classes", "dtype"), [(5, np.uint8), (255, np.uint8), (5, np.uint16), (300, np.uint16)])
def test_counts_are_those_of_a_plain_loop(n_classes: int, dtype: type) -> None:
    truth, pred = random_pair(1, n_classes, dtype)
    matrix = np.zeros((n_classes, n_classes), int)
    outside = np.zeros(n_classes, int)
    for true, predicted in zip(truth.ravel().tolist(), pred.ravel().tolist(), strict=True):
        if true == np.iinfo(dtype).max:
            continue
        if predicted < n_classes:
            matrix[true, predicted] += 1
        else:
            outside[true] += 1

    found = measured(n_classes, (truth, pred))
    np.testing.assert_array_equal(found.matrix, matrix)
    np.testing.assert_array_equal(found.outside, outside)
    assert outside.any() or n_classes > 5


def test_truth_and_prediction_may_differ_in_type() -> None:
    truth, pred = random_pair(2, 5)
    assert measured(5, (truth, pred.astype(np.uint16))) == measured(5, (truth, pred))
    truth = np.minimum(truth, 4).astype(np.uint16)
    assert measured(300, (truth, pred)) == measured(300, (truth, pred.astype(np.uint16)))


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=3))
def test_partial_results_add_up_in_any_grouping(seeds: list[int]) -> None:
    pairs = [random_pair(seed, 4) for seed in seeds]
    whole = measured(4, *pairs)
    for first, second, third in itertools.permutations(pairs):
        one, two = measured(4, first), measured(4, second, third)
        one.merge(two)
        assert one == whole
        assert two == measured(4, second, third), "merging changed the other matrix"


def test_matrices_of_other_classes_neither_add_up_nor_are_equal() -> None:
    with pytest.raises(InputError, match="3 and 4 classes"):
        ConfusionMatrix(3).merge(ConfusionMatrix(4))
    assert ConfusionMatrix(3) != ConfusionMatrix(4)
    assert ConfusionMatrix(3) != "a matrix"


def test_predictions_that_are_no_class_count_in_a_comparison() -> None:
    truth = np.array([[0, 1]], np.uint8)
    right, outside = measured(2, (truth, truth)), measured(2, (truth, truth), (truth[:, :1], np.array([[7]], np.uint8)))
    np.testing.assert_array_equal(right.matrix, outside.matrix)
    assert right != outside
    outside.merge(ConfusionMatrix(2))
    assert outside.outside.tolist() == [1, 0]


def test_absent_classes_are_nan_and_left_out_of_the_means() -> None:
    truth = np.array([[0, 0, 1, 255]], np.uint8)
    pred = np.array([[0, 2, 1, 3]], np.uint8)
    scores = measured(4, (truth, pred)).scores(("sky", "road", "car", "tree"))
    assert scores.mIoU == pytest.approx((50 + 100 + 0) / 3)  # "car" is predicted, so it has a union
    assert scores.mAcc == pytest.approx((50 + 100) / 2)
    assert scores.aAcc == pytest.approx(200 / 3)

    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["per_class"][2] == {"name": "car", "IoU": 0.0, "Acc": None, "pixels": 0}
    assert plain["per_class"][3] == {"name": "tree", "IoU": None, "Acc": None, "pixels": 0}
    assert plain["mIoU"] == scores.mIoU


def test_nothing_measured_has_no_score() -> None:
    assert ConfusionMatrix(2).scores("ab").to_dict()["mIoU"] is None
    assert np.isnan(mean_iou(np.zeros((5, 3)), np.zeros((5, 3)))).all()


def test_bad_maps_are_refused() -> None:
    matrix = ConfusionMatrix(3)
    zeros = np.zeros((4, 6), np.uint8)
    with pytest.raises(DatasetError, match="truth is 6 x 4, the prediction 4 x 6"):
        matrix.update(zeros, zeros.T)
    with pytest.raises(DatasetError, match=r"labels \[3, 9\] outside 0\.\.2"):
        matrix.update(np.array([[3, 9, 255, 1]], np.uint8), np.zeros((1, 4), np.uint8))
    with pytest.raises(TypeError, match="int64"):
        matrix.update(zeros, zeros.astype(np.int64))
    with pytest.raises(TypeError, match="256 classes do not fit a uint8 truth"):
        ConfusionMatrix(256).update(zeros, zeros)
    with pytest.raises(InputError, match="2 class names"):
        matrix.scores("ab")
    assert matrix == ConfusionMatrix(3), "a refused image left counts behind"


def test_all_names_what_is_public() -> None:
    defined = {
        name
        for name, value in vars(metrics).items()
        if getattr(value, "__module__", None) == metrics.__name__ and not name.startswith("_")
    }
    assert set(metrics.__all__) == defined | {"LabelMap"}
