"""NVIDIA's front-ends of many releases with the plugin and the names that Denseport uses; scripts/test --matrix."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import REPO
from wheels import program_on, wheel

pytestmark = pytest.mark.matrix

# The oldest that Denseport takes is 10.9; cu13 begins with 10.13.
RELEASES = {
    "10.9.0.34": "cu12",
    "10.12.0.36": "cu12",
    "10.13.3.9.post1": "cu13",
    "10.14.1.48.post1": "cu13",
    "10.15.1.29": "cu13",
    "10.16.1.11": "cu13",
    "11.0.0.114": "cu13",
    "11.1.0.106": "cu13",
    "11.2.1.2": "cu13",
    "11.3.0.99": "cu13",
    "11.4.0.106": "cu13",
}
NUMPY = ("2.3.5", "2.4.0")
LEAN = {"10": "tensorrt-lean-cu13-libs==10.16.1.11", "11": "tensorrt-lean-cu13-libs==11.4.0.106"}
NEWEST = "11.4.0.106"
SOURCES = (
    "runtime/backends/tensorrt*.py",
    "export/engine/*.py",
    "export/plugin/tensorrt_plugin.py",
)
# Of TensorRT-RTX alone, or asked for only where they are.
OPTIONAL = {"create_runtime_config", "is_stream_capturable", "REQUIRE_USER_ALLOCATION"}


@pytest.fixture(scope="module")
def front_end(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """What front_end.py says of a release with a NumPy."""

    @functools.cache
    def ask(release: str, numpy: str) -> Any:
        (lean,) = wheel(LEAN[release.split(".")[0]]).glob("tensorrt_lean_libs/libnvinfer_lean.so.*")
        wheels = [wheel(f"numpy=={numpy}"), wheel(f"tensorrt-{RELEASES[release]}-bindings=={release}")]
        program = program_on(wheels, Path(__file__).with_name("front_end.py"), tmp_path_factory.mktemp("stubs"), lean)
        assert program.returncode == 0, program.stderr
        return json.loads(program.stdout.splitlines()[-1])

    return ask


@pytest.mark.parametrize("numpy", NUMPY)
@pytest.mark.parametrize("release", RELEASES)
def test_the_plugin_is_created_or_refused_by_name(
    front_end: Callable[[str, str], Any], release: str, numpy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """NumPy 2.4 converts no array of one element to a number, which front-ends before 11.2 rely on."""
    found = front_end(release, numpy)["plugin"]
    with capsys.disabled():
        print(f"\nTensorRT {release}, NumPy {numpy}: {found}", end="")
    numbers = tuple(int(part) for part in release.split(".")[:2])
    if numpy >= "2.4" and numbers < (11, 2):
        assert found.startswith("refused: ") and "NumPy" in found
    else:
        assert found == "created"


@functools.cache
def used_names() -> frozenset[str]:
    """Each attribute that the sources name, whatever it is of."""
    return frozenset(_attributes())


def _attributes() -> Iterator[str]:
    for path in (path for pattern in SOURCES for path in REPO.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                yield node.attr


@pytest.mark.parametrize("release", RELEASES)
def test_every_name_is_there(
    front_end: Callable[[str, str], Any], release: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a class of the newest release has and the sources name, that class has in every release.

    Names of the module are of a class too, the one called "". A class that a release lacks is missing there. Members of
    an enumeration are looked for where the sources name the enumeration.
    """
    newest, found = front_end(NEWEST, NUMPY[0]), front_end(release, NUMPY[0])
    here, used = found["members"], used_names() - OPTIONAL
    owners = [owner for owner in here if owner in used or owner not in newest["enumerations"]]
    wanted = {(owner, name) for owner in owners for name in newest["members"].get(owner, []) if name in used}
    missing = sorted(f"{owner}.{name}" for owner, name in wanted if name not in here[owner])
    with capsys.disabled():
        print(f"\nTensorRT {release}: {len(wanted)} names, missing: {', '.join(missing) or 'none'}", end="")
    assert len(wanted) > 50 and not missing
