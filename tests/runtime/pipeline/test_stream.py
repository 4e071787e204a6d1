"""Pipelined sequences: order, back-pressure, errors in their place, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import pytest
from support import ASSETS

from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.errors import BundleError, ImageError, InputError
from denseport.runtime.media.images import read_image
from denseport.runtime.pipeline.stream import pipelined
from denseport.runtime.segmenter import Segmenter

PATIENCE = 60.0  # seconds after which a test counts as hung


@pytest.fixture(scope="module")
def segment(sample: Bundle) -> Iterator[Segmenter]:
    with Segmenter(sample, threads=1) as segmenter:
        yield segmenter


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("denseport-")]
    assert not left


def in_time(work: Callable[[], Any]) -> Any:
    """What ``work`` gives; fails where it hangs."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "hangs"
    assert results, "raised"
    return results[0]


def drain(stream: Generator[Any]) -> tuple[list[Any], BaseException | None]:
    got: list[Any] = []
    try:
        got.extend(stream)  # extend keeps what came before an error
    except BaseException as err:
        return got, err
    return got, None


STAGES = {"double": lambda x: 2 * x, "add": lambda x: x + 1}


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_results_are_in_order(depth: int) -> None:
    assert in_time(lambda: list(pipelined(range(300), STAGES, depth))) == [2 * i + 1 for i in range(300)]
    assert in_time(lambda: list(pipelined([], STAGES, depth))) == []


def test_stages_work_at_the_same_time() -> None:
    """Each stage waits for the other, which it would do for ever if they took turns."""
    meeting = threading.Barrier(2, timeout=PATIENCE)
    first = iter([True])

    def second_stage(x: int) -> int:
        meeting.wait() if x < 5 else None
        return x

    def first_stage(x: int) -> int:
        # The first item has nobody to meet.
        None if next(first, False) else meeting.wait()
        return x

    assert in_time(lambda: list(pipelined(range(6), {"a": first_stage, "b": second_stage}, 1))) == list(range(6))


def test_an_unread_stream_pauses() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    stream = pipelined(source(), STAGES, depth=2)
    assert next(stream) == 1
    time.sleep(0.2)
    assert len(taken) <= 1 + 2 * (2 + 1) + 1  # read; each stage's queue and the one in hand; the source's next
    assert in_time(lambda: next(stream)) == 3
    stream.close()


@pytest.mark.parametrize("where", ["source", "double", "add"])
@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_an_error_comes_after_the_results_before_it(where: str, error: BaseException) -> None:
    def check(here: str, x: int) -> int:
        if here == where and x == 20:
            raise error
        return x

    stages = {"double": lambda x: check("double", x), "add": lambda x: check("add", x)}
    got, raised = in_time(lambda: drain(pipelined((check("source", i) for i in range(50)), stages, 2)))
    assert got == list(range(20)) and raised is error


@pytest.mark.parametrize("depth", [0, 2])
def test_several_workers_work_at_the_same_time_and_keep_the_order(depth: int) -> None:
    meeting = threading.Barrier(3, timeout=PATIENCE)

    def meet(x: int) -> int:
        meeting.wait()
        time.sleep(0.001 * (x % 3))
        return x

    stages = {"first": lambda x: x, "meet": meet, "last": lambda x: 2 * x}
    found = in_time(lambda: list(pipelined(range(60), stages, depth, {"meet": 3, "last": 2})))
    assert found == [2 * x for x in range(60)]


@pytest.mark.parametrize("where", ["source", "first", "last"])
def test_an_error_of_several_workers_comes_after_the_results_before_it(where: str) -> None:
    error = ValueError("bad")

    def check(here: str, x: int) -> int:
        if here == where and x == 20:
            raise error
        if here == "first" and x in (18, 19):
            time.sleep(0.05)  # done when the error is there already
        return x

    stages = {"first": lambda x: check("first", x), "last": lambda x: check("last", x)}
    source = (check("source", i) for i in range(50))
    got, raised = in_time(lambda: drain(pipelined(source, stages, 0, {"first": 4, "last": 4})))
    assert got == list(range(20)) and raised is error


