"""What an option does not take is refused before any work, with its name, what is allowed, and how to go on."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from denseport.runtime.cli import main as cli
from denseport.runtime.cli.arguments import real, size, whole

# What has to be given, besides the option at test; no bundle is opened before the options are read.
NEEDED = {
    "export": ["c.pth", "-o", "new"],
    "run": ["bundle", "photo.png", "-o", "new"],
    "eval": ["bundle", "--data", "photos"],
    "calibrate": ["bundle", "--images", "photos"],
    "build": ["bundle"],
    "bench": ["bundle"],
    "serve": ["bundle"],
    "triton": ["bundle", "-o", "new"],
}

BAD = [
    ("eval", ["--report", ""], "is not a path"),
    ("calibrate", ["--masks", ""], "is not a path"),
    ("run", ["--opacity", "2"], "from 0 to 1"),
    ("run", ["--opacity", "nan"], "from 0 to 1"),
    ("run", ["--temporal-smoothing", "1"], "from 0 to below 1"),
    ("run", ["--threads", "0"], "whole number from 1 up"),
    ("run", ["--threads", "1.5"], "whole number from 1 up"),
    ("eval", ["--limit", "-1"], "whole number from 1 up"),
    ("eval", ["--limit", ""], "whole number from 1 up"),
    ("eval", ["--workers", "0"], "whole number from 1 up"),
    ("eval", ["--ignore-index", "-1"], "whole number from 0 up"),
    ("eval", ["--budget", "-1"], "from 0 to 100"),
    ("eval", ["--agreement", "98"], "from 0 to 1"),
    ("eval", ["--shard", "3/2"], "I/N"),
    ("eval", ["--merge"], "at least one argument"),
    ("calibrate", ["--limit", "0"], "whole number from 1 up"),
    ("calibrate", ["--data-limit", "0"], "whole number from 1 up"),
    ("calibrate", ["--budget", "101"], "from 0 to 100"),
    ("calibrate", ["--agreement", "-0.1"], "from 0 to 1"),
    ("calibrate", ["--keep-float"], "at least one argument"),
    ("export", ["--scale", "512", "0"], "whole number from 1 up"),
    ("export", ["--scale", "512"], "expected 2 arguments"),
    ("build", ["--level", "6"], "from 0 to 5"),
    ("build", ["--workspace", "0"], "whole number from 1 up"),
    ("build", ["--limit", "0"], "whole number from 1 up"),
    ("build", ["--min", "64"], "HEIGHTxWIDTH"),
    ("build", ["--precision", "fp61"], "fp16"),
    ("bench", ["--size", "0x0"], "WIDTHxHEIGHT"),
    ("bench", ["--size", "64"], "WIDTHxHEIGHT"),
    ("bench", ["--seconds", "0"], "above 0"),
    ("bench", ["--rounds", "0"], "whole number from 1 up"),
    ("bench", ["--batches", "1", "0"], "whole number from 1 up"),
    ("serve", ["--port", "65536"], "from 0 to 65535"),
    ("serve", ["--timeout", "inf"], "above 0"),
    ("serve", ["--queue", "-1"], "whole number from 0 up"),
    ("triton", ["--timeout", "-1"], "from 0 up"),
    ("triton", ["--warmup", "0x9"], "WIDTHxHEIGHT"),
    ("triton", ["--max-batch", "0"], "whole number from 1 up"),
]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error of a command that was not begun: two lines or more."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("denseport: error: ") and "Traceback" not in err
    assert "--help" in err.splitlines()[-1]
    return err


@pytest.mark.parametrize("command", ["export", "run", "triton"])
def test_an_empty_output_is_not_the_current_folder(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, *NEEDED[command][:-1], ""]) == 2
    assert capsys.readouterr().err.startswith("denseport: error: -o/--output: '' is not a path; ")


@pytest.mark.parametrize(("command", "option", "allowed"), BAD, ids=lambda value: str(value))
def test_a_bad_value_is_refused_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], command: str, option: list[str], allowed: str
) -> None:
    err = refused(capsys, command, *NEEDED[command], *option)
    assert err.startswith(f"denseport: error: {option[0]}: ") and allowed in err
    assert (
        repr(option[-1]) in err or "expected" in allowed or "argument" in allowed
    ) and f"See denseport {command} --help." in err


def test_no_number_or_path_of_any_command_goes_unchecked() -> None:
    """A bare int or float would take -1 and nan, a bare Path the empty text for the current folder."""
    (commands,) = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert set(NEEDED) < set(commands.choices)
    for name, parser in commands.choices.items():
        for action in parser._actions:
            assert action.type not in (int, float, Path), f"{name} {action.option_strings}"


def test_numbers_within_their_bounds_are_read() -> None:
    assert [whole(0)("0"), whole(1, 5)("5"), whole(-3)("-3")] == [0, 5, -3]
    assert [real(0, 1)("1"), real(0, below=1)("0.99"), real(above=0)("1e-9")] == [1, 0.99, 1e-9]
    assert size(2000)("1920x1080") == (1080, 1920)


@pytest.mark.parametrize("text", ["", " ", "1_0", "٣", "1e3", "0x10", "-1", "9" * 5000])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number from 0 up"):
        whole(0)(text)


@pytest.mark.parametrize("text", ["2001x1", "1x", "x1", "-1x1", "1x1x1", "1 x 1", "1×1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="each from 1 to 2000"):
        size(2000)(text)


def test_a_misspelt_word_brings_the_nearest_to_mind(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean eval?" in refused(capsys, "evaal", "bundle")
    assert "Did you mean --threads? See denseport run" in refused(capsys, "run", *NEEDED["run"][:-1], "o", "--threds=3")
    assert "Did you mean fp16?" in refused(capsys, "build", "bundle", "--precision", "pf16")
    assert "Did you mean" not in refused(capsys, "fly")
    assert "See denseport --help." in refused(capsys, "--unknown")


def test_the_command_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("usage: denseport") and "\n    calibrate" in err


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"denseport {version('denseport')}\n"


@pytest.mark.parametrize(
    ("redirection", "code", "words"),
    [
        (">/dev/full", 2, "no space left"),
        (">limited", 2, "no space left"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("| head -1", 0, ""),
    ],
)
def test_an_output_that_takes_nothing_is_no_traceback(tmp_path: Path, redirection: str, code: int, words: str) -> None:
    program = Path(sys.executable).with_name("denseport")
    command = f"ulimit -f 0; set -o pipefail; '{program}' models --json {redirection}; exit $?"  # of files alone
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (code, 141 if "|" in redirection else code), done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_narrow_terminal_of_plain_ascii_shows_every_help() -> None:
    program = Path(sys.executable).with_name("denseport")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "1", "TERM": "dumb"}
    for arguments in (["run", "--help"], ["doctor"]):
        done = subprocess.run([program, *arguments], env={**os.environ, **plain}, capture_output=True, check=False)
        assert done.returncode == 0 and done.stdout.isascii() and not done.stderr, done.stderr
