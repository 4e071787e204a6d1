"""Images of any size: the same as all windows at once, upstream's slide mode, and in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import postprocess
import pytest
from bundles import steps
from support import assert_same_classes

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.protocol import Protocol, parse_protocol
from denseport.runtime.pipeline.reduce import LOGITS
from denseport.runtime.pipeline.resample import Placement
from denseport.runtime.pipeline.results import RequestedOutputs
from denseport.runtime.pipeline.sliding import slide
from denseport.runtime.pipeline.views import window_starts
from denseport.runtime.segmenter import Segmenter


@pytest.mark.parametrize(
    ("name", "scale", "crop", "stride"),
    [
        ("slide_crop64_stride42", (512, 128), 64, 42),
        ("slide_crop512_stride341", (2048, 512), 512, 341),
        ("slide_bigcrop", (256, 64), 128, 85),
    ],
)
def test_slide_mode_equals_upstreams(
    exported: Callable[[str], Bundle], oracle: Path, name: str, scale: tuple[int, int], crop: int, stride: int
) -> None:
    bundle = exported("tiny_dpt_project")
    described = json.loads((oracle / "inference_tiny_dpt.json").read_text())[name]
    assert described["test_cfg"]["crop_size"] == [crop, crop] and described["test_cfg"]["stride"] == [stride, stride]
    protocol = Protocol("as upstream", steps(scale), Inference("slide", (crop, crop), (stride, stride)))
    with np.load(oracle / "inference_tiny_dpt.npz") as golden, Segmenter(bundle, protocol=protocol) as segmenter:
        image, expected = golden["img_bgr"], golden[f"{name}_argmax"]
        scores = postprocess.logits(segmenter.predict(image)[0])
        assert_same_classes(segmenter(image).mask, expected, scores)


def network_of(classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """A stand-in whose logits depend on the window's pixels and on the place in the window: seams would show."""
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((classes, 3), np.float32)
    tilt = rng.standard_normal((classes, 2), np.float32)

    def network(window: np.ndarray) -> np.ndarray:
        low = window[::4, ::4].astype(np.float32) / 64
        y, x = np.mgrid[0 : low.shape[0], 0 : low.shape[1]].astype(np.float32) / 8
        return np.einsum("ck,hwk->chw", mix, low) + tilt[:, :1, None] * y + tilt[:, 1:, None] * x

    return network


@pytest.mark.parametrize(
    ("shown", "size", "crop", "stride"),
    [
        ((200, 331), (200, 331), (64, 96), (42, 60)),
        ((200, 331), (411, 97), (64, 64), (64, 64)),  # scaled on the way back; windows side by side
        ((65, 300), (65, 300), (64, 64), (10, 63)),  # many windows over each pixel
        ((40, 50), (40, 50), (64, 64), (42, 42)),  # one window
        ((300, 300), (7, 9), (64, 64), (42, 42)),  # windows that no pixel of the result touches
    ],
)
def test_window_by_window_is_all_windows_at_once_to_the_last_bit(
    shown: tuple[int, int], size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shown, 3), np.uint8)
    network = network_of(5)
    spans = [window_starts(shown[i], crop[i], stride[i]) for i in (0, 1)]
    windows = [network(image[t:b, left:right]) for t, b in spans[0] for left, right in spans[1]]
    maps = postprocess.slide_maps(windows, *spans, shown, size)
    place, both = Placement(shown, size), (spans[0], spans[1])
    canvas = slide(windows, both, place, RequestedOutputs(scores=True), LOGITS, 2)
    np.testing.assert_array_equal(
        slide(windows, both, place, RequestedOutputs(), LOGITS, 2).mask,
        postprocess.argmax(maps),
    )
    chances = postprocess.probabilities([maps])
    np.testing.assert_allclose(canvas.scores, chances.max(0), atol=1e-6)


def test_the_native_protocol_never_resizes(sample: Bundle) -> None:
    protocol = parse_protocol("native:64:42", sample.manifest)
    assert protocol.preprocess == sample.manifest.preprocess[1:]
    assert protocol.inference == Inference("slide", (64, 64), (42, 42))
    assert "own size" in protocol.description
    shapes: list[tuple[int, ...]] = []
    with Segmenter(sample, protocol=protocol, threads=1) as segmenter:
        run = segmenter.session.run
        segmenter.session.run = lambda image: shapes.append(image.shape) or run(image)  # type: ignore[assignment, func-returns-value]
        assert segmenter(np.zeros((70, 130, 3), np.uint8)).mask.shape == (70, 130)
    assert shapes == [(1, 3, 64, 64)] * 2 * 3


def test_windows_have_the_height_the_width_and_the_strides_of_the_protocol(sample: Bundle) -> None:
    """An image of 70 x 110 pixels under windows of 32 x 48, moved by 20 rows and 31 columns: read off by hand."""
    rows, columns = (0, 20, 38), (0, 31, 62)
    preprocess = steps((110, 70), keep_ratio=False, mean=(1, 2, 3), std=(2, 4, 5))
    protocol = Protocol("uneven", preprocess, Inference("slide", (32, 48), (20, 31)))
    image = np.random.default_rng(1).integers(0, 256, (70, 110, 3), np.uint8)
    inputs = ((image[..., ::-1] - np.float32([1, 2, 3])) / np.float32([2, 4, 5])).transpose(2, 0, 1)[None]
    seen: list[np.ndarray] = []
    with Segmenter(sample, protocol=protocol, threads=1) as segmenter:
        run = segmenter.session.run
        segmenter.session.run = lambda window: seen.append(window) or run(window)  # type: ignore[assignment, func-returns-value]
        mask = segmenter(image).mask
        maps = segmenter.predict(image)[0]
    expected = [inputs[..., top : top + 32, left : left + 48] for top in rows for left in columns]
    assert len(seen) == 2 * len(expected), "once for the mask, once for the logits"
    for found, window in zip(seen, expected * 2, strict=True):
        np.testing.assert_allclose(found, window, rtol=1e-6)
    np.testing.assert_array_equal(mask, postprocess.argmax(maps))


MEMORY = """
import sys, numpy as np
from denseport.runtime.pipeline.reduce import LOGITS
from denseport.runtime.pipeline.resample import Placement
from denseport.runtime.pipeline.results import RequestedOutputs
from denseport.runtime.pipeline.sliding import slide
from denseport.runtime.pipeline.views import windows
from denseport.runtime.bundle.manifest import Inference
side = int(sys.argv[1])
image = np.zeros((side, side, 3), np.uint8)
image[:] = np.arange(side, dtype=np.uint8)[:, None, None]
logits = np.random.default_rng(0).standard_normal((60, 128, 128)).astype(np.float32)
def network(window):
    return logits + window[0, 0, 0]
def peak():  # of this program alone: ru_maxrss begins at the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def decided(image):
    rows, cols = windows(image.shape[:2], Inference("slide", (512, 512), (341, 341)))
    made = (network(image[a:b, c:d]) for a, b in rows for c, d in cols)
    slide(made, (rows, cols), Placement(image.shape[:2], image.shape[:2]), RequestedOutputs(), LOGITS, 1)
decided(image[:600, :600])
before = peak()
decided(image)
print((peak() - before) / 1024)
"""


def test_sixteen_megapixels_need_little_memory() -> None:
    """Logits of all pixels would take 3.8 GB, those of all windows 484 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY, "4000"], capture_output=True, text=True, check=True)
    grown = float(done.stdout)
    print(f"{grown:.0f} MiB")
    assert 16 < grown < 90
