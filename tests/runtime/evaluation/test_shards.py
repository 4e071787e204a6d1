"""Evaluation and labelling in parts: shards merged, and Ray with lost actors, against one process."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ASSETS

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import DatasetError, InputError, MachineError
from denseport.runtime.evaluation import shards
from denseport.runtime.evaluation.dataset import Dataset, Sample, open_dataset
from denseport.runtime.evaluation.measure import measure_dataset, measure_images
from denseport.runtime.evaluation.shards import RETRIES, Cluster, connect, measure_on_ray, plan_actors
from denseport.runtime.evaluation.state import Measurement, load_state, merge_states
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.machine import install_command

STREET = ASSETS / "street"


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The result of ``denseport eval``, without what differs from run to run."""
    assert main(["eval", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for name in ("seconds", "images_per_second", "session_share", "session"):
        del result[name]
    return dict(result)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


# Shards


def counted(key: str, images: Sequence[int], *, total: int = 9, file: Path | None = None) -> Measurement:
    """A state with those images of a fixed random data set, saved in ``file``."""
    state = Measurement(key, total, 5, with_fp32=True, file=file)
    for index in images:
        random = np.random.default_rng(index)
        truth, mask, fp32_mask = random.integers(0, 6, (3, 11, 7), np.uint8)
        truth[truth == 5] = 255
        state.add(index, truth, mask, fp32_mask, finite=bool(index % 4))
    state.save()
    return state


def assert_same_counts(first: Measurement, second: Measurement) -> None:
    assert first.confusion == second.confusion
    assert first.fp32_confusion == second.fp32_confusion
    np.testing.assert_array_equal(first.done, second.done)
    assert first.counts.keys() == second.counts.keys() and len(first.counts) == 10
    for name, rows in first.counts.items():
        np.testing.assert_array_equal(rows, second.counts[name])


@pytest.mark.parametrize("parts", [[range(9)], [[8, 1], [0, 2, 3, 4], [], [7, 6, 5]], [[i] for i in range(9)]])
def test_states_in_any_parts_and_order_add_up_to_the_whole(tmp_path: Path, parts: list[Sequence[int]]) -> None:
    paths = [tmp_path / f"{number}.npz" for number in range(len(parts))]
    for path, images in zip(paths, parts, strict=True):
        counted("k", images, file=path)
    whole = counted("k", range(9))
    for order in (paths, paths[::-1]):
        assert_same_counts(merge_states(order, "k"), whole)


def test_a_part_with_numbers_of_its_own_lands_on_its_images() -> None:
    whole, part = counted("k", [0, 1, 2]), Measurement("", 3, 5, with_fp32=True)
    source = counted("k", [7, 3, 5])
    part.confusion.merge(source.confusion)
    assert part.fp32_confusion is not None and source.fp32_confusion is not None
    part.fp32_confusion.merge(source.fp32_confusion)
    for name, rows in part.counts.items():
        rows[:] = source.counts[name][[7, 3, 5]]
    part.done[:] = source.done[[7, 3, 5]]
    whole.merge(part, np.array([7, 3, 5]))
    assert_same_counts(whole, counted("k", [0, 1, 2, 3, 5, 7]))


def test_a_merge_refuses_what_would_falsify_the_sum(tmp_path: Path) -> None:
    first, second, other = tmp_path / "first.npz", tmp_path / "second.npz", tmp_path / "other.npz"
    counted("k", range(4), file=first)
    counted("k", range(3, 8), file=second)
    counted("another", range(4, 9), file=other)
    with pytest.raises(InputError, match=r"second\.npz: counted twice: 1 image\n"):
        merge_states([first, second], "k")
    with pytest.raises(InputError, match="in none of the states: 5 of 9 images, such as number 5"):
        merge_states([first], "k")
    for path in (other, tmp_path / "missing.npz"):
        with pytest.raises(InputError, match=rf"{path.name}: is not a state of this measurement"):
            merge_states([first, path], "k")


def test_the_file_of_a_shard_is_as_small_as_the_shard(tmp_path: Path) -> None:
    one, all_of_them = tmp_path / "one.npz", tmp_path / "all.npz"
    counted("k", range(10), total=1000, file=one)
    counted("k", range(1000), total=1000, file=all_of_them)
    assert one.stat().st_size < all_of_them.stat().st_size / 10
    loaded = load_state(one, "k")
    assert loaded is not None
    assert_same_counts(loaded, counted("k", range(10), total=1000))


def test_shards_on_the_command_line_equal_one_run(
    sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(sample.path), "--data", str(STREET), "--gate", "20"]
    states = [str(tmp_path / f"{number}.npz") for number in (1, 2)]
    for number, state in enumerate(states, start=1):
        assert main(["eval", *common, "--shard", f"{number}/2", "--state", state]) == 0
        assert f"shard {number}/2: " in capsys.readouterr().out
    assert evaluated(capsys, *common, "--merge", *states) == evaluated(capsys, *common)
    assert "in none of the states" in refused(capsys, "eval", *common, "--merge", states[0])
    assert "counted twice" in refused(capsys, "eval", *common, "--merge", states[0], *states)
    assert "not a state of this" in refused(capsys, "eval", *common, "--limit", "2", "--merge", *states)
    assert "exists" in refused(capsys, "eval", *common, "--shard", "1/2", "--state", states[0])
    again = ["eval", *common, "--shard", "2/2", "--state", states[0], "--resume"]
    assert "holds another shard" in refused(capsys, *again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "1/2"], "--state FILE"),
        (["--shard", "99/99", "--state", "unused.npz"], "Make fewer shards"),
        (["--shard", "1/2", "--state", "unused.npz", "--record"], "--record needs all images"),
    ],
)
def test_shards_that_cannot_be_are_refused(
    sample: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, "eval", str(sample.path), "--data", str(STREET), *arguments)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "-1/2"])
