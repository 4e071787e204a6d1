"""The reference of the commands, from what argparse prints for ``--help``."""

from __future__ import annotations

import argparse

from denseport.runtime.cli import main

__all__ = ["commands_page"]


def commands_page() -> str:
    parser = main._parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = [
        "# Commands\n\nEach command prints the same with `--help`. Exit codes are those of [errors](errors.md); "
        "`denseport --version` prints the version.\n",
        "| command | what it does |\n|---|---|\n"
        + "".join(
            f"| [{name}](#denseport-{name}) | {_text(sub.description)} |\n" for name, sub in commands.choices.items()
        ),
    ]
    return "\n".join(parts + [_command(name, sub) for name, sub in commands.choices.items()])


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=100)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    rows = "".join(_row(formatter, action) for action in parser._actions if action.help is not argparse.SUPPRESS)
    usage = formatter.format_help().strip()
    return (
        f"## denseport {name}\n\n{_text(parser.description)}.\n\n```text\n{usage}\n```\n\n"
        f"| argument | meaning |\n|---|---|\n{rows}"
    )


def _row(formatter: argparse.HelpFormatter, action: argparse.Action) -> str:
    words = formatter._format_action_invocation(action).replace("|", "\\|")
    return f"| `{words}` | {_text(formatter._expand_help(action))} |\n"


def _text(words: str | None) -> str:
    """Plain text as Markdown in a cell of a table."""
    text = " ".join((words or "").split())
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return text
