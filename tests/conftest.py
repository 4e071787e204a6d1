"""Fixtures that many tests share: the files beside the repository, and bundles exported once a run."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cpu_kernels import Kernels, compile_kernels
from exports import export_once, networks_once, shelf
from hypothesis import settings
from support import ASSETS, ORACLE_MODELS, SHARED

from denseport.runtime.backends.cuda.kernels import launch
from denseport.runtime.backends.cuda.kernels.compile import IMAGE_SOURCES
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main

# Several processes share the machine: an example that takes long says nothing.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ray", action="store_true", help="also run tests on Ray, which takes a minute")
    parser.addoption("--slow", action="store_true", help="also run tests of full-size models")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="a full-size model: run with --slow"))
    if not config.getoption("--ray"):
        for item in items:
            if "ray" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="Ray is heavy, and listens to the network: scripts/test --ray"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For ``-m alone``, only the files with such tests are read: two of two hundred."""
    if config.option.markexpr == "alone" and collection_path.name.startswith("test_") and collection_path.is_file():
        return None if "pytest.mark.alone" in collection_path.read_text(encoding="utf-8") else True
    return None


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the collector of garbage need not look at it again and again."""
    gc.freeze()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs ``denseport`` in this process: exit code, standard output, standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session", autouse=True)
def _threads_sleep() -> Iterator[None]:
    """Idle threads of ONNX Runtime sleep. As a rule they spin for a while, on processors that other tests wait for."""
    import onnxruntime

    class Sleeping(onnxruntime.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.add_session_config_entry("session.intra_op.allow_spinning", "0")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "SessionOptions", Sleeping)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of oracle files and data beside the repository; without it the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: set DENSEPORT_SHARED to the folder with oracle/ and data/")
    return SHARED


@pytest.fixture(scope="session")
def oracle(shared: Path) -> Path:
    """Golden files made by the real mmsegmentation."""
    return shared / "oracle"


@pytest.fixture(scope="session")
def exported(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The bundle of an oracle model, exported when it is first asked for."""
    bundles: dict[str, Bundle] = {}

    def export(name: str) -> Bundle:
        if name not in bundles:
            folder = tmp_path_factory.mktemp("bundles") / name
            bundles[name] = export_once(oracle / f"{name}.pth", shelf(tmp_path_factory), folder, _oracle_models())
        return bundles[name]

    return export


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of the small trained checkpoint that the repository holds."""
    folder = tmp_path_factory.mktemp("bundles") / "sample"
    return export_once(ASSETS / "dpt_tiny_street.pth", shelf(tmp_path_factory), folder, _oracle_models())


def _oracle_models() -> list[Path]:
    return [path for name in ORACLE_MODELS if (path := SHARED / "oracle" / f"{name}.pth").is_file()]


@pytest.fixture(scope="module")
def each_network_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests of a module take the graph of a network that this run has exported before."""
    with networks_once(shelf(tmp_path_factory)):
        yield


@pytest.fixture
def sample_copy(sample: Bundle, tmp_path: Path) -> Bundle:
    """The sample's bundle, to be changed or damaged."""
    return Bundle(shutil.copytree(sample.path, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def depth_sample(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of a small network with random weights that gives depths in metres."""
    from foreign import declared_depth, estimating

    from denseport.export.entrance.foreign import import_bundle

    folder = tmp_path_factory.mktemp("depth")
    return import_bundle(estimating().save(folder / "tiny.onnx"), folder / "bundle", declared_depth())


@pytest.fixture(scope="session")
def image_kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The runtime's kernels around the network, compiled by g++."""
    return compile_kernels(IMAGE_SOURCES, launch.KERNELS, tmp_path_factory.mktemp("image_kernels"))


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The plugin's kernels, compiled by g++."""
    from denseport.export.plugin import launch as plugin
    from denseport.export.plugin.compile import SOURCES

    return compile_kernels(SOURCES, plugin.KERNELS, tmp_path_factory.mktemp("kernels"))