def test_an_end_within_a_stage_is_not_taken_for_the_end_of_the_items() -> None:
    got, raised = in_time(lambda: drain(pipelined([[1], [], [2]], {"first": lambda x: next(iter(x))}, 1)))
    assert got == [1] and isinstance(raised, RuntimeError)


@pytest.mark.parametrize("workers", [1, 3])
def test_leaving_early_ends_the_threads(workers: int) -> None:
    before = threading.active_count()

    def leave(how: str) -> int:
        stream = pipelined(iter(range(10**9)), STAGES, 2, dict.fromkeys(STAGES, workers))
        if how == "unused":
            return 0
        for _ in stream:
            break
        if how == "close":
            stream.close()
        elif how == "throw":
            with pytest.raises(KeyError):
                stream.throw(KeyError())
        return 0  # "drop": the last reference goes

    for how in ("unused", "close", "throw", "drop"):
        in_time(lambda how=how: leave(how))
        assert threading.active_count() <= before


def test_a_stream_gives_the_masks_of_single_calls(segment: Segmenter) -> None:
    paths = sorted((ASSETS / "street").rglob("*.jpg"))[:2]
    items = [paths[0], read_image(paths[-1]), paths[-1], read_image(paths[0])[:80, :90]]
    results = in_time(lambda: list(segment.stream(items, top_k=2)))
    for item, result in zip(items, results, strict=True):
        np.testing.assert_array_equal(result.mask, segment(item).mask)
        assert result.top_classes.shape[0] == 2 and result.timings.infer > 0
    assert results[0].timings.decode > 0 == results[1].timings.decode


def test_a_source_may_fill_one_buffer_with_frame_after_frame(sample: Bundle) -> None:
    def frames() -> Iterator[np.ndarray]:
        buffer = np.empty((40, 50, 3), np.uint8)
        for level in range(5):
            buffer[:] = level
            yield buffer

    with Segmenter(sample, protocol="native:48:32", threads=1) as segment:
        assert [np.unique(result.image).tolist() for result in segment.stream(frames())] == [[i] for i in range(5)]


@pytest.mark.parametrize("smoothing", [0.0, 0.6])
def test_logits_that_are_not_finite_make_no_mask(sample: Bundle, smoothing: float) -> None:
    class Spoilt(Session):
        description = "spoilt"

        def run(self, image: np.ndarray) -> np.ndarray:
            return np.full((1, 150, 4, 5), np.nan, np.float32)

        def close(self) -> None:
            pass

        def largest_batch(self, height: int, width: int) -> None:
            return None

    protocol = parse_protocol("fixed:80x64", sample.manifest)
    with Segmenter(sample, artifact="spoilt", protocol=protocol, session=Spoilt()) as segment:
        _, error = drain(segment.stream([np.zeros((40, 50, 3), np.uint8)] * 2, smoothing=smoothing))
    assert isinstance(error, BundleError) and "not finite" in str(error)


def test_a_bad_image_ends_a_stream_in_its_place(segment: Segmenter) -> None:
    good = np.zeros((40, 50, 3), np.uint8)
    got, raised = in_time(lambda: drain(segment.stream([good, good, ASSETS / "nowhere.jpg", good])))
    assert len(got) == 2 and isinstance(raised, ImageError)


def test_closing_the_segmenter_ends_its_streams(sample: Bundle) -> None:
    segmenter = Segmenter(sample, threads=1)
    image = np.zeros((40, 50, 3), np.uint8)
    stream = segmenter.stream(image for _ in range(10**6))
    next(stream)
    in_time(lambda: segmenter.close() or True)
    _, raised = in_time(lambda: drain(stream))
    assert isinstance(raised, InputError) and "closed" in raised.message


@pytest.mark.parametrize("arguments", [{"depth": 0}, {"smoothing": 1.0}, {"smoothing": -0.1}, {"top_k": -1}])
def test_arguments_are_checked_before_the_first_image(segment: Segmenter, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        segment.stream([], **arguments)
