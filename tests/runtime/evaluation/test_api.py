"""`denseport.runtime.evaluate`: what the command prints, as values; a failed gate is a result; the command's errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from progress_told import Told
from support import ASSETS

from denseport.runtime import Evaluation, Gate, evaluate
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import DenseportError, InputError
from denseport.runtime.evaluation.dataset import open_dataset
from denseport.runtime.evaluation.task import LongRun, evaluate_shard

STREET = ASSETS / "street"
RUN_TO_RUN = ("seconds", "images_per_second", "session_share")  # what differs though nothing else does


def lasting(result: dict[str, Any]) -> dict[str, Any]:
    """A result as JSON gives it back, without what differs from run to run."""
    found = json.loads(json.dumps(result, allow_nan=False))
    return {name: value for name, value in found.items() if name not in RUN_TO_RUN}


def test_the_command_prints_what_the_function_returns(
    sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gate that fails with exit code 1 is a result with reasons."""
    report = tmp_path / "report"
    options = ["--gate", "99", "--budget", "1", "--limit", "3", "--report", str(report), "--json"]
    assert main(["eval", str(sample.path), "--data", str(STREET), *options]) == 1
    printed = json.loads(capsys.readouterr().out)
    found = evaluate(sample.path, STREET, gate=Gate(99, budget=1), limit=3, report=report)
    assert lasting(found.to_dict()) == lasting(printed)
    assert set(RUN_TO_RUN) <= printed.keys()
    assert found.gate is not None and not found.gate.passed and found.gate.budget == 1
    assert printed["gate"]["reasons"] == list(found.gate.reasons) != []
    assert (found.mIoU, found.mAcc, found.aAcc) == (printed["mIoU"], printed["mAcc"], printed["aAcc"])
    assert [row.name for row in found.per_class] == [row["name"] for row in printed["per_class"]]
    assert found.report is not None and found.report.parent == report and found.report.stat().st_size > 1000
    assert capsys.readouterr().out == "", "the function prints nothing"


def test_a_data_set_that_is_open_is_the_same_as_its_path(sample: Bundle) -> None:
    by_path = evaluate(sample, str(STREET), gate=Gate(20), workers=1)
    opened = evaluate(sample, open_dataset(STREET), gate=Gate("20"))
    assert lasting(by_path.to_dict()) == lasting(opened.to_dict())
    assert by_path.gate is not None and by_path.gate.passed and by_path.agreement is None


def test_the_result_is_recorded_on_request(sample_copy: Bundle) -> None:
    evaluate(sample_copy, STREET, limit=1)
    assert "accuracy" not in Bundle(sample_copy.path).artifact("model.onnx").record
    found = evaluate(sample_copy.path, STREET, limit=2, gate=Gate(1), record=True)
    kept = Bundle(sample_copy.path).artifact("model.onnx").record["accuracy"]
    assert (kept["mIoU"], kept["images"], kept["gate"]["passed"]) == (found.mIoU, 2, True)


def test_progress_counts_images_and_tells_the_figure_so_far(sample: Bundle) -> None:
    told = Told()
    found = evaluate(sample, STREET, limit=3, progress=told)
    (steps,) = told.phases.values()
    assert [(done, total) for done, total, _ in steps] == sorted((done, 3) for done, _, _ in steps)
    assert steps[-1] == (3, 3, f"mIoU {found.mIoU:.2f}")


def test_shards_add_up_to_the_whole(sample: Bundle, tmp_path: Path) -> None:
    dataset, states = open_dataset(STREET), (tmp_path / "1.npz", tmp_path / "2.npz")
    shards = [evaluate_shard(sample, dataset, (i, 2), state) for i, state in enumerate(states, start=1)]
    assert [shard.images for shard in shards] == [2, 2] and shards[0].to_dict()["of"] == 4
    merged = evaluate(sample, dataset, run=LongRun(merge=states))
    whole = evaluate(sample, dataset)
    assert merged.session == "2 states merged"
    assert {**lasting(merged.to_dict()), "session": ""} == {**lasting(whole.to_dict()), "session": ""}
    with pytest.raises(InputError, match="exists"):
        evaluate_shard(sample, dataset, (1, 2), states[0])


