"""The command ``denseport``.

A sub-command is a light module with ``HELP``, ``add_arguments(parser)`` and ``run(arguments) -> exit code``, found
through the entry-point group ``denseport.commands``. Heavy libraries are imported inside ``run``, so help is instant.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import entry_points, version
from typing import Any, TextIO, cast

from denseport.runtime.cli.arguments import Parser
from denseport.runtime.errors import DenseportError, MachineError, OutputError, is_out_of_memory
from denseport.runtime.system.terminal import Shown

__all__ = ["main"]

GROUP = "denseport.commands"
BROKEN_PIPE = 141  # 128 + SIGPIPE, as other programs; never 0, lest a failed gate pass for a success
# As people meet them; commands from elsewhere follow.
ORDER = (
    "models",
    "export",
    "import",
    "inspect",
    "run",
    "eval",
    "bench",
    "calibrate",
    "build",
    "report",
    "triton",
    "serve",
    "sign",
    "verify",
    "doctor",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 gate failed, 2 bad input, 3 machine lacks something."""
    # Before OpenCV is loaded: its messages about bad files would stand beside ours.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    with redirect_stdout(cast(TextIO, Shown(sys.stdout))), redirect_stderr(cast(TextIO, Shown(sys.stderr))):
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        try:
            arguments = _parse(argv)
            code = int(arguments.command.run(arguments))
        except SystemExit as err:  # after --help and --version
            code = int(err.code or 0)
        sys.stdout.flush()  # here, where a closed pipe is still ours to handle
        return code
    except DenseportError as err:
        return _fail(err)
    except KeyboardInterrupt:
        print("denseport: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        _discard_output()
        return BROKEN_PIPE
    except Exception as err:
        # Of files that we write, `writing` tells.
        if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _discard_output()
            return _fail(OutputError("standard output cannot be written: no space left", "Free some room."))
        if not is_out_of_memory(err):
            raise
        return _fail(MachineError("this machine ran out of memory", "Give smaller images or batches, or free some."))


def _open_closed_streams() -> None:
    """Gives what is printed a place to go where the caller closed the stream (``>&-``), lest it lands in a file."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def _discard_output() -> None:
    """What is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(err: DenseportError) -> int:
    print(f"denseport: error: {err}", file=sys.stderr)
    return err.exit_code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:  # told by the sub-command's parser, which knows its own options
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.command is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    return arguments


def _parser() -> Parser:
    words = "Segmentation and depth networks to proven deployments: ONNX, INT8, TensorRT."
    parser = Parser(prog="denseport", description=words)
    parser.add_argument("--version", action="version", version=f"denseport {version('denseport')}")
    parser.set_defaults(command=None, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, module in _commands().items():
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
        sub.set_defaults(command=module, parser=sub)
    return parser


def _commands() -> dict[str, Any]:
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    names = sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return {name: found[name].load() for name in names}


if __name__ == "__main__":
    sys.exit(main())
