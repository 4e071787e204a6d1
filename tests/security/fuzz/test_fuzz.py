"""Bounded fuzzing: whatever a file or a command line holds, it is used, or refused in words; nothing else.

``scripts/hardening/fuzz`` does the same for longer. What it found is in the tests of the modules where it was mended,
and here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from fuzz_targets import CORPUS, EDITS, TARGETS, Edit, command_line, corpus, mutate, mutate_json
from hostile import tiny_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from denseport.runtime.cli.main import _commands
from denseport.runtime.errors import ImageError
from denseport.runtime.media.images import read_image

BOUNDED = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)
EDIT = st.tuples(st.sampled_from(EDITS), st.integers(0, 2**31), st.integers(0, 2**16))
SOME: st.SearchStrategy[list[Edit]] = st.lists(EDIT, min_size=1, max_size=6)


@pytest.mark.parametrize("name", TARGETS)
def test_every_file_of_the_corpus_is_taken(name: str) -> None:
    target, seeds = TARGETS[name]
    assert seeds
    for seed in seeds:
        target(seed.read_bytes())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_used_or_refused(name: str) -> None:
    target, seeds = TARGETS[name]

    @settings(BOUNDED, max_examples=10 if name in ("manifest", "model", "foreign") else 30 if name == "http" else 60)
    @given(st.sampled_from(seeds), SOME)
    def run(seed: Path, edits: list[Edit]) -> None:
        target(mutate(seed.read_bytes(), edits))

    run()


@settings(BOUNDED, max_examples=25)
@given(st.sampled_from(corpus(".json")), SOME)
def test_manifests_of_odd_values_are_used_or_refused(seed: Path, edits: list[Edit]) -> None:
    TARGETS["manifest"][0](mutate_json(seed.read_text(), edits).encode())


IMAGE = np.stack([30 * np.arange(8) + 0 * np.arange(6)[:, None], 40 * np.arange(6)[:, None] + 0 * np.arange(8)], -1)


@pytest.mark.parametrize(
    "file", [file for file in TARGETS["image"][1] if file.name != "colour.jp2"], ids=lambda f: f.name
)
def test_images_of_every_format_are_what_was_stored_or_refused(file: Path) -> None:
    """All but the masks hold one image: blue grows to the right, green downwards."""
    if file.name in ("float.tiff", "sixteen_channels.tiff"):
        with pytest.raises(ImageError, match="can decode"):
            read_image(file)
        return
    if file.name.startswith("mask"):
        assert read_image(file).shape == (6, 8, 3)
        return
    found = read_image(file).astype(int)
    if file.name == "turned.jpg":
        found = np.rot90(found)
    assert found.shape == (6, 8, 3)
    if file.name == "grey.png":
        np.testing.assert_array_equal(found, np.repeat(IMAGE[..., :1], 3, axis=-1))
        return
    few_colours = file.name in ("palette.png", "moving.gif")
    exact = file.suffix in (".bmp", ".ppm", ".png") and not few_colours
    assert np.abs(found[..., :2] - IMAGE).mean() <= (0 if exact else 40 if few_colours else 15)


ODD = (
    "-1",
    "0",
    "1e999",
    "nan",
    "-inf",
    "9" * 5000,
    "",
    " ",
    "\n",
    "\udc80",
    "../..",
    "é" * 300,
    "--",
    "0x10",
    "1e-400",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("fuzz") / "bundle").path


def options(command: str) -> list[str]:
    parser = argparse.ArgumentParser()
    _commands()[command].add_arguments(parser)
    return [action.option_strings[-1] for action in parser._actions if action.option_strings and action.dest != "help"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", sorted(set(_commands()) - {"serve", "models"}))
def test_odd_command_lines_end_with_a_documented_code(command: str, small: Path, tmp_path: Path) -> None:
    """Each option with values that nobody means; what would work for long is stopped by an input that is missing."""
    missing = str(tmp_path / "missing")
    positional = {
        "export": [missing, "-o", str(tmp_path / "o")],
        "import": [missing, "-o", str(tmp_path / "o")],
        "run": [str(small), missing, "-o", str(tmp_path / "o")],
        "inspect": [str(small)],
        "doctor": [missing],
        "eval": [str(small), "--data", missing],
        "bench": [str(small), "--image", missing],
        "calibrate": [str(small), "--images", missing],
        "build": [str(small), "--images", missing],
        "triton": [missing, "-o", str(tmp_path / "o")],
        "report": [str(small), "--data", missing, "-o", str(tmp_path / "o")],
        "sign": [str(small), "--key", missing],
        "verify": [str(small), "--trust", missing],
    }[command]
    before = sorted(small.iterdir())

    @settings(BOUNDED, max_examples=15)
    @given(st.lists(st.tuples(st.sampled_from(options(command)), st.sampled_from(ODD)), min_size=1, max_size=3))
    def run(chosen: list[tuple[str, str]]) -> None:
        code = command_line([command, *positional, *(part for pair in chosen for part in pair)])
        assert code != 1

    run()
    assert sorted(small.iterdir()) == before and not list(tmp_path.iterdir())


def test_the_corpus_stays_small() -> None:
    assert sum(file.stat().st_size for file in CORPUS.iterdir()) < 40_000
    assert json.loads((CORPUS / "manifest.json").read_text())["name"] == "tiny"
