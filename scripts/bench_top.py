"""What semipd-top costs: the dashboard itself, and the daemon that it watches.

    python scripts/bench_top.py [--streams 50] [--output-tokens 400] [--seconds 10] [--rounds 4] [--json FILE]

Starts a daemon on a simulated GPU under steady load, and semipd-top in a terminal of its own. Per cent are of
one core. The daemon's and the engine's cost is the difference between windows with and without a dashboard,
in turn (medians), so that the load's own noise falls on both. A machine that does something else as well
makes all figures greater: look at its load first.
"""

import argparse
import asyncio
import fcntl
import json
import os
import pty
import random
import signal
import statistics
import struct
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchlib.procfs import ProcessCpu, cpu_used, process_tree

from semipd.client import AsyncClient
from semipd.system.children import module_command

TOP = module_command("semipd_top.cli")
SIZES = ((200, 50), (80, 24))
INTERVALS_S = (0.25, 0.5, 1.0)
VIEWS = (("2", "requests"), ("3", "events"), ("1", "overview"))
"""The first screen last: by then its history is the longest."""

SETTLE_S = 2.0
START_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class ScreenCost:
    """Of the dashboard's process, and what it has written to its terminal."""

    size: str
    interval_s: float
    view: str
    cpu_frac: float
    written_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class WatchedCost:
    """Medians over windows with and without a dashboard on the first screen."""

    interval_s: float
    process: str
    without_frac: float
    with_frac: float


class Dashboard:
    """semipd-top in a pseudo-terminal; whatever it writes is read at once, and counted."""

    def __init__(self, socket_path: Path, columns: int, rows: int, interval_s: float) -> None:
        self.num_bytes = 0
        self._began_s = time.monotonic()
        self._seen = threading.Event()
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        command = [*TOP, "--socket", str(socket_path), "--interval", f"{interval_s:g}"]
        env = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, name="terminal")
        self._reader.start()

    def first_picture_s(self) -> float:
        """Since the start of the process."""
        assert self._seen.wait(START_LIMIT_S), "semipd-top showed no live picture"
        return self._seen_s - self._began_s

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())

    def close(self) -> None:
        self.press("q")
        try:
            self.process.wait(START_LIMIT_S)
        finally:
            self.process.kill()
            self._reader.join()
            os.close(self._master)

    def _read(self) -> None:
        tail = b""
        # the other end gone is an error of input and output
        with suppress(OSError):
            while data := os.read(self._master, 2**16):
                self.num_bytes += len(data)
                if not self._seen.is_set() and b"LIVE" in (tail := tail[-8:] + data):
                    self._seen_s = time.monotonic()
                    self._seen.set()


@contextmanager
def dashboard(
    socket_path: Path, size: tuple[int, int] = SIZES[0], interval_s: float = 0.5
) -> Iterator[Dashboard]:
    """Open from the first live picture on."""
    opened = Dashboard(socket_path, *size, interval_s)
    try:
        opened.first_picture_s()
        yield opened
    finally:
        opened.close()


