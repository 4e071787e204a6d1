"""The class that applications embed: calls, batches, scores, regions, threads, asyncio, closing."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import postprocess
import pytest
from support import ASSETS, assert_same_classes

from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.preprocessing import normalisation, resized_to
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.errors import BundleError, ImageError, InputError
from denseport.runtime.media.images import read_image
from denseport.runtime.segmenter import Segmenter

IMAGE = next((ASSETS / "street").rglob("*.jpg"))
PATIENCE = 60.0  # seconds after which a test counts as hung


@pytest.fixture(scope="module")
def segment(sample: Bundle) -> Iterator[Segmenter]:
    with Segmenter(sample, threads=2) as segmenter:
        yield segmenter


@pytest.fixture(scope="module")
def quick(sample: Bundle) -> Iterator[Segmenter]:
    """The same on few pixels."""
    with Segmenter(sample, protocol="fixed:64x48", threads=2) as segmenter:
        yield segmenter


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Small ones, of two sizes and both orientations."""
    image = cv2.resize(read_image(IMAGE), (240, 180), interpolation=cv2.INTER_AREA)
    parts = [image[y : y + 90, x : x + 120] for y in (0, 45, 90) for x in (0, 60, 120)]
    return parts[:7] + [np.rot90(part).copy() for part in parts[7:]]


class Slow(Session):
    """A session of 7 classes that can be held up, for what a real one does too fast to be seen."""

    description = "slow"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.running, self.runs, self.closed = threading.Semaphore(0), 0, 0

    def run(self, image: np.ndarray) -> np.ndarray:
        self.runs += 1
        self.running.release()
        assert self.gate.wait(PATIENCE)
        return np.zeros((len(image), 150, 4, 4), np.float32)

    def largest_batch(self, height: int, width: int) -> int | None:
        return 2

    def close(self) -> None:
        self.closed += 1


def around(session: Any, bundle: Bundle, protocol: str = "fixed:32x32") -> Segmenter:
    return Segmenter(
        bundle, artifact="fake", protocol=parse_protocol(protocol, bundle.manifest), session=session, threads=1
    )


# Results.


def test_a_file_and_its_array_give_the_same_mask_and_all_stages_are_timed(segment: Segmenter) -> None:
    image = read_image(IMAGE)
    begun = time.perf_counter()
    of_file, of_array = segment(IMAGE), segment(image)
    assert 0 < of_file.timings.total + of_array.timings.total <= 1000 * (time.perf_counter() - begun)
    np.testing.assert_array_equal(of_file.mask, of_array.mask)
    assert of_array.image is image and of_file.artifact == "model.onnx"
    assert of_file.timings.decode > 0 == of_array.timings.decode
    parts = of_array.timings
    assert min(parts.preprocess, parts.infer, parts.postprocess) > 0
    assert parts.total == pytest.approx(parts.preprocess + parts.infer + parts.postprocess)
    assert of_array.scores is None and of_array.top_classes is None and of_array.top_scores is None


@pytest.mark.parametrize("protocol", ["reference", "native:64:42"])
def test_scores_are_the_softmax_of_the_resized_logits(sample: Bundle, images: list[np.ndarray], protocol: str) -> None:
    image = images[0]
    with Segmenter(sample, protocol=protocol, threads=1) as segmenter:
        result = segmenter(image, scores=True, top_k=3)
        logits = postprocess.logits(segmenter.predict(image)[0]).astype(np.float64)
        plain = segmenter(image)
    if protocol == "reference":  # an independent way to the same logits
        low = segmenter_logits(sample, image)
        size = (image.shape[1], image.shape[0])
        resized = [cv2.resize(plane, NETWORK_SIZE, interpolation=cv2.INTER_LINEAR) for plane in low]
        twice = np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in resized])
        np.testing.assert_allclose(logits, twice, atol=2e-3)
    chances = np.exp(logits - logits.max(0))
    chances /= chances.sum(0)
    order = np.argsort(-chances, axis=0, kind="stable")[:3]
    expected = np.take_along_axis(chances, order, 0)
    assert result.scores is not None and result.top_classes is not None and result.top_scores is not None
    assert result.scores.dtype == np.float32 and result.top_classes.shape == (3, *image.shape[:2])
    np.testing.assert_allclose(result.scores, expected[0], atol=2e-6)
    np.testing.assert_allclose(result.top_scores, expected, atol=2e-6)
    assert_same_classes(result.mask, plain.mask, logits)
    np.testing.assert_array_equal(result.top_classes[0], result.mask)
    clear = (expected[1] - expected[2] > 1e-4) & (expected[0] - expected[1] > 1e-4)
    np.testing.assert_array_equal(result.top_classes[1][clear], order[1][clear])


