"""Runs a case as a process of its own and judges how it ended."""

import fcntl
import gzip
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from fuzzlib.command_cases import Case, Command, make_case
from semipd.command_line.exit_codes import EXITS, INTERRUPTED, TERMINATED
from semipd.system.children import kill_group

ROOT = Path(__file__).parents[2]
CASE_LIMIT_S = 60.0
_LOOK_S = 0.3
_AGAIN_S = 2.0
_TYPED_BYTES = 1000
_KEPT_CHARS = 1500
_CODES = {exit.number for exit in EXITS}
_OUTBURSTS = (b"Traceback (most", b"Exception ignored", b"Fatal Python", b"Segmentation", b"Task exception")
_CLOSING = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-"}
_ENDINGS = {-signal.SIGINT: INTERRUPTED, -signal.SIGTERM: TERMINATED}
_READ_BYTES = 2**16


@dataclass
class Tally:
    """Of one command. `codes`: how often each exit code; `violations`: what must not be, with its case."""

    cases: int = 0
    seconds: float = 0.0
    codes: Counter[int] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def run_cases(
    seed: int, indices: range, places: Mapping[str, str], folder: Path, workers: int = 2
) -> dict[str, Tally]:
    """`places`: sockets by what is there. Writes below `folder`."""
    files = odd_files(folder / "files")
    tallies = {command: Tally() for command in get_args(Command)}

    def run(idx: int) -> tuple[int, Case, int | None, bytes, float]:
        case = make_case(seed, idx, places, files)
        began_s = time.monotonic()
        code, said = _Run(case, folder).ended()
        return idx, case, code, said, time.monotonic() - began_s

    with ThreadPoolExecutor(workers) as pool:
        for idx, case, code, said, seconds in pool.map(run, indices):
            tally = tallies[case.command]
            tally.cases += 1
            tally.seconds += seconds
            tally.codes[code if code is not None else -9] += 1
            if wrong := verdict(case, code, said):
                shown = said[-_KEPT_CHARS:].decode(errors="replace")
                tally.violations.append(f"case {idx}: {wrong}\n{_brief(case)}\n{shown}")
    return tallies


def _brief(case: Case) -> str:
    return re.sub(r"(.)\1{50,}", r"\1\1\1...", repr(case))


def verdict(case: Case, code: int | None, said: bytes) -> str:
    """What is wrong; empty: nothing. `said`: all that came out."""
    for outburst in _OUTBURSTS:
        if outburst in said:
            return f"says {outburst.decode()}"
    if code is None:
        return f"did not end within {CASE_LIMIT_S:g} s"
    if code not in _CODES:
        return f"ended with {code}"
    if code in (INTERRUPTED, TERMINATED):
        return "" if case.signal_s is not None else f"ended with {code}, and nobody asked"
    if code and case.stderr in ("pipe", "terminal") and not said.strip():
        return f"ended with {code} without a word"
    has_nothing_to_say = any(word.endswith("/recording") for word in case.arguments)  # it holds no frame
    if not code and case.stdout in ("full", "closed") and not has_nothing_to_say:
        return "says that all went well, and nobody can read what"
    return ""


