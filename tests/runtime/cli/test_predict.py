"""What ``denseport run`` makes of inputs that are not whole, and of those that its results would replace."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main


def test_a_video_that_is_cut_short_is_told(sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, rng = tmp_path / "clip.avi", np.random.default_rng(0)
    writer = cv2.VideoWriter(str(clip), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25, (96, 64))
    for _ in range(8):
        writer.write(rng.integers(0, 255, (64, 96, 3), np.uint8))
    writer.release()

    def run() -> tuple[int, str]:
        code = main(["run", str(sample.path), str(clip), "-o", str(tmp_path / "out"), "--no-overlay"])
        return code, capsys.readouterr().out

    code, out = run()
    assert code == 0 and "warning" not in out
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    code, out = run()
    assert code == 0 and "warning: only" in out and "of the video's 8 frames" in out


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (["photo.png", "photo_mask.png"], "photo_mask.png"),
        (["photo.png", "photo_overlay.png"], "photo_overlay.png"),
        (["drive.mp4", "drive_mask/000001.png"], "drive_mask/000001.png"),
    ],
)
def test_no_result_replaces_an_input(
    sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], lost: str
) -> None:
    folder, link = tmp_path / "in", tmp_path / "link"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mine")
    link.symlink_to(folder)
    assert main(["run", str(sample.path), str(folder), "-o", str(link)]) == 2
    err = capsys.readouterr().err
    assert lost in err and "would replace it" in err and "another folder" in err
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix() for path in found} == set(names)
    assert all(path.read_bytes() == b"mine" for path in found)
