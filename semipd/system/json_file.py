"""Reading a JSON object from a file that somebody else wrote."""

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20
"""The index of a checkpoint with a hundred thousand tensors has 10 MiB."""


class UnusableJson(ValueError):  # noqa: N818
    """What is wrong with the file, as the end of a sentence that begins with its path."""


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises UnusableJson when it is no readable JSON object or contradicts itself, and FileNotFoundError."""
    try:
        data = json.loads(_text(path), object_pairs_hook=_without_contradiction)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnusableJson(f"cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise UnusableJson("is nested too deeply to be read") from error
    except UnusableJson:
        raise
    except ValueError as error:
        raise UnusableJson(f"cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise UnusableJson(f"holds {type(data).__name__}, not a JSON object")
    return data


def _text(path: Path) -> str:
    """A pipe or a device instead of a file would hold us up for ever."""
    status = path.stat()
    if not path.is_file():
        raise UnusableJson("is not a regular file")
    if status.st_size > MAX_BYTES:
        raise UnusableJson(f"has {status.st_size} bytes; the limit is {MAX_BYTES}")
    return path.read_text(encoding="utf-8")


def _without_contradiction(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise UnusableJson(f"says {name!r:.100} more than once, and not the same")
        found[name] = value
    return found
