from __future__ import annotations

from pathlib import Path

import pytest
from support import touch

from denseport.runtime.errors import InputError
from denseport.runtime.media.inputs import find_inputs


def names_of(patterns: list[str]) -> list[str]:
    return [found.relative.as_posix() for found in find_inputs(patterns)]


def test_a_folder_is_searched_in_natural_order_without_hidden_names(tmp_path: Path) -> None:
    touch(tmp_path, "f10.jpg", "f2.JPG", "sub/a.mp4", ".hidden.jpg", ".git/b.jpg", "notes.txt")
    found = find_inputs([str(tmp_path)])
    assert [item.path.name for item in found] == ["f2.JPG", "f10.jpg", "a.mp4"]
    assert [item.relative.as_posix() for item in found] == ["f2", "f10", "sub/a"]
    assert [item.kind for item in found] == ["image", "image", "video"]


def test_relative_names_never_meet(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg", "b/x.jpg", "c/x.jpg", "c/x.png", "c/x.jpg.bmp", "c/y.v2.png")
    assert names_of([str(tmp_path / "a/x.jpg"), str(tmp_path / "b/x.jpg")]) == ["a/x", "b/x"]
    assert names_of([str(tmp_path / "a"), str(tmp_path / "b")]) == ["a/x", "b/x"]
    assert names_of([str(tmp_path / "a/x.jpg")]) == ["x"]
    found = find_inputs([str(tmp_path / "c")])
    outputs = {item.output(Path("out"), ".png").as_posix() for item in found}
    assert outputs == {"out/x.jpg.png", "out/x.png.png", "out/x.jpg.bmp.png", "out/y.v2.png"}


def test_each_file_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/x.jpg", "a/y.jpg")
    monkeypatch.chdir(tmp_path)
    found = find_inputs(["a/y.jpg", "a", "./a/../a/*.jpg", str(tmp_path / "a/x.jpg")])
    assert [item.path.as_posix() for item in found] == ["a/y.jpg", "a/x.jpg"]


def test_globs(tmp_path: Path) -> None:
    touch(tmp_path, "d/1/x.jpg", "d/2/x.jpg", "d/2/x.txt", "d/photo[1].jpg")
    assert names_of([str(tmp_path / "d/*/*")]) == ["1/x", "2/x"]
    assert names_of([str(tmp_path / "d/**/x.jpg")]) == ["1/x", "2/x"]
    assert names_of([str(tmp_path / "d/[2]")]) == ["2/x"]
    assert names_of([str(tmp_path / "d/photo[1].jpg")]) == ["photo[1]"]


def test_a_named_file_is_kept_though_missing_and_whatever_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "scan")
    found = find_inputs([str(tmp_path / "missing.jpg"), str(tmp_path / "scan")])
    assert [(item.path.name, item.kind) for item in found] == [("missing.jpg", "image"), ("scan", "image")]


@pytest.mark.parametrize("pattern", ["{}", "{}/*.jpg", ""])
def test_a_pattern_that_finds_nothing_is_an_error(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(InputError):
        find_inputs([pattern.format(tmp_path)])
    with pytest.raises(InputError, match="no input"):
        find_inputs([])