BAD: list[tuple[list[str], Callable[[Bundle], Evaluation]]] = [
    (["--gate", "model.onnx"], lambda bundle: evaluate(bundle, STREET, gate=Gate("model.onnx"))),
    (["--gate", "101"], lambda bundle: evaluate(bundle, STREET, gate=101)),
    (["--gate", "nan"], lambda bundle: evaluate(bundle, STREET, gate="nan")),
    (["--gate=-5"], lambda bundle: evaluate(bundle, STREET, gate=-5.0)),
    (["--gate", "20", "--artifact", ""], lambda bundle: evaluate(bundle, STREET, gate=20, artifact="")),
    (["--gate", "reference"], lambda bundle: evaluate(bundle, STREET, gate=Gate())),
    (["--gate", "fp16.onnx"], lambda bundle: evaluate(bundle, STREET, gate=Gate("fp16.onnx"))),
    (["--artifact", "fp16.onnx"], lambda bundle: evaluate(bundle, STREET, artifact="fp16.onnx")),
    (["--protocol", "best"], lambda bundle: evaluate(bundle, STREET, protocol="best")),
    (["--split", "nowhere"], lambda bundle: evaluate(bundle, STREET, split="nowhere")),
    (["--ignore-index", "70000"], lambda bundle: evaluate(bundle, STREET, ignore_index=70000)),
    (["--report", __file__], lambda bundle: evaluate(bundle, STREET, report=__file__)),
    (["--state", __file__], lambda bundle: evaluate(bundle, STREET, run=LongRun(state=Path(__file__)))),
]


@pytest.mark.parametrize(("options", "call"), BAD, ids=[" ".join(options)[:30] for options, _ in BAD])
def test_bad_arguments_raise_what_the_command_prints(
    sample: Bundle,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    call: Callable[[Bundle], Evaluation],
) -> None:
    with pytest.raises(DenseportError) as caught:
        call(sample)
    assert main(["eval", str(sample.path), "--data", str(STREET), *options]) == caught.value.exit_code == 2
    assert capsys.readouterr().err == f"denseport: error: {caught.value}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"against": 101.0}, "mIoU in percent or AbsRel cannot be 101.0"),
        ({"against": float("nan")}, "mIoU in percent or AbsRel cannot be nan"),
        ({"against": "101"}, "mIoU in percent or AbsRel cannot be 101.0"),
        ({"budget": -1}, "budget cannot be -1"),
        ({"budget": "1"}, "budget cannot be '1'"),
        ({"agreement": 98}, "agreement cannot be 98"),
    ],
)
def test_a_gate_refuses_what_is_out_of_range(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Gate(**arguments)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("workers", value) for value in (0, -1, None, "2", 1.5)),
        *(("limit", value) for value in ("1", 1.5, True)),
        *(("ignore_index", value) for value in (2.5, -1, "255")),
        ("reduce_zero_label", "yes"),
        ("report", ""),
    ],
)
def test_an_argument_that_is_none_is_refused_by_name(sample: Bundle, argument: str, value: Any) -> None:
    """Without workers nothing would ever come out; an empty path is the current folder's."""
    with pytest.raises(InputError, match=re.escape(f"{argument} cannot be {value!r}\n  ")):
        evaluate(sample, STREET, **{argument: value})


def test_numbers_of_numpy_and_paths_as_text_are_taken(sample: Bundle, tmp_path: Path) -> None:
    numbers = {"limit": np.int64(2), "ignore_index": np.int64(255), "reduce_zero_label": np.False_}
    numbers |= {"workers": np.uint8(1), "threads": np.int32(1)}
    plain = evaluate(sample, STREET, limit=2, gate=Gate(20), reduce_zero_label=False)
    found = evaluate(sample, STREET, gate=np.float32(20), run=LongRun(state=str(tmp_path / "a")), **numbers)  # type: ignore[arg-type]
    assert lasting(found.to_dict()).items() >= {**lasting(plain.to_dict()), "session": found.session}.items()
    evaluate_shard(sample, open_dataset(STREET), (1, 1), str(tmp_path / "b"))
    merged = evaluate(sample, STREET, run=LongRun(merge=str(tmp_path / "b")))  # type: ignore[arg-type]
    assert merged.measurement.images == len(open_dataset(STREET))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"limit": 0}, "limit cannot be 0"),
        ({"limit": -1}, "limit cannot be -1"),
        ({"masks": "masks"}, "the data set is open already"),
        ({"reduce_zero_label": False}, "the data set is open already"),
    ],
)
def test_arguments_that_would_be_lost_are_refused(sample: Bundle, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        evaluate(sample, open_dataset(STREET), **arguments)
