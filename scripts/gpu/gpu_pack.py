"""Lay into .gpu/ what a borrowed GPU machine lacks, in parts that travel, and print the calls.

    scripts/gpu/pack                        ONNX Runtime's GPU package whole: more parts, so more calls
    scripts/gpu/pack --keep sm_90           of its machine code only that of Hopper

The machine has no network, PyTorch and CUDA, and takes so many bytes a call, the clone included. It lacks the
checkpoint of the GPU tests and ONNX Runtime's GPU package, whose parts come with calls that do other work meanwhile.
scripts/gpu/check puts them together once all are there. TensorRT's own libraries are in no registry, and TensorRT-RTX
has no Hopper: they do not travel.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from gpu_fatbin import keep_architecture

ROOT = Path(__file__).parents[2]
ROOM = 64 * 2**20  # of a call
MARGIN = 2**20
WHEEL = "onnxruntime-gpu"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64")
# Of the wheel what an inference needs: no TensorRT provider, no tools, no C library.
LEFT_OUT = ("libonnxruntime.so", "libonnxruntime_providers_tensorrt.so", "/transformers/", "/tools/", "/quantization/")
CHECKPOINTS = ("oracle/tiny_dpt_project.pth",)  # of the GPU tests
PRESET = 3  # of xz: twice as slow saves 2 %


def download(python: str, folder: Path) -> Path:
    """The wheel for that Python on Linux, as pip's client finds it."""
    platforms = [argument for each in PLATFORMS for argument in ("--platform", each)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    subprocess.run(
        [*command, "--python-version", python, "--implementation", "cp", "-d", str(folder), WHEEL], check=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def pack_wheel(wheel: Path, target: Path, keep: int | None) -> None:
    """The wheel as a tar of what is needed, with xz.

    Args:
        keep: the architecture whose machine code stays; None: all of it.
    """
    with zipfile.ZipFile(wheel) as source, tarfile.open(target, "w:xz", preset=PRESET) as packed:
        for name in source.namelist():
            if name.endswith("/") or any(part in name for part in LEFT_OUT):
                continue
            content = bytearray(source.read(name))
            if keep is not None and name.endswith("providers_cuda.so"):
                code = keep_architecture(content, keep)
                kept, all_of_it = code[keep] / 2**20, code.total() / 2**20
                print(f"{Path(name).name}: {kept:.0f} of {all_of_it:.0f} MiB of machine code stay")
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if name.endswith(".so") else 0o644
            packed.addfile(entry, io.BytesIO(content))


def split(file: Path, folder: Path, first: int, size: int) -> list[Path]:
    """``part.00`` … of at most so many bytes, with ``parts.sha256`` for ``sha256sum --check``."""
    parts = []
    with file.open("rb") as source:
        while content := source.read(first if not parts else size):
            parts.append(folder / f"part.{len(parts):02}")
            parts[-1].write_bytes(content)
    sums = (f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part.name}\n" for part in parts)
    (folder / "parts.sha256").write_text("".join(sums))
    return parts


def travelling() -> int:
    """Bytes of the clone that travel with every call: what git tracks, and what it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    files = (ROOT / name for name in listed.decode().split("\0") if name)
    return sum(file.lstat().st_size for file in files if file.exists())


def lay_checkpoints(shared: Path, folder: Path) -> int:
    """Copy what the tests read of the folder beside the repository; returns its bytes."""
    for name in CHECKPOINTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared / name, folder / name)
    return sum((folder / name).stat().st_size for name in CHECKPOINTS)


def calls(parts: list[Path], shared: Path) -> Iterator[tuple[list[str], str, int]]:
    """For each call on the machine what to carry, the command, and its seconds at most.

    The first measures what needs nothing else, the last what needs all parts. Those between bring a part each. Together
    with the machine's start and the transfers they stay within a quarter of an hour.
    """
    does = [("tests kernels images", 270), *[("kernels", 60)] * (len(parts) - 2), ("images models", 420)]
    common = [_relative(shared), _relative(parts[0].parent / "parts.sha256")]
    for number, (what, seconds) in enumerate(does):
        carry = [*common, *map(_relative, parts[number : number + 1])]
        yield carry, f"bash scripts/gpu/check --only {what} --seconds {seconds}", seconds + 30


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="gpu-pack", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep", metavar="SM", help="leave only this architecture's machine code, such as sm_90")
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="of that machine; default: %(default)s")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", metavar="FOLDER", help="has oracle/")
    options = parser.parse_args(arguments)
    keep = None if options.keep is None else int(options.keep.removeprefix("sm_"))
    folder = ROOT / ".gpu"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    room = ROOM - MARGIN - travelling() - lay_checkpoints(options.shared, folder / "shared")
    with tempfile.TemporaryDirectory(prefix="gpu-pack-") as work:
        packed = Path(work, "site.tar.xz")
        pack_wheel(download(options.python, Path(work)), packed, keep)
        parts = split(packed, folder, room, room)
    print(f"{len(parts)} parts of at most {room / 2**20:.1f} MiB in {folder}")
    for number, (carry, command, seconds) in enumerate(calls(parts, folder / "shared"), 1):
        print(f"call {number}: carry {' '.join(carry)}; timeout {seconds} s\n        {command}")


if __name__ == "__main__":
    main()