class _Run:
    def __init__(self, case: Case, folder: Path) -> None:
        self._case, self._folder = case, folder
        self._said = bytearray()

    def ended(self) -> tuple[int | None, bytes]:
        with ExitStack() as stack:
            begun, self._beginning = os.pipe()
            stack.callback(os.close, begun)
            ours, theirs = os.openpty()
            stack.callback(os.close, ours)
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *self._case.size, 0, 0))
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            try:
                process = self._started(stack, theirs, writer)
            finally:
                os.close(theirs)
                os.close(writer)
                os.close(self._beginning)
            disturbers = [threading.Thread(target=self._signal, args=(process, begun))]
            if self._case.stdin == "terminal":
                disturbers.append(threading.Thread(target=self._type, args=(process, ours)))
            for disturber in disturbers:
                disturber.start()
            code = self._collected(process, ours, reader)
            for disturber in disturbers:
                disturber.join()
            return code, bytes(self._said)

    def _started(self, stack: ExitStack, terminal: int, pipe: int) -> "subprocess.Popen[bytes]":
        streams = {name: getattr(self._case, name) for name in _CLOSING}
        files: dict[str, int] = {}
        for name, kind in streams.items():
            files[name] = self._file(stack, name, kind, terminal, pipe)
        closing = " ".join(_CLOSING[name] for name, kind in streams.items() if kind == "closed")
        # what is interrupted before is Python's own start
        run = f"from semipd.command_line.entry import {self._case.command} as run"
        code = f"import os, sys; {run}; os.close({self._beginning}); sys.exit(run())"
        command = [
            "sh",
            "-c",
            f'exec "$@" {closing}',
            "sh",
            sys.executable,
            "-c",
            code,
            *self._case.arguments,
        ]
        return subprocess.Popen(
            [os.fsencode(word) for word in command],
            env=self._environ(),
            cwd=self._folder / "files",
            start_new_session=True,
            pass_fds=[self._beginning],
            stdin=files["stdin"],
            stdout=files["stdout"],
            stderr=files["stderr"],
        )

    def _file(self, stack: ExitStack, name: str, kind: str, terminal: int, pipe: int) -> int:
        if kind == "terminal":
            return terminal
        if name == "stdin" and kind == "pipe":
            return _opened(stack, os.memfd_create("typed"), self._case.typed)
        if kind == "pipe":
            return pipe
        if kind == "left":
            reader, writer = os.pipe()
            os.close(reader)
            return _opened(stack, writer)
        return _opened(stack, os.open("/dev/full" if kind == "full" else os.devnull, os.O_RDWR))

    def _environ(self) -> dict[bytes, bytes]:
        folder = str(self._folder)
        made: dict[str, str | None] = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tui")]),
            "HOME": folder,
            "TMPDIR": folder,
            "XDG_RUNTIME_DIR": f"{folder}/runtime",
            "TERM": "xterm-256color",
        }
        made |= self._case.environ
        return {os.fsencode(name): os.fsencode(value) for name, value in made.items() if value is not None}

    def _type(self, process: "subprocess.Popen[bytes]", terminal: int) -> None:
        """And then what ends an input, or the dashboard, until it has ended."""
        os.set_blocking(terminal, False)
        typed, end = self._case.typed[:_TYPED_BYTES], b"q" if self._case.command == "top" else b"\x04"
        while process.poll() is None:
            with suppress(BlockingIOError):
                os.write(terminal, typed)
            typed = end
            time.sleep(_LOOK_S)

    def _signal(self, process: "subprocess.Popen[bytes]", begun: int) -> None:
        if self._case.signal_s is None:
            return
        os.read(begun, 1)
        time.sleep(self._case.signal_s)
        number = signal.SIGINT if self._case.is_interrupt else signal.SIGTERM
        while process.poll() is None:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_AGAIN_S)

    def _collected(self, process: "subprocess.Popen[bytes]", *sources: int) -> int | None:
        """Reads until the process ends. None: it had to be killed."""
        open_sources, limit_s = set(sources), time.monotonic() + CASE_LIMIT_S
        while process.poll() is None and time.monotonic() < limit_s:
            ready, _, _ = select.select(open_sources, [], [], 0.02)
            self._read(ready, open_sources)
        for _ in range(2):
            self._read(select.select(open_sources, [], [], 0.0)[0], open_sources)
        if process.poll() is None:
            kill_group(process)
            process.wait()
            return None
        return _ENDINGS.get(process.returncode, process.returncode)

    def _read(self, ready: list[int], open_sources: set[int]) -> None:
        for source in ready:
            data = b""
            with suppress(OSError):  # a terminal that nobody has open any more
                data = os.read(source, _READ_BYTES)
            self._said += data
            if not data:
                open_sources.discard(source)


def _opened(stack: ExitStack, descriptor: int, content: bytes = b"") -> int:
    stack.callback(os.close, descriptor)
    if content:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def odd_files(folder: Path) -> dict[str, str]:
    """Files by what is odd about them."""
    folder.mkdir(exist_ok=True)
    header = {
        "format": "semipd-top recording",
        "version": 1,
        "title": "t",
        "interval_s": 1,
        "began_s": 1.0,
        "semipd": "0",
    }
    texts: dict[str, bytes] = {
        "deep.toml": b"a=" + b"[" * 100_000,
        "binary": bytes(range(256)) * 40,
        "good.toml": b"[server]\nport = 9\n",
        "nul.toml": b'[server]\nsocket = "a\\u0000b"\n',
        "huge-number.toml": b"[server]\nport = 0x" + b"f" * 9000,
        "recording": json.dumps(header).encode() + b'\n{"closed_s": 1}\n',
        "cut-recording": json.dumps(header).encode() + b'\n{"at_s"',
        "odd-recording": json.dumps(header).encode()
        + b'\n{"at_s": "x", "state": {"state": 5}}\n{"gone": {"code": 1}}\n',
        "recording.gz": gzip.compress(json.dumps(header).encode())[:-9],
        "file": b"",
        "unreadable": b"",
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    (folder / "unreadable").chmod(0)
    (folder / "folder").mkdir(exist_ok=True)
    if not (folder / "fifo").exists():
        os.mkfifo(folder / "fifo")
        (folder / "loop").symlink_to("loop")
    names = (*texts, "fifo", "loop", "folder", "missing", "file/below")
    return {name: str(folder / name) for name in names}
