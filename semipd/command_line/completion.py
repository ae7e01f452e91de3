"""Completion scripts for shells, made by shtab. It is imported only when one is asked for."""

import argparse
from pathlib import Path
from typing import Any

from semipd.command_line.arguments import CommandParser

SHELLS = ("bash", "zsh", "tcsh", "fish")


def add_completion_command(
    commands: "argparse._SubParsersAction[CommandParser]", root: CommandParser
) -> None:
    completion = commands.add_parser("completion", help="print a shell's completion script for this command")
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=lambda arguments: print_completion(root, arguments.shell))


def print_completion(root: argparse.ArgumentParser, shell: str) -> int:
    import shtab

    _complete_files(root, shtab.FILE)
    print(shtab.complete(root, shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, how: Any) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_files(inner, how)
        elif action.type is Path:
            action.complete = how  # type: ignore[attr-defined]