def test_a_shard_is_one_of_n(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert "is not I/N" in refused(capsys, "eval", "bundle", "--data", "data", f"--shard={text}")


def test_a_merge_is_of_a_gpu_only_where_every_image_was() -> None:
    """Whichever machine adds the parts up: what a CPU computed of an FP16 artifact was computed in FP32."""
    for on_gpu, expected in (((True, True), True), ((True, False), False), ((False, False), False)):
        whole, label = Measurement("", 2, 2, with_fp32=False), np.zeros((2, 2), np.uint8)
        for index, each in enumerate(on_gpu):
            part = Measurement("", 1, 2, with_fp32=False)
            part.add(0, label, label, None, finite=True, on_gpu=each)
            whole.merge(part, np.array([index]))
        assert whole.on_gpu is expected


# Failures


def damaged_street(folder: Path) -> tuple[Dataset, Path]:
    """The street images, one of them an empty file; and that file."""
    street, empty = open_dataset(STREET), folder / "empty.jpg"
    empty.touch()
    broken = Sample("broken", empty, street.samples[0].mask)
    return Dataset((*street.samples[:2], broken, *street.samples[2:]), street.reduce_zero_label), empty


def test_failures_are_collected_beside_the_counts_of_the_others(sample: Bundle, tmp_path: Path) -> None:
    segmenter, (dataset, empty) = Segmenter(sample), damaged_street(tmp_path)
    state, failures = Measurement("", len(dataset), 150, with_fp32=False), dict[int, str]()
    measure_images(dataset, segmenter, state, failures=failures)
    assert list(failures) == [2]
    assert str(empty) in failures[2]
    assert state.done.tolist() == [index != 2 for index in range(len(dataset))]
    assert state.confusion == measure_dataset(open_dataset(STREET), segmenter).confusion


# Devices


@pytest.mark.parametrize(
    ("nodes", "threads", "expected"),
    [
        ([{"CPU": 2.0}], None, Cluster(1, 2, 0)),
        ([{"CPU": 2.0}], 1, Cluster(2, 1, 0)),
        ([{"CPU": 64.0}, {"CPU": 6.0}, {"memory": 1e9}], None, Cluster(17, 4, 0)),
        ([{"CPU": 16.0, "GPU": 1.0}], None, Cluster(1, 16, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 1.0}, {"CPU": 32.0}], None, Cluster(9, 8, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}], 4, Cluster(8, 4, 1)),
    ],
)
def test_actors_by_device(nodes: list[dict[str, float]], threads: int | None, expected: Cluster) -> None:
    assert plan_actors(nodes, threads) == expected


