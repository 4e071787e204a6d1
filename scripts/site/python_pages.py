"""The reference of the Python API: a page for each folder, filled by mkdocstrings from the docstrings."""

from __future__ import annotations

from pathlib import Path

from pages import REPO

__all__ = ["python_pages"]

PACKAGES = ("runtime", "export", "calibration")
# Code that runs inside of a Triton server; commands are no API; the package's own file has its version alone.
LEFT_OUT = ("python_models", "commands", "package")
FIRST = """\
# Python API

What applications use is in `denseport.runtime`:

| name | what it is |
|---|---|
"""
USED = {
    "Segmenter": ("denseport.runtime.segmenter.Segmenter", "a bundle, opened: image in, mask out"),
    "Segmentation": ("denseport.runtime.pipeline.results.Segmentation", "what it returns"),
    "DepthEstimator": ("denseport.runtime.segmenter.depth.DepthEstimator", "the same for depth: image in, depth out"),
    "Depth": ("denseport.runtime.pipeline.depth.Depth", "what it returns"),
    "Timings": ("denseport.runtime.pipeline.results.Timings", "milliseconds of each stage of an image"),
    "evaluate": ("denseport.runtime.evaluation.evaluate.evaluate", "accuracy on labelled images, and the gate"),
    "Gate": ("denseport.runtime.evaluation.gate.Gate", "what the gate compares with, and what may be lost"),
    "Evaluation": ("denseport.runtime.evaluation.report.Evaluation", "what evaluate returns"),
    "evaluate_depth": ("denseport.runtime.evaluation.depth.evaluate.evaluate_depth", "the same for depth"),
    "Bundle": ("denseport.runtime.bundle.bundle.Bundle", "a folder with its manifest, read and checked"),
    "DenseportError": ("denseport.runtime.errors.DenseportError", "the base of all errors"),
}  # fmt: skip
MADE = {
    "export_bundle": ("denseport.export.bundle.export_bundle", "a checkpoint to a bundle"),
    "import_bundle": ("denseport.export.entrance.foreign.import_bundle", "an ONNX file to a bundle"),
    "export_module": ("denseport.export.entrance.module.export_module", "a module of torch to a bundle"),
    "build": ("denseport.export.build.build", "typed graphs and engines, audited"),
    "calibrate": ("denseport.calibration.calibrate.calibrate", "INT8 or FP8 within a budget"),
    "bench": ("denseport.runtime.benchmark.bench.bench", "speed, memory and start-up"),
}


def python_pages(folder: Path) -> list[str]:
    """Writes the pages; returns the entries of the menu, as TOML."""
    folder.mkdir(parents=True)
    text = (
        FIRST
        + _rows(USED)
        + "\nBundles are made and measured by:\n\n| name | what it does |\n|---|---|\n"
        + _rows(MADE)
    )
    (folder / "index.md").write_text(text + "\nThe pages below have every module.\n", encoding="utf-8")
    menu = ['"python/index.md"']
    for name, modules in sorted(_by_folder().items()):
        blocks = [f"::: {module}\n" for module in modules]
        file = f"{name.replace('.', '-')}.md"  # Zensical takes what follows a dot for the suffix
        (folder / file).write_text("\n".join([f"# {name}\n", *blocks]), encoding="utf-8")
        menu.append(f'{{ "{name.removeprefix("denseport.")}" = "python/{file}" }}')
    return menu


def _rows(names: dict[str, tuple[str, str]]) -> str:
    return "".join(f"| [`{name}`][{path}] | {words} |\n" for name, (path, words) in names.items())


def _by_folder() -> dict[str, list[str]]:
    """Each folder, and those of its modules that promise a name."""
    found: dict[str, list[str]] = {}
    for path in sorted(path for package in PACKAGES for path in (REPO / package).rglob("*.py")):
        parts = path.relative_to(REPO).with_suffix("").parts
        if not set(parts) & set(LEFT_OUT) and "\n__all__ = " in path.read_text(encoding="utf-8"):
            folder = ".".join(("denseport", *parts[:-1]))
            found.setdefault(folder, []).append(folder if parts[-1] == "__init__" else f"{folder}.{parts[-1]}")
    return found
