from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from denseport.runtime.errors import InputError
from denseport.runtime.media import overlay as visualize
from denseport.runtime.media.overlay import class_shares, default_palette, overlay, palette_image

CLASSES = ["wall", "sky", "bed ", "television receiver with a very long name"]
PALETTE = [(200, 10, 20), (0, 120, 240), (30, 220, 60), (250, 250, 0)]


def scene(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A grey image; its mask has three bands: half wall, a quarter sky, a quarter to be ignored."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 2 :] = 1
    mask[3 * height // 4 :] = 255
    return np.full((height, width, 3), 100, np.uint8), mask


def test_shares_descend_and_count_ignored_pixels() -> None:
    mask = np.array([[2, 2, 2, 2], [0, 0, 1, 255]], np.uint8)
    assert class_shares(mask, 3) == [(2, 0.5), (0, 0.25), (1, 0.125)]
    assert class_shares(np.where(mask == 255, -1, mask.astype(np.int64)), 3) == class_shares(mask, 3)
    assert class_shares(np.full((2, 2), 255, np.uint8), 300) == [(255, 1.0)]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64])
def test_palette_image_is_bgr_and_black_outside(dtype: type[np.generic]) -> None:
    mask = np.array([[0, 1], [3, 100]]).astype(dtype)
    np.testing.assert_array_equal(
        palette_image(mask, PALETTE), [[[20, 10, 200], [240, 120, 0]], [[0, 250, 250], [0, 0, 0]]]
    )


def test_default_palette_is_stable_and_distinguishable() -> None:
    colours = default_palette(150)
    assert colours[:20] == default_palette(20)
    assert len(set(colours)) == 150
    assert all(0 <= value <= 255 for colour in colours for value in colour)
    lab = cv2.cvtColor(np.array([colours[:20]], np.float32) / 255, cv2.COLOR_RGB2Lab)[0]
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(20)
    assert apart.min() > 10  # CIE76; 2.3 is just noticeable


def test_the_colours_are_blended_and_the_size_kept_without_a_legend() -> None:
    image, mask = scene(40, 60)
    seen = overlay(image, mask, CLASSES, PALETTE, opacity=0.5, legend=False)
    assert seen.shape == image.shape and seen.dtype == np.uint8
    assert np.abs(seen[10, 30].astype(int) - [60, 55, 150]).max() <= 1  # wall, as BGR
    assert np.abs(seen[35, 30].astype(int) - [50, 50, 50]).max() <= 1  # ignored: black
    assert seen[20, 30].min() > seen[10, 30].min() + 50  # the light line between wall and sky
    np.testing.assert_array_equal(image, 100)


def test_opacity_zero_leaves_all_but_the_lines() -> None:
    image, mask = scene(40, 60)
    seen = overlay(image, mask, CLASSES, PALETTE, opacity=0, legend=False)
    assert sorted(set(np.nonzero((seen != 100).any(axis=-1))[0])) == [20, 30]


