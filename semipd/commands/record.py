"""semipd-daemon record: the load of a running daemon to a file, for semipd-plan and the benchmarks."""

import argparse
import asyncio
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semipd.command_line.answers import understood
from semipd.command_line.exit_codes import DONE, INTERRUPTED
from semipd.commands.load_writer import LoadWriter
from semipd.commands.operators import duration
from semipd.core.errors import SemipdError

if TYPE_CHECKING:
    from semipd.client import LoadStream
    from semipd.core.state.load import LoadFacts
    from semipd.wire.load_frame import LoadFrame

DEFAULT_BYTES = 2**30
MIN_BYTES, MAX_BYTES = 2**16, 2**40
FIRST_RETRY_S, MAX_RETRY_S = 0.5, 5.0
FRAME_LIMIT_S = 10.0
PROGRESS_EVERY_S = 1.0
FINAL_CODES = frozenset(
    {"recording_stopped", "operator_required", "peer_not_allowed", "protocol_version", "hello_expected"}
)
"""Trying again would change nothing."""

_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_record_command(
    commands: Any, add_options: Callable[[argparse.ArgumentParser], None], socket_of: Callable[[Any], Path]
) -> None:
    """Parameters as of `operators.add_partition_commands`."""
    record = commands.add_parser(
        "record",
        help="keep when requests come and how long they are, never what they say, for semipd-plan",
        description="Record the load until Ctrl-C: arrival times, lengths, classes, and hashes that say "
        "which prompts begin alike. No text and no token ids.",
    )
    record.add_argument("file", type=Path, metavar="FILE", help="a new file; -: standard output")
    record.add_argument(
        "--for", type=duration, dest="limit_s", metavar="TIME", help="such as 90s, 10m, 2h; then end"
    )
    record.add_argument(
        "--max-size",
        type=size,
        default=DEFAULT_BYTES,
        metavar="BYTES",
        help="such as 500M, 2G; then end; default: 1G",
    )
    record.set_defaults(run=lambda arguments: _record(arguments, socket_of(arguments)))
    add_options(record)


def size(text: str) -> int:
    """For argparse: bytes."""
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)", text)
    found = int(match[1]) * _BYTES[match[2]] if match else 0
    if not MIN_BYTES <= found <= MAX_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no size of 64K to 1T, such as 500M or 2G")
    return found


def _record(arguments: argparse.Namespace, socket: Path) -> int:
    with LoadWriter(arguments.file, arguments.max_size, time.time) as writer:
        recorder = Recorder(socket, writer, arguments.limit_s)
        try:
            with understood(socket):
                asyncio.run(recorder.run())
        finally:
            recorder.progress.clear()
    recorder.progress.tell(f"{recorder.ended}: {recorder.progress.summary()}\n")
    return INTERRUPTED if recorder.was_forced else DONE


