"""What the documents say is so: commands and code run, links lead somewhere, and no module or error is left out."""

from __future__ import annotations

import configparser
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from documents import DOCUMENTS, TUTORIALS, anchors, blocks, code_spans, commands, links, options, parsers, prose, title
from foreign import segmenting
from quantizing import shorten_races
from signing import new_key
from support import ASSETS, NEEDS_TENSORRT, REPO, ROOTS, modules, small_images

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import DenseportError
from denseport.runtime.media.images import read_image
from denseport.runtime.media.videos import VideoWriter

PATIENCE = 120.0  # seconds
ERRORS = REPO / "docs/errors.md"
PAGES = [document for document in DOCUMENTS if document not in TUTORIALS]  # those: test_tutorials.py
WITH_SHELL = [document for document in PAGES if blocks(document, "bash")]
PROGRAMS = [
    pytest.param(document, number, id=f"{title(document)}-{number}")
    for document in PAGES
    for number in range(len(blocks(document, "python")))
]

# Commands whose options are read but which are not run here, and why. The first pattern that is found in one decides.
ONLY_READ = {
    r"^denseport export ": "takes long, and the bundle of the fixture was made so: tests/runtime/cli/test_cli.py",
    r"^denseport serve ": "does not end by itself: tests/runtime/serving/http/test_serve.py",
    r" out/depth ": "the toy depth network: tests/runtime/test_trained_depth.py",
    r"--server ": "needs a Triton server: tests/runtime/serving/triton",
    r"--ray ": "needs Ray: tests/runtime/evaluation/test_shards.py",
    r"--shard |--merge ": "shards of a large data set: tests/runtime/evaluation/test_shards.py",
    r"--gate reference": "needs a published model and its 2000 images: tests/runtime/evaluation/test_evaluate.py",
    r"--engine tensorrt\b|--backend tensorrt_plan": "needs a GPU: tests/export/engine, tests/runtime/serving/triton",
    r"--engine tensorrt_rtx": "takes long: tests/export/engine/test_build.py",
    r"--provider Nv": "needs a GPU: tests/runtime/backends/test_rtx_provider.py",
    r"--artifact \S+\.engine": "needs a GPU: tests/runtime/backends/test_tensorrt_gpu.py",
    r"^denseport calibrate ": "takes long: tests/calibration/test_calibrate.py",
    r"--precision int8": "needs what denseport calibrate wrote: tests/calibration/test_calibrate.py",
    r"^denseport report ": "takes long: tests/runtime/benchmark/test_overview.py",
    r"^denseport bench ": "takes long: tests/runtime/benchmark/test_bench.py",
}
# Options of programs of ours that are no sub-commands.
FOREIGN = {"--slow", "--fused", "--weights"}