@pytest.mark.parametrize(
    ("height", "width", "below"),
    [(360, 480, False), (30, 40, False), (4, 3, False), (900, 200, False), (200, 1200, True), (8, 900, True)],
)
def test_the_legend_leaves_the_image_whole(height: int, width: int, below: bool) -> None:
    image, mask = scene(height, width)
    seen = overlay(image, mask, CLASSES, PALETTE)
    factor = -(-256 // max(height, width))
    bare = overlay(
        image.repeat(factor, 0).repeat(factor, 1),
        mask.repeat(factor, 0).repeat(factor, 1),
        CLASSES,
        PALETTE,
        legend=False,
    )
    np.testing.assert_array_equal(seen[: bare.shape[0], : bare.shape[1]], bare)
    panel = seen[bare.shape[0] :] if below else seen[:, bare.shape[1] :]
    assert panel.size
    assert (panel == PALETTE[0][::-1]).all(axis=-1).any(), "no swatch for the first class"


def test_the_swatches_come_in_descending_share() -> None:
    image, mask = scene(360, 480)
    panel = overlay(image, mask, CLASSES, PALETTE)[:, 480:]
    tops = [np.nonzero((panel == colour[::-1]).all(axis=-1))[0] for colour in PALETTE]
    assert tops[0].max() < tops[1].min()
    assert not len(tops[2]) and not len(tops[3])
    black = np.nonzero((panel == 0).all(axis=-1))[0]
    assert black.min() > tops[1].max()  # "ignored" comes last


def test_the_size_depends_on_the_image_and_not_on_what_it_shows() -> None:
    image, mask = scene(240, 320)
    names = [f"class {i}" for i in range(150)]
    busy = (np.arange(240 * 320).reshape(240, 320) % 150).astype(np.uint8)
    plain = overlay(image, mask, names, None)
    assert overlay(image, busy, names, None).shape == plain.shape
    wide, wide_mask = scene(100, 700)
    assert overlay(wide, wide_mask, names, None).shape == overlay(wide, wide_mask * 0, names, None).shape


def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the texts that are drawn from now on."""
    drawn: list[str] = []
    draw = visualize.draw_text
    monkeypatch.setattr(
        visualize, "draw_text", lambda panel, text, *rest: (drawn.append(text), draw(panel, text, *rest))
    )
    return drawn


def test_names_and_shares_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = texts(monkeypatch)
    image, mask = scene(400, 400)
    mask[:8] = 2
    mask[8, :20] = 3
    overlay(image, mask, CLASSES, PALETTE)
    assert drawn[0::2] == ["48.0 %", "25.0 %", "2.0 %", "<0.1 %", "25.0 %"]
    assert drawn[1::2] == ["wall", "sky", "bed", "1 other", "ignored"]


def test_small_classes_and_those_without_room_are_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = texts(monkeypatch)
    names = [f"c{i}" for i in range(150)]
    image = np.zeros((200, 200, 3), np.uint8)
    mask = np.zeros((200, 200), np.uint8)
    mask[0, :32] = 1
    mask[1, :32] = 2
    overlay(image, mask, names, None)
    assert drawn == ["99.8 %", "c0", "0.2 %", "2 others"]
    drawn.clear()
    overlay(image, (np.arange(40000).reshape(200, 200) % 150).astype(np.uint8), names, None)
    assert drawn[-1].endswith("others")
    listed = len(drawn) // 2 - 1
    assert drawn[-1] == f"{150 - listed} others"


def test_a_long_name_is_elided(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = texts(monkeypatch)
    image, mask = scene(300, 300)
    overlay(image, np.full_like(mask, 3), CLASSES, PALETTE)
    assert drawn[0] == "100.0 %"
    assert drawn[1].startswith("television") and drawn[1].endswith("...")


def test_opencv_4_has_no_font_and_still_gets_a_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    visualize.text_width.cache_clear()
    visualize._layout.cache_clear()
    image, mask = scene(360, 480)
    panel = overlay(image, mask, CLASSES, PALETTE)[:, 480:]
    assert (panel.min(axis=-1) > 150).any()
    visualize.text_width.cache_clear()
    visualize._layout.cache_clear()


def test_what_does_not_fit_together_is_refused() -> None:
    image, mask = scene(40, 60)
    with pytest.raises(InputError, match="the mask is"):
        overlay(image, mask[:20], CLASSES, PALETTE)
    with pytest.raises(InputError, match="the mask is"):
        overlay(image, mask.astype(np.float32), CLASSES, PALETTE)
    with pytest.raises(InputError, match="4 classes and 3 colours"):
        overlay(image, mask, CLASSES, PALETTE[:3])
    with pytest.raises(InputError, match="opacity"):
        overlay(image, mask, CLASSES, PALETTE, opacity=1.5)
    with pytest.raises(InputError, match="an image is"):
        overlay(image[..., 0], mask, CLASSES, PALETTE)
