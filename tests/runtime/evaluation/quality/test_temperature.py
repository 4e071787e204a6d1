"""The temperature is the likeliest one, is kept in the bundle, and changes probabilities but no class."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hostile import enter, tiny_bundle, tiny_model
from onnx import numpy_helper
from postprocess import logits as full_logits
from support import ASSETS

from denseport.runtime import evaluate
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import InputError
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.evaluation.quality.temperature import find_temperature, fit_temperature
from denseport.runtime.evaluation.state import Extras
from denseport.runtime.segmenter import Segmenter

STREET = ASSETS / "street"
Call = Callable[..., tuple[int, str, str]]


def drawn(temperature: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn with the probabilities that they have at a temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (n, 6)).astype(np.float32)
    chances = torch.from_numpy(logits / temperature).softmax(1).numpy()
    return logits, (chances.cumsum(1) < rng.random((n, 1))).sum(1).clip(0, 5)


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_likeliest_and_nearly_the_one_drawn_with(true: float) -> None:
    logits, truth = drawn(true)
    found = find_temperature(logits, truth)
    assert found == pytest.approx(true, rel=0.1)
    values, labels = torch.from_numpy(logits).double(), torch.from_numpy(truth)

    def nll(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(values / temperature, labels))

    assert all(nll(found) < nll(found * factor) for factor in (0.9, 0.999, 1.001, 1.1))


def test_where_no_temperature_is_the_likeliest_none_is_kept() -> None:
    logits, _ = drawn(1.0, 50)
    for truth in (logits.argmax(1), logits.argmin(1)):  # always right: the colder the likelier; always wrong
        with pytest.raises(InputError, match="no temperature fits"):
            find_temperature(logits, truth)


def test_it_is_kept_for_scores_and_no_class_depends_on_it(sample_copy: Bundle, call: Call) -> None:
    path = sample_copy.path
    image = open_dataset(STREET).samples[0].image
    before = evaluate(sample_copy, STREET, limit=1, extras=Extras(scores=True))
    code, printed, _ = call("eval", path, "--data", STREET, "--limit", "1", "--fit-temperature", "--json")
    found = json.loads(printed)
    assert code == 0 and found["nll"][1] < found["nll"][0] and found["images"] == 1
    kept = Bundle(path)
    assert kept.manifest.temperature == found["temperature"] != 1
    assert kept.artifact("model.onnx").record["temperature"] == found
    after = evaluate(kept, STREET, limit=1, extras=Extras(scores=True))
    assert after.measurement.confusion == before.measurement.confusion
    # The sample stands for all pixels, in which the error is computed.
    assert (pytest.approx(found["ece"][0], abs=1), pytest.approx(found["ece"][1], abs=1)) == (before.ECE, after.ECE)
    assert f"{found['temperature']:.6g}, the temperature" in call("inspect", path)[1]
    with Segmenter(sample_copy) as plain, Segmenter(kept) as segment:
        first, second = (each(image, scores=True, top_k=3) for each in (plain, segment))
        np.testing.assert_array_equal(first.mask, second.mask)
        np.testing.assert_array_equal(first.top_classes, second.top_classes)
        logits = torch.from_numpy(full_logits(plain.predict(plain.read(image))[0]))
    expected = (logits / found["temperature"]).softmax(0).amax(0).numpy()
    np.testing.assert_allclose(second.scores, expected, atol=1e-5)
    assert second.top_scores is not None and second.scores is not None
    np.testing.assert_array_equal(second.top_scores[0], second.scores)
    assert call("eval", path, "--data", STREET, "--limit", "1", "--fit-temperature")[0] == 0, "it begins anew"
    assert Bundle(path).manifest.temperature == pytest.approx(found["temperature"], rel=1e-4)


@pytest.mark.parametrize(
    "option", ["--ece", "--boundaries", "--record", "--resume", "--gate=1", "--report=r", "--workers=2"]
)
def test_what_measures_is_refused_beside_it(sample: Bundle, call: Call, option: str) -> None:
    code, _, error = call("eval", sample.path, "--data", STREET, "--fit-temperature", option)
    assert code == 2 and option.split("=")[0] in error and "--fit-temperature does not" in error


def test_a_network_without_scores_is_refused(sample_copy: Bundle) -> None:
    sample_copy.manifest = replace(sample_copy.manifest, scores=False)
    with pytest.raises(InputError, match="there are no scores"):
        fit_temperature(sample_copy, STREET, limit=1)
    with pytest.raises(InputError, match="there are no scores to judge"):
        evaluate(sample_copy, STREET, limit=1, extras=Extras(scores=True))
    assert Bundle(sample_copy.path).manifest.temperature == 1


def test_logits_that_are_not_finite_are_told(tmp_path: Path) -> None:
    """No temperature is fitted on them, and no figure stands without a warning."""
    model = tiny_model()
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    bundle = enter(tiny_bundle(tmp_path / "bundle"), model.SerializeToString())
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        assert cv2.imwrite(str(tmp_path / folder / "a.png"), np.ones((32, 32), np.uint8))
    data = {"data": tmp_path / "images", "masks": tmp_path / "masks"}
    with pytest.raises(InputError, match=r"the logits of model\.onnx are not all finite"):
        fit_temperature(bundle, **data)
    assert Bundle(bundle.path).manifest.temperature == 1
    found = evaluate(bundle, **data, extras=Extras(scores=True))
    assert "the logits of 1 of 1 images are not finite: the figures mean little" in found.warnings