NETWORK_SIZE = (213, 160)  # 120 x 90 in the sample's scale of 1024 x 160


def segmenter_logits(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    """The network's own logits, by hand."""
    import onnxruntime

    step = normalisation(bundle.manifest.preprocess)
    mean, std = (np.array(values) for values in (step.mean, step.std))
    rgb = cv2.cvtColor(cv2.resize(image, NETWORK_SIZE, interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)
    tensor = ((rgb - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(bundle.verified("model.onnx"), providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"image": tensor})[0][0]
    return logits


def test_scores_of_multi_scale_testing_are_the_mean_probabilities(sample: Bundle, images: list[np.ndarray]) -> None:
    preprocess = resized_to(sample.manifest.preprocess, (128, 64), keep_ratio=True)
    protocol = parse_protocol("ms-flip", replace(sample.manifest, preprocess=preprocess))
    with Segmenter(sample, protocol=protocol, threads=2) as segmenter:
        result = segmenter(images[0][:60, :60], scores=True)
        chances = postprocess.probabilities(segmenter.predict(images[0][:60, :60]))
    assert result.scores is not None
    np.testing.assert_allclose(result.scores, chances.max(0), atol=1e-6)
    np.testing.assert_array_equal(result.mask, chances.argmax(0))


def test_more_classes_than_there_are_cannot_be_asked_for(segment: Segmenter, images: list[np.ndarray]) -> None:
    for top_k in (151, 1.5, True, "2"):
        with pytest.raises(InputError, match=f"top_k cannot be {top_k!r}\n  Give a whole number from 0 to 150"):
            segment(images[0], top_k=top_k)  # type: ignore[arg-type]
    assert segment(images[0][:20, :20], top_k=150).top_classes.shape == (150, 20, 20)  # type: ignore[union-attr]


def test_a_region_is_segmented_as_the_image_that_it_cuts_out(segment: Segmenter) -> None:
    image = read_image(IMAGE)
    result = segment(image, roi=(31, 17, 120, 77))
    np.testing.assert_array_equal(result.mask, segment(image[17:94, 31:151].copy()).mask)
    assert result.image.shape == (77, 120, 3)


@pytest.mark.parametrize("region", [(-1, 0, 5, 5), (0, 0, 0, 5), (200, 0, 60, 20), (0, 170, 20, 11)])
def test_a_region_outside_the_image_is_refused(segment: Segmenter, region: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match="does not lie inside the image of 240 x 180"):
        segment(np.zeros((180, 240, 3), np.uint8), roi=region)


def test_a_region_of_small_integers_does_not_overflow(segment: Segmenter) -> None:
    image = cv2.resize(read_image(IMAGE), (300, 40))
    region = np.array([250, 0, 40, 30], np.uint8)  # 250 + 40 is 34 in 8 bits
    np.testing.assert_array_equal(segment(image, roi=tuple(region)).mask, segment(image[:30, 250:290].copy()).mask)


@pytest.mark.parametrize("region", [(0.0, 0.0, 5.0, 5.0), (0, 0, 5), (0, 0, 5, 5, 5), "0055"])
def test_a_region_of_anything_but_four_integers_is_refused(segment: Segmenter, region: Any) -> None:
    with pytest.raises(InputError, match="is not x, y, width, height in whole pixels"):
        segment(np.zeros((180, 240, 3), np.uint8), roi=region)


@pytest.mark.parametrize("protocol", ["native:64:42", "ms-flip", "fixed:64x96"])
def test_the_times_of_images_add_up_to_no_more_than_was_spent(sample: Bundle, protocol: str) -> None:
    images = [np.zeros((90, 130, 3), np.uint8)] * 4
    with Segmenter(sample, protocol=protocol, threads=1) as segmenter:
        begun = time.perf_counter()
        results = segmenter.batch(images, size=2)
        spent = 1000 * (time.perf_counter() - begun)
    assert all(min(r.timings.preprocess, r.timings.infer, r.timings.postprocess) > 0 for r in results)
    assert sum(result.timings.total for result in results) <= spent


def test_a_batch_of_many_sizes_equals_single_calls_in_order(segment: Segmenter, images: list[np.ndarray]) -> None:
    results = segment.batch([*images, IMAGE], size=3, scores=True)
    assert [result.mask.shape for result in results[:-1]] == [image.shape[:2] for image in images]
    for image, result in zip(images, results, strict=False):
        expected = postprocess.logits(segment.predict(image)[0])
        assert_same_classes(result.mask, expected.argmax(0), expected)
    assert segment.batch([]) == []


@pytest.mark.parametrize("number", [0, 1.5, float("nan"), "2", None, True])
def test_a_number_of_images_is_a_whole_one(sample: Bundle, number: object) -> None:
    """A batch of NaN images would take all there are; a stream of that depth would never end."""
    with Segmenter(sample, threads=1) as segment:
        with pytest.raises(InputError, match="Give a whole number from 1 up"):
            segment.batch([IMAGE], size=number)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="Give a whole number from 1 up"):
            segment.stream([IMAGE], depth=number)  # type: ignore[arg-type]


def test_a_batch_is_no_larger_than_asked_for_nor_than_the_engine_takes(sample: Bundle) -> None:
    session = Slow()
    session.gate.set()
    with around(session, sample) as segmenter:
        assert len(segmenter.batch([np.zeros((40, 50, 3), np.uint8)] * 5)) == 5
        assert session.runs == 3  # 2, 2, 1
        with pytest.raises(InputError, match="size cannot be 0"):
            segmenter.batch([], size=0)


def test_what_is_no_image_is_refused(segment: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="None"):
        segment(None)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="a list is not an image"):
        segment([[1, 2, 3]])  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="no such file"):
        segment(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match="cannot be the name of a file"):
        segment("zero\0byte.jpg")


