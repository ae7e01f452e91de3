"""API keys: read from a file that nobody else may read, kept as digests, compared in constant time."""

import hashlib
import hmac
import os
import re
import stat
from pathlib import Path
from typing import Self

from semipd.core.errors import SemipdError
from semipd.system.safe_files import refuse_planted_links

MIN_KEY_CHARS = 16
MAX_FILE_BYTES = 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""No colon: names with one are the daemon's own, such as those of guests on the Unix socket."""

_KEY = re.compile(r"[!-~]+")


class Keyring:
    """Digests by name. The keys themselves are forgotten, so no log or dump of ours can hold one."""

    def __init__(self, digests: dict[str, bytes]) -> None:
        self._digests = digests

    def __len__(self) -> int:
        return len(self._digests)

    @classmethod
    def load(cls, path: Path, setting: str) -> Self:
        """`setting`: which option named the file. Raises SemipdError: `keys_unreadable`, `keys_unsafe`,
        `keys_invalid`; none of them shows a key."""
        return cls(_parse(_read(path, setting), path, setting))

    def name_of(self, key: str) -> str | None:
        """Takes as long whichever key it is, and if it is none."""
        presented = _digest(key)
        found = None
        for name, digest in self._digests.items():
            if hmac.compare_digest(digest, presented):
                found = name
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _read(path: Path, setting: str) -> str:
    try:
        refuse_planted_links(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            _check_mode(os.fstat(descriptor), path, setting)
            return file.read(MAX_FILE_BYTES).decode("ascii")
    except OSError as error:
        message = f"The key file {path} cannot be read: {error.strerror}."
        raise SemipdError("keys_unreadable", message, f"Correct {setting}.", param=setting) from error
    except UnicodeDecodeError as error:
        message = f"The key file {path} holds bytes that are not ASCII."
        raise SemipdError("keys_invalid", message, "Write one name:key a line.", param=setting) from error


def _check_mode(found: os.stat_result, path: Path, setting: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise SemipdError("keys_unreadable", f"{path} is no file.", f"Correct {setting}.", param=setting)
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077 or found.st_uid not in (os.getuid(), 0):
        raise SemipdError(
            "keys_unsafe",
            f"The key file {path} belongs to user {found.st_uid} and has mode {mode:o}; others than user "
            f"{os.getuid()} could read or write it.",
            f"Run: chown {os.getuid()} {path}; chmod 600 {path}",
            param=setting,
        )


def _parse(text: str, path: Path, setting: str) -> dict[str, bytes]:
    digests: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, _, key = line.partition(":")
        name, key = name.strip(), key.strip()
        problem = _problem(name, key, digests)
        if problem:
            message = f"Line {number} of the key file {path}: {problem}."
            raise SemipdError("keys_invalid", message, "Write one name:key a line.", param=setting)
        digests[name] = _digest(key)
    if not digests:
        message = f"The key file {path} holds no key."
        raise SemipdError("keys_invalid", message, f"Write one name:key a line, or empty {setting}.")
    return digests


def _problem(name: str, key: str, known: dict[str, bytes]) -> str:
    """Shows nothing of the line: what stands in the place of the name may be a key."""
    if not _NAME.fullmatch(name):
        return "a name is 1 to 64 letters, digits, dots, dashes and underscores"
    if name in known:
        return "its name stands in the file twice"
    if len(key) < MIN_KEY_CHARS or not _KEY.fullmatch(key):
        return f"a key is {MIN_KEY_CHARS} or more visible ASCII characters"
    return "its key is also another's" if _digest(key) in known.values() else ""
