"""The renderer and the training of the trained depth sample."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from support import ASSETS, REPO

from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.weights import load_model

WIDTH, HEIGHT = 32, 24
SEEDS = range(12)  # rooms and open ground, with boxes, pillars and balls


@pytest.fixture(autouse=True, scope="module")
def _scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPO / "scripts" / "depth_sample")
        yield


@pytest.fixture
def renderer(_scripts: None) -> ModuleType:
    return importlib.import_module("render")


def distance(shape: Any, points: np.ndarray) -> np.ndarray:
    """Of points (3, P) to the surface, from its definition: below 0 inside, or behind a wall."""
    if hasattr(shape, "normal"):
        found: np.ndarray = (shape.normal * points).sum(0) - shape.offset
        return found
    apart = points - shape.centre
    if hasattr(shape, "radius"):
        return np.asarray(np.linalg.norm(apart, axis=0) - shape.radius)
    cos, sin = np.cos(shape.angle), np.sin(shape.angle)
    x, y, z = apart  # the box's own axes are (cos, 0, sin), (0, 1, 0), (-sin, 0, cos)
    beyond = np.abs(np.array([cos * x + sin * z, y, cos * z - sin * x])) - shape.half
    return np.asarray(np.linalg.norm(np.maximum(beyond, 0), axis=0) + np.minimum(beyond.max(0), 0))


@pytest.mark.parametrize("seed", SEEDS)
def test_depths_end_on_the_first_surface(renderer: ModuleType, seed: int) -> None:
    """Where a pixel's ray, for its depth ahead, ends there is a surface, and nothing before."""
    _, depth = renderer.render(seed, WIDTH, HEIGHT)
    scene = renderer.draw_scene(seed)
    step = 2 * np.tan(np.radians(32)) / WIDTH
    across, up = np.meshgrid((np.arange(WIDTH) - 15.5) * step, (11.5 - np.arange(HEIGHT)) * step)
    # Looking down by the pitch turns "ahead" towards the ground, and "up" ahead.
    cos, sin = np.cos(scene.pitch), np.sin(scene.pitch)
    ways = np.outer([1, 0, 0], across) + np.outer([0, cos, sin], up) + np.array([[0], [-sin], [cos]])
    ways, reach = ways[:, depth.ravel() < 60], depth[depth < 60]  # of larger numbers float32 keeps fewer places
    assert reach.size > 0.3 * depth.size
    for share in (1, *np.linspace(0.05, 0.999, 40)):
        points = np.array([[0], [scene.height], [0]]) + share * reach * ways
        nearest = np.min([distance(shape, points) for shape in scene.shapes], axis=0)
        assert nearest.min() > -1e-4
        assert share < 1 or nearest.max() < 1e-4


def test_a_scene_is_the_same_at_any_size(renderer: ModuleType) -> None:
    for seed in SEEDS:
        small, large = (renderer.render(seed, size * WIDTH, size * HEIGHT)[1] for size in (1, 3))
        # The middle one of 3 x 3 pixels has the large one's centre; at an edge, rounding chooses a side.
        same = np.isclose(small, large[1::3, 1::3], rtol=1e-5)
        assert same.mean() > 0.995


def test_what_is_written_is_what_was_rendered(renderer: ModuleType, tmp_path: Path) -> None:
    renderer.write(tmp_path, 3, "a", WIDTH, HEIGHT)
    image, depth = renderer.render(3, WIDTH, HEIGHT)
    stored = cv2.imread(str(tmp_path / "depths/a.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16 and (stored == 0).any() == (depth > 20).any()
    measured = stored > 0
    np.testing.assert_allclose(stored[measured] / 1000, depth[measured], atol=5.1e-4, rtol=0)
    np.testing.assert_array_equal(depth > 20, ~measured)
    found = cv2.imread(str(tmp_path / "images/a.jpg"))[..., ::-1]  # OpenCV's is BGR
    assert found.shape == image.shape and abs(image[..., 0].mean() - image[..., 2].mean()) > 5
    np.testing.assert_allclose(found.mean((0, 1)), image.mean((0, 1)), atol=2)


def test_the_sample_s_images_are_the_script_s(renderer: ModuleType) -> None:
    """Its depths are exact: another machine renders the same ones."""
    for number in range(4):
        stored = cv2.imread(str(ASSETS / f"depth/depths/{number:04d}.png"), cv2.IMREAD_UNCHANGED)
        _, depth = renderer.render(1_000_000 + number, *stored.shape[::-1])
        found = np.where(depth <= 20, 1000 * depth, 0)
        assert (np.abs(found - stored) <= 1).mean() > 0.999


def test_a_saved_network_is_read_as_it_was(_scripts: None, tmp_path: Path) -> None:
    torch, training = pytest.importorskip("torch"), importlib.import_module("train")
    torch.manual_seed(0)
    model = training.build(training.SPEC)
    training.save(model, tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    spec = recognise(checkpoint).spec
    assert spec == training.SPEC
    image = torch.randn(1, 3, 56, 70)
    with torch.inference_mode():
        found, want = load_model(checkpoint, spec)(image), model(image)
    torch.testing.assert_close(found, want, atol=0.05, rtol=0)  # of 20 metres; weights are stored in 11 bits
    assert want.std() > 0.01