def test_one_path_is_not_taken_for_many(segment: Segmenter) -> None:
    for several in (segment.batch, segment.stream):
        with pytest.raises(InputError, match="is one image, where several were expected"):
            several(str(IMAGE))


def test_warming_up_runs_each_size(sample: Bundle) -> None:
    session = Slow()
    session.gate.set()
    with around(session, sample) as segmenter:
        segmenter.warmup([(40, 50), (50, 40)])
        for size in ((-1, 50), (40.0, 50.0), (2**40, 2**40)):
            with pytest.raises(InputError, match="no image is"):
                segmenter.warmup([size])  # type: ignore[list-item]
    assert session.runs == 2


@pytest.mark.parametrize("threads", [0, 1.5, 100_000, True])
def test_a_number_of_threads_that_nobody_means_is_refused(sample: Bundle, threads: Any) -> None:
    with pytest.raises(InputError, match=r"threads cannot be .*\n  Give a whole number from 1 to 1024"):
        Segmenter(sample, threads=threads)
    Segmenter(sample, threads=np.int64(1)).close()  # type: ignore[arg-type]


def test_a_bundle_whose_path_is_not_utf8_is_refused_for_that(sample: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    try:
        shutil.copytree(sample.path, folder)
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(BundleError, match="opens no path that is not UTF-8"):
        Segmenter(folder)


# Threads and asyncio.


def test_eight_threads_give_the_masks_of_one(quick: Segmenter, images: list[np.ndarray]) -> None:
    serial = [quick(image).mask for image in images]
    with ThreadPoolExecutor(8) as pool:
        masks = list(pool.map(lambda image: quick(image).mask, images * 5, timeout=PATIENCE))
    for mask, expected in zip(masks, serial * 5, strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_two_hundred_tasks_give_the_masks_of_one_thread(quick: Segmenter, images: list[np.ndarray]) -> None:
    small = [image[:40, :60] for image in images]
    serial = [quick(image).mask for image in small]

    async def all_of_them() -> list[np.ndarray]:
        tasks = [quick.submit(small[i % len(small)]) for i in range(200)]
        return [result.mask for result in await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)]

    for i, mask in enumerate(asyncio.run(all_of_them())):
        np.testing.assert_array_equal(mask, serial[i % len(small)])


def test_cancelled_tasks_are_not_begun_and_hold_nothing_up(sample: Bundle) -> None:
    session = Slow()
    image = np.zeros((40, 50, 3), np.uint8)

    async def cancel() -> int:
        with around(session, sample) as segmenter:
            tasks = [asyncio.ensure_future(segmenter.submit(image)) for _ in range(20)]
            await asyncio.to_thread(session.running.acquire)  # the loop is free while the network is busy
            for task in tasks[:19]:
                task.cancel()
            await asyncio.wait(tasks[:19], timeout=PATIENCE)  # before the network is free for the next
            session.gate.set()
            results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
            assert all(isinstance(result, asyncio.CancelledError) for result in results[:19])
            assert results[19].mask.shape == (40, 50)  # type: ignore[union-attr]
            assert (await segmenter.submit(image)).mask.shape == (40, 50)
        return session.runs

    assert asyncio.run(cancel()) <= 4  # two were under way, one was left, one came after


def test_an_error_reaches_the_task_that_caused_it(segment: Segmenter, images: list[np.ndarray]) -> None:
    async def mixed() -> list[Any]:
        bad: Any = np.zeros((4, 4), np.uint8)
        return await asyncio.gather(
            *(segment.submit(image) for image in (images[0], bad, images[1])), return_exceptions=True
        )

    first, second, third = asyncio.run(mixed())
    assert isinstance(second, ImageError)
    np.testing.assert_array_equal(first.mask, segment(images[0]).mask)
    np.testing.assert_array_equal(third.mask, segment(images[1]).mask)


# Closing.


def test_a_forked_process_has_tasks_of_its_own(sample: Bundle, images: list[np.ndarray]) -> None:
    fork = multiprocessing.get_context("fork")
    with Segmenter(sample, protocol="fixed:64x48", threads=1) as segmenter:
        expected = asyncio.run(segmenter.submit(images[0])).mask  # starts the parent's threads
        answers = fork.Queue()
        child = fork.Process(target=lambda: answers.put(asyncio.run(segmenter.submit(images[0])).mask))
        child.start()
        try:
            np.testing.assert_array_equal(answers.get(timeout=PATIENCE), expected)
        finally:
            child.kill()
            child.join()


def test_a_closed_segmenter_says_so(sample: Bundle, images: list[np.ndarray]) -> None:
    segmenter = Segmenter(sample, threads=1)
    segmenter.close()
    segmenter.close()
    calls: list[Callable[[], Any]] = [
        lambda: segmenter(images[0]),
        lambda: segmenter.batch(images),
        lambda: segmenter.stream(images),
        lambda: segmenter.clone(),
        lambda: segmenter.predict(images[0]),
        lambda: asyncio.run(segmenter.submit(images[0])),
    ]
    for call in calls:
        with pytest.raises(InputError, match="the segmenter is closed"):
            call()


def test_clones_share_one_session_that_closes_with_the_last(sample: Bundle) -> None:
    session, image = Slow(), np.zeros((40, 50, 3), np.uint8)
    session.gate.set()
    first = around(session, sample)
    second = first.clone()
    third = second.clone()
    first.close()
    third.close()
    assert second(image).mask.shape == (40, 50) and not session.closed
    second.close()
    assert session.closed == 1


def test_closing_waits_for_the_image_under_way_and_gives_up_those_behind(sample: Bundle) -> None:
    session, image = Slow(), np.zeros((40, 50, 3), np.uint8)
    segmenter, before = around(session, sample), set(threading.enumerate())

    async def close_early() -> list[Any]:
        tasks = [asyncio.ensure_future(segmenter.submit(image)) for _ in range(8)]
        await asyncio.to_thread(session.running.acquire)
        closing = asyncio.ensure_future(asyncio.to_thread(segmenter.close))
        await asyncio.sleep(0.05)
        assert not session.closed and not closing.done()
        session.gate.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
        await closing
        return results

    results = asyncio.run(close_early())
    assert session.closed == 1 and session.runs <= 2
    assert sum(isinstance(result, InputError) for result in results) >= 6
    assert not [thread for thread in set(threading.enumerate()) - before if "denseport-submit" in thread.name]