@pytest.mark.parametrize("nodes", [[], [{"CPU": 2.0}], [{"CPU": 1.0, "GPU": 2.0}]])
def test_a_cluster_without_room_for_an_actor_is_refused(nodes: list[dict[str, float]]) -> None:
    with pytest.raises(MachineError):
        plan_actors(nodes, 3)


@pytest.mark.parametrize("command", [["eval", "--data", str(STREET)], ["run", str(STREET), "-o", "unused"]])
def test_without_ray_the_remedy_is_named(
    sample: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([command[0], str(sample.path), *command[1:], "--ray", "local"]) == 3
    assert install_command("ray") in capsys.readouterr().err


class OwnProcess:
    """A cluster of two actors that are this process; what travels is pickled."""

    count = 2

    def map(self, work: Any, items: Sequence[Any]) -> Iterator[Any]:
        handle = pickle.loads(pickle.dumps(work))(1)
        for start in range(0, len(items), 2):
            yield pickle.loads(pickle.dumps(handle(items[start : start + 2])))


def test_parts_that_travelled_add_up_and_failures_are_named(
    sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "connect", lambda address, threads: nullcontext(OwnProcess()))
    segmenter, (dataset, empty), state = Segmenter(sample, threads=1), damaged_street(tmp_path), tmp_path / "state.npz"
    found = Measurement("k", len(dataset), 150, with_fp32=True, file=state)
    with pytest.raises(DatasetError, match=rf"1 of {len(dataset)} images failed\n  {empty}: the file is empty"):
        measure_on_ray("anywhere", dataset, segmenter, found, threads=1)
    kept = load_state(state, "k")
    assert kept is not None and kept.done.tolist() == [index != 2 for index in range(len(dataset))]
    empty.write_bytes(dataset.samples[0].image.read_bytes())
    session = measure_on_ray("anywhere", dataset, segmenter, kept, threads=1)
    assert session.startswith("2 Ray actors: model.onnx on ONNX Runtime") and kept.measured == 1
    assert kept.seconds > kept.session_seconds > 0
    assert_same_counts(kept, measure_dataset(dataset, segmenter, fp32=segmenter))


# Ray itself


def actor_processes() -> set[int]:
    """The processes of the actors, by the title that Ray gives them."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::MapWorker"):
                found.add(int(folder.name))
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="Ray is not installed: scripts/test --ray")
    if {name for _, name in socket.if_nameindex()} - {"lo"}:
        pytest.skip("Ray listens on all interfaces: scripts/test --ray runs it in a network of its own")
    with connect("local", threads=1) as connected:
        yield connected


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
class TestRay:
    """One cluster of an actor a core; an image is a batch where there are few."""

    def test_an_actor_killed_in_the_middle_changes_no_count(self, cluster: Cluster, sample: Bundle) -> None:
        self.assert_equal_though_killed(open_dataset(STREET), sample, after=1)

    def test_so_with_a_hundred_images(self, cluster: Cluster, sample: Bundle, shared: Path) -> None:
        self.assert_equal_though_killed(open_dataset(shared / "data/street"), sample, after=20)

    def assert_equal_though_killed(self, dataset: Dataset, bundle: Bundle, after: int) -> None:
        segmenter = Segmenter(bundle)
        expected = measure_dataset(dataset, segmenter, fp32=segmenter)
        seen: set[int] = set()
        killed: list[int] = []

        def progress(done: int, total: int, note: str = "") -> None:
            running = actor_processes()
            seen.update(running)
            if done >= after and not killed:
                assert done < len(dataset)
                killed.append(min(running))
                os.kill(killed[0], signal.SIGKILL)

        found = Measurement("", len(dataset), 150, with_fp32=True)
        session = measure_on_ray("local", dataset, segmenter, found, threads=1, progress=progress)
        assert killed
        assert "1 thread" in session
        assert found.confusion == expected.confusion
        assert found.fp32_confusion == expected.fp32_confusion
        assert not found.counts["non_finite"].any()
        for name, rows in expected.counts.items():
            np.testing.assert_array_equal(found.counts[name], rows)

    def test_failed_files_are_listed_and_a_mended_run_resumes(
        self, cluster: Cluster, sample: Bundle, tmp_path: Path
    ) -> None:
        segmenter, (dataset, empty), state = Segmenter(sample), damaged_street(tmp_path), tmp_path / "state.npz"

        def run() -> Measurement:
            empty = Measurement("k", len(dataset), 150, with_fp32=False, file=state)
            found = load_state(state, "k") or empty
            measure_on_ray("local", dataset, segmenter, found, threads=1)
            return found

        with pytest.raises(DatasetError, match=rf"1 of {len(dataset)} images failed\n  {empty}: the file is empty"):
            run()
        empty.write_bytes(dataset.samples[0].image.read_bytes())
        mended = run()
        assert mended.measured == 1
        assert mended.confusion == measure_dataset(dataset, segmenter).confusion

    def test_the_command_line_measures_the_same(
        self, cluster: Cluster, sample: Bundle, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = [str(sample.path), "--data", str(STREET)]
        assert evaluated(capsys, *arguments, "--ray", "local", "--threads", "1") == evaluated(capsys, *arguments)

    def test_labels_are_the_same_files(
        self, cluster: Cluster, sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        images, empty = STREET / "images/validation", tmp_path / "empty.jpg"
        empty.touch()
        results = {}
        for name, extra in (("local", []), ("ray", ["--ray", "local", "--threads", "1"])):
            inputs = [str(empty), str(images)]
            assert main(["run", str(sample.path), *inputs, "-o", str(tmp_path / name), "--json", *extra]) == 2
            output = capsys.readouterr()
            assert f"1 of {1 + len(open_dataset(STREET))} inputs failed" in output.err
            assert f"{empty}: the file is empty" in output.err
            results[name] = json.loads(output.out.replace(str(tmp_path / name), "OUT"))
        assert results["ray"] == results["local"]
        written = {path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*.png")}
        assert len(written) == 2 * len(open_dataset(STREET))
        for path in written:
            assert (tmp_path / "ray" / path).read_bytes() == (tmp_path / "local" / path).read_bytes()

    def test_an_error_of_an_actor_comes_back_as_it_is(
        self, cluster: Cluster, sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["run", str(sample.path), str(STREET / "images"), "-o", str(tmp_path), "--provider", "Nothing"]
        assert main(arguments) != 0
        alone = capsys.readouterr().err
        assert main([*arguments, "--ray", "local", "--threads", "1"]) != 0
        assert alone.splitlines()[-2:] == capsys.readouterr().err.splitlines()[-2:]

    def test_an_image_that_kills_every_actor_ends_the_run(self, cluster: Cluster) -> None:
        start = time.monotonic()
        with pytest.raises(MachineError, match=f"lost its actor {RETRIES + 1} times"):
            list(cluster.map(Poison(), list(range(8))))
        assert time.monotonic() - start < 120

    def test_no_cluster_at_an_address(self, tmp_path: Path) -> None:
        pytest.importorskip("ray", reason="Ray is not installed: scripts/test --ray")
        program = "from denseport.runtime.evaluation.shards import connect\nwith connect('127.0.0.1:1'): pass"
        done = run_python(program, tmp_path)
        assert "MachineError: --ray 127.0.0.1:1: no Ray cluster answers" in done


@dataclass(frozen=True)
class Poison:
    """Work whose fourth item kills the actor, as a crash in native code would."""

    def open(self, threads: int) -> Callable[[Sequence[int]], int]:
        def handle(items: Sequence[int]) -> int:
            if 3 in items:
                os.kill(os.getpid(), signal.SIGKILL)
            return len(items)

        return handle


def run_python(program: str, home: Path) -> str:
    """What a Python program says in a process of its own."""
    environment = {**os.environ, "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    return done.stderr