@pytest.fixture
def desk(
    sample: Bundle, depth_sample: Bundle, each_network_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working folder in which everything lies that the documents give a name to, small."""
    images = small_images(tmp_path / "images")
    for folder in ("photos", "more"):
        shutil.copytree(tmp_path / "images", tmp_path / folder)
    for image in ("street.jpg", "photo.jpg", "more/photo.jpg"):
        shutil.copy(images[0], tmp_path / image)  # OpenCV goes by the contents
    with VideoWriter(tmp_path / "clip.webm", 10.0) as writer:
        for shift in range(2):
            writer.write(np.roll(read_image(images[0]), shift, 1))
    (tmp_path / "clip.webm").rename(tmp_path / "clip.mp4")
    for bundle in ("BUNDLE", "bundle", "out/dpt-b", "out/quickstart/bundle"):
        shutil.copytree(sample.path, tmp_path / bundle)
    shutil.copytree(depth_sample.path, tmp_path / "depth-bundle")
    (tmp_path / "depths").mkdir()
    for image in images:
        np.save(tmp_path / f"depths/{image.stem}.npy", np.full(read_image(image).shape[:2], 3.0, np.float32))
    for data in ("street", "ROOT", "ADEChallengeData2016"):
        (tmp_path / data).symlink_to(ASSETS / "street")
    for checkpoint in ("dpt_vit-b16.pth", "CHECKPOINT"):
        (tmp_path / checkpoint).symlink_to(ASSETS / "dpt_tiny_street.pth")
    new_key(tmp_path, "release")
    for model, classes in (("MODEL.onnx", 4), ("net.onnx", len(sample.manifest.classes))):
        segmenting(classes=classes).save(tmp_path / model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shorten_races(monkeypatch)
    return tmp_path


def why_not_run(words: list[str]) -> str | None:
    line = " ".join(words)
    return next((reason for pattern, reason in ONLY_READ.items() if re.search(pattern, line)), None)


@pytest.mark.parametrize("document", WITH_SHELL, ids=title)
def test_the_commands_run(document: Path, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In their order, in one folder, as somebody would who reads the page."""
    for block in blocks(document, "bash"):
        if "<<" in block:  # a program of its own
            script = block.replace("python -", f"{sys.executable} -")
            subprocess.run(["bash", "-euc", script], stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE)
            continue
        for words in commands(block):
            if words[0] != "denseport" or why_not_run(words):
                continue
            code = main(words[1:])
            assert code == 0, f"{' '.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("document", [*WITH_SHELL, *TUTORIALS], ids=title)
def test_the_commands_are_read(document: Path) -> None:
    """Also those that cannot run here have the options that they are shown with, and what they start is there."""
    known = parsers()
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg")
    extras = set(setup["options.extras_require"])
    for block in blocks(document, "bash"):
        if "<<" in block:
            continue
        for words in commands(block.replace("$I", "1")):
            if words[0] == "denseport":
                known[words[1]].parse_args(words[2:])
            for extra in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
                assert set(extra.split(",")) <= extras


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_what_the_text_names_is_there(document: Path) -> None:
    """Commands, options and files that stand between backticks."""
    known = parsers()
    every = {option for parser in known.values() for option in options(parser)} | FOREIGN
    for span in code_spans(document):
        name = span.removeprefix("denseport ").split()[0]
        if not span.startswith(("denseport ", "--")):
            continue  # another program's
        allowed = options(known[name]) if name in known else every
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
            assert option in allowed, f"{span}: {option}"
    for path in re.findall(
        r"(?<![\w/.])(?:scripts|tests|examples|docs|export|runtime|calibration)/[\w./*-]*", prose(document)
    ):
        assert list(REPO.glob(path.rstrip("."))), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_the_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert REPO in target.parents, link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(("document", "number"), PROGRAMS)
def test_the_python_code_runs(document: Path, number: int, desk: Path) -> None:
    """Each block is a program of its own."""
    block = blocks(document, "python")[number]
    program = compile(block, f"{title(document)}, block {number}", "exec")
    if "Client(" in block:
        pytest.skip("needs a Triton server: tests/runtime/serving/triton")
    exec(program, {"__name__": "__main__"})


def test_every_document_can_be_found() -> None:
    """From the list of documents, which the README points to."""
    entry = REPO / "docs/README.md"
    assert "docs/README.md" in links(REPO / "README.md")
    listed = {(entry.parent / link).resolve() for link in links(entry)}
    assert set((REPO / "docs").rglob("*.md")) - {entry} <= listed


def errors() -> dict[str, type[DenseportError]]:
    """Every class of error that a module promises, by its name."""
    found = [importlib.import_module(module) for module in modules() if module != NEEDS_TENSORRT]
    promised = [getattr(module, name) for module in found for name in getattr(module, "__all__", ())]
    return {kind.__name__: kind for kind in promised if isinstance(kind, type) and issubclass(kind, DenseportError)}


def test_every_error_is_described() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (\w+) \| (\d) \| `([\w.]+)` \|$", prose(ERRORS), re.MULTILINE)
    assert {name: (base, int(code), module) for name, _, base, code, module in rows} == {
        name: (kind.__base__.__name__, kind.exit_code, kind.__module__) for name, kind in errors().items()
    }
    assert {anchor for _, anchor, *_ in rows} <= anchors(ERRORS)


@pytest.mark.parametrize("number", range(len(blocks(ERRORS, "console"))))
def test_the_errors_read_as_shown(number: int, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the letter, but for what `…` stands for."""
    command, _, shown = blocks(ERRORS, "console")[number].partition("\n")
    (desk / "cut.jpg").write_bytes((ASSETS / "street/images/validation/camvid_Seq05VD_f05100.jpg").read_bytes()[:3000])
    damaged = shutil.copytree("BUNDLE", desk / "altered") / "model.onnx"
    damaged.write_bytes(damaged.read_bytes() + b"!")
    (words,) = commands(command.removeprefix("$ "))
    code = main(words[1:])
    found = capsys.readouterr().err
    assert re.fullmatch(re.escape(shown).replace("…", ".*"), found[found.index("denseport: error:") :]), found
    heading = re.findall(r"^## (\w+)$", ERRORS.read_text(encoding="utf-8").partition(command)[0], re.MULTILINE)
    assert code == (errors()[heading[-1]].exit_code if heading else 2)


def test_every_module_has_its_place_in_the_architecture() -> None:
    """In the table of files: by name, by a pattern, or as the folder that it lies in."""
    table = re.findall(r"^\| (`.*?) \|", prose(REPO / "docs/architecture.md"), re.MULTILINE)
    covered: set[Path] = set()
    for row in table:
        folder = Path()
        for span in re.findall(r"`([^`]+)`", row):
            folder = Path(span).parent if "/" in span.rstrip("/") else folder
            name = span if "/" in span else f"{folder}/{span}"
            found = set(REPO.glob(name.rstrip("/")))
            assert found, f"{name} is no file"
            covered |= found
    missing = [
        path.relative_to(REPO).as_posix()
        for root in ROOTS
        for path in (REPO / root).rglob("*.py")
        if path.name != "__init__.py" and not covered & {path, *(set(path.parents) - {REPO / root})}
    ]
    assert not missing