class Recorder:
    """`ended`: why, in words. `was_forced`: it was told twice to end, and what still ran is missing."""

    def __init__(self, socket: Path, writer: LoadWriter, limit_s: float | None) -> None:
        self.progress = Progress(writer)
        self.ended = ""
        self.was_forced = False
        self._socket = socket
        self._writer = writer
        self._limit_s = limit_s
        self._stop = asyncio.Event()
        self._away_since_s: float | None = None
        self._away_why = ""

    @property
    def is_connected(self) -> bool:
        return self._writer.has_begun and self._away_since_s is None

    async def run(self) -> None:
        """Raises SemipdError: what `AsyncClient.connect` raises before anything was recorded, and what the
        writer raises."""
        task = asyncio.current_task()
        assert task is not None
        with _signals(lambda: self._told_to_end(task)):
            try:
                await self._connections()
            except asyncio.CancelledError:
                if not self.was_forced:
                    raise
                task.uncancel()
        if self._away_since_s is not None:
            self._writer.gap(self._away_since_s, self._away_why, None)
        self._writer.close(self.ended)

    async def _connections(self) -> None:
        if self._limit_s is not None:
            asyncio.get_running_loop().call_later(self._limit_s, self.end, "time is over")
        retry_s = FIRST_RETRY_S
        while not self._stop.is_set():
            try:
                async with aclosing(self._frames()) as frames:
                    async for _ in frames:
                        retry_s = FIRST_RETRY_S
                if not self._stop.is_set():
                    self._went_away("shutting_down")
            except SemipdError as error:
                if not self._writer.has_begun or error.code in FINAL_CODES:
                    raise
                self._went_away(error.code)
            await self._pause(retry_s)
            retry_s = min(2 * retry_s, MAX_RETRY_S)

    async def _frames(self) -> AsyncGenerator[None, None]:
        """Those of one connection are written."""
        from semipd.client import AsyncClient  # here: --help needs none of what it imports

        async with await AsyncClient.connect(self._socket) as client:
            stream = client.record()
            ending = asyncio.create_task(self._end_stream(stream), name="end-recording")
            try:
                while (frame := await self._next(stream)).ended is None:
                    self._take(frame)
                    yield
            finally:
                ending.cancel()

    async def _end_stream(self, stream: "LoadStream") -> None:
        await self._stop.wait()
        with suppress(SemipdError):  # whoever reads the stream learns of it
            await stream.end()

    async def _next(self, stream: "LoadStream") -> "LoadFrame":
        try:
            async with asyncio.timeout(FRAME_LIMIT_S):
                return await anext(stream)
        except TimeoutError as error:
            message = f"The daemon at {self._socket} has sent nothing for {FRAME_LIMIT_S:g} s."
            raise SemipdError("daemon_silent", message, "Look at its log.") from error

    def _take(self, frame: "LoadFrame") -> None:
        if frame.facts is not None:
            self._is_there(frame.facts)
        self._writer.frame(frame)
        self.progress.show("")
        if self._writer.is_full:
            self.end("the file is as large as --max-size allows")

    def _is_there(self, facts: "LoadFacts") -> None:
        if not self._writer.has_begun:
            self._writer.begin(facts)
        elif self._away_since_s is not None:
            self._writer.gap(self._away_since_s, self._away_why, facts)
        self._away_since_s = None

    def _went_away(self, why: str) -> None:
        if self._away_since_s is None:
            self._away_since_s, self._away_why = time.time(), why
        self.progress.show(f"; waiting for the daemon [{why}]")

    def _told_to_end(self, task: "asyncio.Task[Any]") -> None:
        if self._stop.is_set():
            self.was_forced = True
            task.cancel()
        self.end("ended")

    def end(self, why: str) -> None:
        """As if it had been told to. The first reason counts."""
        self.ended = self.ended or why
        self._stop.set()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()


@contextmanager
def _signals(told: Callable[[], None]) -> Iterator[None]:
    """One that was ignored when we came (nohup) stays so."""
    loop = asyncio.get_running_loop()
    taken = [number for number in _ENDS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in taken:
        loop.add_signal_handler(number, told)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


@dataclass(slots=True)
class Progress:
    """One line on a terminal's standard error, and what it says."""

    writer: LoadWriter
    _shown_s: float = 0.0
    _is_shown: bool = False

    def summary(self) -> str:
        writer = self.writer
        lost = f", {writer.num_lost} lost" if writer.num_lost else ""
        minutes, seconds = divmod(int(time.time() - writer.began_s), 60)
        return f"{writer.num_requests} requests{lost} in {minutes}:{seconds:02d}, {_size(writer.num_bytes)}"

    def show(self, more: str) -> None:
        now_s = time.monotonic()
        if sys.stderr.isatty() and (more or now_s - self._shown_s >= PROGRESS_EVERY_S):
            self._shown_s, self._is_shown = now_s, True
            self.tell(f"\r\x1b[K{self.summary()}{more}")

    def clear(self) -> None:
        if self._is_shown:
            self.tell("\r\x1b[K")

    def tell(self, text: str) -> None:
        """A terminal that has gone ends no recording."""
        with suppress(OSError):
            print(text, end="", file=sys.stderr, flush=True)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"
