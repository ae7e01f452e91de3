"""Arguments: a parser that suggests the nearest word, and the types of numbers."""

import argparse
import difflib
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from semipd.command_line.exit_codes import EPILOG
from semipd.command_line.streams import printable, valid_text
from semipd.core.errors import SemipdError

N = TypeVar("N", int, float)

_SHOWN_CHARS = 60
_MAX_NUMBER = 1e9
_MAX_WHOLE = 2**63 - 1
_CUTOFF = 0.6
"""Of difflib's ratio: below, two words are not alike."""


class CommandParser(argparse.ArgumentParser):
    """Says which command or option is near to an unknown one, refuses what is no text, and ends its help with
    the exit codes."""

    def __init__(self, **options: Any) -> None:
        given: dict[str, Any] = {
            "epilog": EPILOG,
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        }
        super().__init__(**(given | options))
        self._command = ""

    def add_subparsers(self, **options: Any) -> Any:
        """One of them is needed; that is said after an unknown option, not instead of it."""
        self._command = options["metavar"]
        return super().add_subparsers(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._suggestion(unknown[0])}")
        if self._command and not hasattr(found, "run"):
            self.error(f"the following arguments are required: {self._command}")
        self._check_values(found)
        for name, value in vars(found).items():
            for text in value if isinstance(value, list) else [value]:
                self._check_text(name, text)
        return found, unknown

    def _check_values(self, found: argparse.Namespace) -> None:
        """`--option=--` gives argparse before Python 3.13 an option without its value."""
        for action in self._actions:
            value = getattr(found, action.dest, None)
            is_missing = isinstance(value, list) and ((value != action.default and not value) or [] in value)
            if action.nargs is None and is_missing:
                self.error(
                    f"argument {'/'.join(action.option_strings) or action.dest}: expected one argument"
                )

    def error(self, message: str) -> Any:
        super().error(printable(message.replace("\n", " ")))

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse would not say that help cannot be written."""
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise

    def _suggestion(self, unknown: str) -> str:
        return did_you_mean(unknown.partition("=")[0], self._option_string_actions)

    def _check_text(self, name: str, value: object) -> None:
        if isinstance(value, str):
            try:
                valid_text(value, name)
            except SemipdError as error:
                self.error(error.message)


def optional_path(text: str) -> Path | None:
    """For argparse: empty means what no option does."""
    return Path(text) if text else None


def did_you_mean(unknown: str, known: Iterable[str]) -> str:
    """A sentence, or nothing when none is near."""
    near = difflib.get_close_matches(unknown[:_SHOWN_CHARS], list(known), n=1, cutoff=_CUTOFF)
    return f". Did you mean {near[0]}?" if near else ""


def whole_number(minimum: int = -_MAX_WHOLE, maximum: int = _MAX_WHOLE) -> Callable[[str], int]:
    """For argparse: a whole number within these bounds, which the socket can carry."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{_cut(text)} is no whole number") from error
        return _bounded(value, text, minimum, maximum)

    return parse


def number(minimum: float = -_MAX_NUMBER, maximum: float = _MAX_NUMBER) -> Callable[[str], float]:
    """Likewise for any number that is finite."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{_cut(text)} is no number") from error
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{_cut(text)} is no finite number")
        return _bounded(value, text, minimum, maximum)

    return parse


def _bounded(value: N, text: str, minimum: N, maximum: N) -> N:
    if not minimum <= value <= maximum:
        message = f"{_cut(text)} is not within {minimum} to {maximum}"
        raise argparse.ArgumentTypeError(message)
    return value


def _cut(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")


def repeated(arguments: argparse.Namespace, names: Sequence[str]) -> str:
    """Those of the options `names` that were given, quoted for a shell, to be added to a command that a
    person copies."""
    words: list[str] = []
    for name in names:
        given = getattr(arguments, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
    return "".join(f" {shlex.quote(word)}" for word in words)