@contextmanager
def daemon(folder: Path) -> Iterator[tuple[int, Path]]:
    """Its pid and its socket."""
    socket_path = folder / "s.sock"
    command = [
        *module_command("semipd.commands.daemon"),
        "start",
        "--device",
        "sim:h200",
        "--model",
        "llama-3-8b",
    ]
    command += ["--port", "0", "--socket", str(socket_path)]
    env = os.environ | {"XDG_STATE_HOME": str(folder)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    assert process.stdout is not None
    try:
        while "try:" not in (printed := process.stdout.readline()):
            assert printed, (folder / "log").read_text()
        yield process.pid, socket_path
    finally:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        process.wait(START_LIMIT_S)
        process.stdout.close()


@contextmanager
def load(socket_path: Path, num_streams: int, prompt_tokens: int, output_tokens: int) -> Iterator[None]:
    """Streams that ask again when they have their answer, in a thread."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(_streams(socket_path, num_streams, prompt_tokens, output_tokens))
    ended = asyncio.wait([task])
    thread = threading.Thread(target=loop.run_until_complete, args=(ended,), name="load")
    thread.start()
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


async def _streams(path: Path, num_streams: int, prompt_tokens: int, output_tokens: int) -> None:
    async with await AsyncClient.connect(path) as client:
        await asyncio.gather(*(_stream(client, prompt_tokens, output_tokens) for _ in range(num_streams)))


async def _stream(client: AsyncClient, prompt_tokens: int, output_tokens: int) -> None:
    while True:
        prompt = [random.randrange(2, 400) for _ in range(prompt_tokens)]
        num_tokens = random.randint(output_tokens // 2, output_tokens * 3 // 2)
        async for _ in client.generate(prompt, max_tokens=num_tokens, ignore_eos=True):
            pass


def screen_costs(socket_path: Path, seconds: float) -> Iterator[ScreenCost]:
    for size in SIZES:
        for interval_s in INTERVALS_S:
            with dashboard(socket_path, size, interval_s) as shown:
                for key, view in VIEWS:
                    shown.press(key)
                    time.sleep(SETTLE_S)
                    num_bytes = shown.num_bytes
                    [cost] = cpu_during(shown.process.pid, seconds)
                    written = (shown.num_bytes - num_bytes) / seconds
                    yield ScreenCost(f"{size[0]}x{size[1]}", interval_s, view, cost.cpu_s / seconds, written)


def watched_costs(pid: int, socket_path: Path, seconds: float, num_rounds: int) -> Iterator[WatchedCost]:
    for interval_s in INTERVALS_S:
        without: list[list[ProcessCpu]] = []
        beside: list[list[ProcessCpu]] = []
        for _ in range(num_rounds):
            without.append(cpu_during(pid, seconds))
            with dashboard(socket_path, interval_s=interval_s):
                beside.append(cpu_during(pid, seconds))
        for process, is_daemon in (("daemon", True), ("engine", False)):
            off, on = (_median_frac(windows, pid, is_daemon, seconds) for windows in (without, beside))
            yield WatchedCost(interval_s, process, off, on)


def _median_frac(windows: list[list[ProcessCpu]], pid: int, is_daemon: bool, seconds: float) -> float:
    """Of the daemon itself, or of its children."""
    return statistics.median(
        sum(one.cpu_s for one in window if (one.pid == pid) == is_daemon) / seconds for window in windows
    )


def cpu_during(pid: int, seconds: float) -> list[ProcessCpu]:
    """Of a process and its children."""
    before = process_tree(pid)
    time.sleep(seconds)
    return cpu_used(before, process_tree(pid))


def start_times(socket_path: Path, num_rounds: int) -> dict[str, float]:
    """Medians, in seconds."""
    shown: list[float] = []
    helped: list[float] = []
    for _ in range(num_rounds):
        with dashboard(socket_path) as opened:
            shown.append(opened.first_picture_s())
        began_s = time.monotonic()
        subprocess.run([*TOP, "--help"], stdout=subprocess.DEVNULL, check=True)
        helped.append(time.monotonic() - began_s)
    return {"first_picture_s": statistics.median(shown), "help_s": statistics.median(helped)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument(
        "--output-tokens", type=int, default=400, help="mean of a request; fewer: more requests"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=4, help="windows with and without; starts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    found: dict[str, object] = {}
    print(f"load of this machine before: {os.getloadavg()[0]:.2f} of {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="bench-top-") as folder, daemon(Path(folder)) as (pid, path):
        with load(path, args.streams, args.prompt_tokens, args.output_tokens):
            time.sleep(SETTLE_S)
            found["screen"] = [asdict(cost) for cost in told_screen(screen_costs(path, args.seconds))]
            watched = watched_costs(pid, path, args.seconds, args.rounds)
            found["watched"] = [asdict(cost) for cost in told_watched(watched)]
        found["start"] = starts = start_times(path, args.rounds)
    print(f"first picture after {starts['first_picture_s']:.2f} s, --help {starts['help_s'] * 1e3:.0f} ms")
    if args.json:
        args.json.write_text(json.dumps(vars(args) | found, indent=1, default=str) + "\n")


def told_screen(costs: Iterator[ScreenCost]) -> Iterator[ScreenCost]:
    print("size     every   view        dashboard   to the terminal")
    for cost in costs:
        print(
            f"{cost.size:8} {cost.interval_s:4.2f} s  {cost.view:9} {cost.cpu_frac:10.1%}"
            f" {cost.written_bytes_per_s / 1e3:11.1f} kB/s",
            flush=True,
        )
        yield cost


def told_watched(costs: Iterator[WatchedCost]) -> Iterator[WatchedCost]:
    print("every    process   without      with   difference")
    for cost in costs:
        difference = cost.with_frac - cost.without_frac
        print(
            f"{cost.interval_s:4.2f} s   {cost.process:8} {cost.without_frac:8.1%} {cost.with_frac:9.1%}"
            f" {100 * difference:+9.1f} points",
            flush=True,
        )
        yield cost


if __name__ == "__main__":
    main()
