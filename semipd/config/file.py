"""A configuration file: read, and taken apart into sections and classes."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semipd.config.classes import PREFIX
from semipd.core.errors import SemipdError
from semipd.system.small_files import read_small_file

MAX_FILE_BYTES = 2**20


def tables(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Sections and classes, by the beginning of their keys. An empty class has no targets."""
    for section, table in document.items():
        if section + "." == PREFIX and isinstance(table, dict):
            yield from ((PREFIX + name, options or {"ttft_ms": 0}) for name, options in table.items())
        else:
            yield section, table


def read_toml(path: Path) -> dict[str, Any]:
    """Raises SemipdError: `config_not_found`, `config_unreadable`."""
    try:
        return tomllib.loads(read_small_file(path, MAX_FILE_BYTES).decode("utf-8"))
    except FileNotFoundError as error:
        raise SemipdError(
            "config_not_found",
            f"There is no configuration file {path}.",
            "Give --config an existing file, or leave it out to use the defaults.",
        ) from error
    except OSError as error:
        message = f"The configuration file {path} cannot be read: {error.strerror or error}."
        raise SemipdError("config_unreadable", message, "Check the path and its permissions.") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError, or too deep
        message = f"The configuration file {path} is not valid TOML: {error}."
        hint = "semipd-daemon config prints a complete file to start from."
        raise SemipdError("config_unreadable", message, hint) from error
