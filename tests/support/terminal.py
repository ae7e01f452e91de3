"""A program in a real terminal: a tmux server of its own, killed at the end."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from support.eventually import LIMIT_S, eventually_now

TMUX = shutil.which("tmux")
CALL_LIMIT_S = 20.0

# the shell outlives the program, so that what it has left behind on the screen can be seen
_WRAPPER = 'echo "before the program"; "$@"; echo "exit code $?"; exec cat'


class Cell(NamedTuple):
    """Colours as in the escape sequences that choose them: "31", "38;5;74"; "39", "49": the terminal's."""

    char: str
    colour: str = "39"
    background: str = "49"
    is_reversed: bool = False


class Terminal:
    """`columns` x `rows` cells in which `command` runs. `term`: its TERM; `env`: more variables for it."""

    def __init__(
        self,
        command: Sequence[str],
        columns: int = 80,
        rows: int = 24,
        *,
        term: str = "tmux-256color",
        env: Mapping[str, str] | None = None,
    ) -> None:
        assert TMUX is not None
        # not the test's own folder: the path of a socket has to be short
        self._folder = tempfile.TemporaryDirectory(prefix="semipd-tmux-")
        self._socket = Path(self._folder.name) / "s"
        config = Path(self._folder.name) / "conf"
        config.write_text(f"set -g default-terminal {term}\nset -g escape-time 0\nset -g status off\n")
        size = ["-x", str(columns), "-y", str(rows)]
        hidden = ("TMUX", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "TERM_PROGRAM")
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        self._env = inherited | {"LC_ALL": "C.UTF-8"} | dict(env or {})
        shell = ["sh", "-c", _WRAPPER, "sh", *command]
        self._tmux("-f", str(config), "new-session", "-d", *size, *shell)
        self._shell_pid = int(self.variable("pane_pid"))

    def send_keys(self, *keys: str) -> None:
        """By tmux's names: Enter, Tab, BTab, Escape, or a character."""
        self._tmux("send-keys", *keys)

    def write(self, text: str) -> None:
        """As it is; escape sequences too, which is how a terminal reports its mouse."""
        self._tmux("send-keys", "-l", text)

    def click(self, column: int, row: int) -> None:
        """The left button, pressed and let go; cells count from 0."""
        at = f"{column + 1};{row + 1}"
        self.write(f"\x1b[<0;{at}M")
        self.write(f"\x1b[<0;{at}m")

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self, *, styles: bool = False) -> str:
        """The lines as they stand there; with `styles` their escape sequences too."""
        return self._tmux("capture-pane", "-p", *(["-e"] if styles else []))

    def cells(self) -> list[list[Cell]]:
        """The lines with their colours."""
        return list(_coloured(self.screen(styles=True)))

    def look_of(self, words: str) -> list[tuple[object, ...]]:
        """From where these words stand first, to the end of their line or of the box around them; empty: they
        stand nowhere."""
        for row in self.cells():
            text = "".join(cell.char for cell in row)
            if words in text:
                rest = row[text.index(words) :]
                inside = itertools.takewhile(lambda cell: cell.char != "│", rest)
                return [cell[1:] for cell in inside]
        return []

    def move_focus(self, key: str, words: str) -> None:
        """Press this key, and wait until these words have another look: what is typed before is
        still for the one that had the focus."""
        before = self.look_of(words)
        self.send_keys(key)
        self.wait_for(lambda _screen: self.look_of(words) not in (before, []))

    def variable(self, name: str) -> str:
        """Of tmux, about the terminal: alternate_on, cursor_flag, mouse_any_flag, pane_pid, ..."""
        return self._tmux("display-message", "-p", f"#{{{name}}}").strip()

    def wait_for(self, wanted: str | Callable[[str], object], limit_s: float = LIMIT_S) -> str:
        """The screen on which this regular expression is found, or of which this holds."""
        holds = wanted if callable(wanted) else re.compile(wanted).search
        seen = [""]

        def look() -> object:
            seen[0] = self.screen()
            return holds(seen[0])

        try:
            eventually_now(look, str(wanted), limit_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\nThe screen shows:\n{seen[0]}") from None
        return seen[0]

    def program_pid(self) -> int:
        """Of the command, while it runs."""
        children = Path(f"/proc/{self._shell_pid}/task/{self._shell_pid}/children").read_text().split()
        return int(children[0])

    def close(self) -> None:
        left = [self._shell_pid]
        with suppress(OSError, IndexError):
            left.append(self.program_pid())
        with suppress(subprocess.CalledProcessError):
            self._tmux("kill-server")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tmux(self, *arguments: str) -> str:
        return subprocess.run(
            [str(TMUX), "-S", str(self._socket), *arguments],
            env=self._env,
            capture_output=True,
            text=True,
            check=True,
            timeout=CALL_LIMIT_S,
        ).stdout


def _coloured(text: str) -> Iterator[list[Cell]]:
    """tmux writes an escape sequence where a style begins; it lasts beyond the end of the line."""
    style = Cell("")
    for line in text.splitlines():
        row: list[Cell] = []
        for sequence, char in re.findall(r"\x1b\[([0-9;]*)m|(.)", line):
            if char:
                row.append(style._replace(char=char))
            else:
                style = _styled(style, sequence or "0")
        yield row


def _styled(style: Cell, sequence: str) -> Cell:
    for code in re.findall(r"[34]8;5;\d+|[34]8;2;\d+;\d+;\d+|\d+", sequence):
        if code == "0":
            style = Cell("")
        elif code in ("7", "27"):
            style = style._replace(is_reversed=code == "7")
        elif re.match(r"[39]\d", code):
            style = style._replace(colour=code)
        elif re.match(r"4\d|10\d", code):
            style = style._replace(background=code)
    return style
