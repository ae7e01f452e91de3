"""How long /health takes while one client sends the worst bodies, and what the daemon keeps of them.

    python scripts/bench_worst_bodies.py [--rounds 3] [--device fake] [--model demo] [--set KEY=VALUE]

Starts a daemon and sends, one after the other and --rounds times, what costs most to read, to tokenize and to
refuse. Another process asks /health all the while. Prints the times per body, p50, p99 and the longest, and
the daemon's memory before, at its highest, and ten seconds after the last body. Exit code 1 when the p99 is
not under 100 ms, or more than 50 MB are kept.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

from chaoslib.target import Target

MAX_P99_MS = 100.0
MAX_KEPT_BYTES = 50 * 10**6
SETTLE_S = 10.0
BODY_BYTES = 2**23
"""server.max_body_bytes."""

PAUSE_S = 0.002

Body = tuple[str, str, bytes]
"""What it is, its path, itself."""


def bodies() -> Iterator[Body]:
    chat, completions = "/v1/chat/completions", "/v1/completions"
    yield "8 MiB of words", completions, _prompt(b"hello ")
    yield "8 MiB of one letter", completions, _prompt(b"a")
    yield "8 MiB of escapes", completions, _prompt(b"\\n")
    yield "8 MiB of pairs of escapes", completions, _prompt(b"\\ud83d\\ude00")
    yield "8 MiB of commas in a text", completions, _prompt(b",")
    yield "8 MiB of words to /tokenize", "/tokenize", _prompt(b"hello ")
    yield "0.6 MB of words to /tokenize", "/tokenize", _filled(b'{"prompt":"', b"hello ", b'"}', 600_000)
    yield (
        "8 MiB in a conversation",
        chat,
        _filled(b'{"messages":[{"role":"user","content":"', b"hello ", b'"}]}'),
    )
    message = b'{"role":"user","content":""},'
    yield "230,000 empty messages", chat, _filled(b'{"messages":[', message, b"1]}", 230_000 * len(message))
    yield (
        "6,500 empty messages",
        chat,
        _filled(b'{"messages":[', message, message[:-1] + b"]}", 6_500 * len(message)),
    )
    part = b'{"type":"text","text":""},'
    yield "content parts", chat, _filled(b'{"messages":[{"role":"user","content":[', part, b"1]}]}")
    yield "empty lists", completions, _filled(b'{"x":[', b"[],", b"1]}")
    yield "empty objects", chat, _filled(b'{"messages":[', b"{},", b"1]}")
    yield "token ids", completions, _filled(b'{"prompt":[', b"1,", b"1]}")
    yield "260,000 token ids", completions, _filled(b'{"prompt":[', b"1,", b"1]}", 520_000)
    yield "260,000 ids to /detokenize", "/detokenize", _filled(b'{"tokens":[', b"1,", b"1]}", 520_000)
    keys = b",".join(b'"k%d":1' % idx for idx in range(500_000))
    yield "500,000 keys", completions, b"{" + keys + b"}"
    yield "nested lists", completions, b'{"prompt":' + b"[" * (BODY_BYTES - 10)
    yield "arguments of brackets", chat, _with_arguments("[" * 100_000)
    yield "arguments of lists", chat, _with_arguments("[" + "[]," * 1_000_000 + "1]")
    yield "a long name", completions, _filled(b'{"prompt":"a","model":"', b"x", b'"}')


def _prompt(unit: bytes) -> bytes:
    return _filled(b'{"prompt":"', unit, b'"}')


def _filled(head: bytes, unit: bytes, tail: bytes, num_bytes: int = BODY_BYTES) -> bytes:
    return head + unit * ((num_bytes - len(head) - len(tail)) // len(unit)) + tail


def _with_arguments(arguments: str) -> bytes:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    body = {"messages": [{"role": "assistant", "tool_calls": [call]}], "max_tokens": 1}
    return json.dumps(body).encode()


@dataclass
class _Seen:
    status: int = 0
    answered_ms: list[float] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)

    def ask(self, host: str, port: int, path: str, body: bytes) -> None:
        self.status, answered_ms = _post(host, port, path, body)
        self.answered_ms.append(answered_ms)


async def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="semipd-worst-") as name:
        options = dict(pair.split("=", 1) for pair in arguments.set)
        target = Target(Path(name), arguments.model, arguments.device, options)
        try:
            await target.started()
            return await _measured(target, arguments.rounds)
        finally:
            if not target.has_ended:
                target.kill()


async def _measured(target: Target, rounds: int) -> int:
    parts = urlsplit(target.url)
    host, port = str(parts.hostname), int(parts.port or 80)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        loop = asyncio.get_running_loop()
        stop_path = target.socket_path.with_name("stop")
        await loop.run_in_executor(pool, _noop)
        before, quiet = _rss(target), await _health(loop, pool, host, port, stop_path, lambda: time.sleep(1))
        highest, seen = before, dict[str, _Seen]()
        for _ in range(rounds):
            for what, path, body in bodies():
                of_body = seen.setdefault(what, _Seen())
                ask = partial(of_body.ask, host, port, path, body)
                of_body.health_ms += await _health(loop, pool, host, port, stop_path, ask)
                highest = max(highest, _rss(target))
    await asyncio.sleep(SETTLE_S)
    _print(seen)
    all_ms = [time_ms for of_body in seen.values() for time_ms in of_body.health_ms]
    return _report(quiet, all_ms, before, highest, _rss(target))


def _print(seen: Mapping[str, _Seen]) -> None:
    print("| body | status | answered in ms | /health p50 | longest |\n|---|---|---|---|---|")
    for what, of_body in seen.items():
        answered, times_ms = statistics.median(of_body.answered_ms), of_body.health_ms
        shown = f"{statistics.median(times_ms):.1f} | {max(times_ms):.1f}"
        print(f"| {what} | {of_body.status} | {answered:.0f} | {shown} |")


def _report(quiet_ms: list[float], all_ms: list[float], before: int, highest: int, after: int) -> int:
    p99_ms = _p99(all_ms)
    print(f"\n/health alone: p50 {statistics.median(quiet_ms):.1f} ms, p99 {_p99(quiet_ms):.1f}, "
          f"longest {max(quiet_ms):.1f} ({len(quiet_ms)} times)")  # fmt: skip
    print(f"/health beside the worst bodies: p50 {statistics.median(all_ms):.1f} ms, p99 {p99_ms:.1f}, "
          f"longest {max(all_ms):.1f} ({len(all_ms)} times)")  # fmt: skip
    megabytes = [round(num_bytes / 1e6, 1) for num_bytes in (before, highest, after)]
    print("the daemon's memory: {} MB before, {} highest seen, {} after".format(*megabytes))
    return 0 if p99_ms < MAX_P99_MS and after - before < MAX_KEPT_BYTES else 1


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] if len(values) > 1 else values[0]


async def _health(
    loop: asyncio.AbstractEventLoop,
    pool: ProcessPoolExecutor,
    host: str,
    port: int,
    stop_path: Path,
    meanwhile: Callable[[], None],
) -> list[float]:
    """Milliseconds of each answer while `meanwhile` runs."""
    asking = loop.run_in_executor(pool, _ask_health, host, port, stop_path)
    await asyncio.to_thread(meanwhile)
    await asyncio.to_thread(stop_path.touch)
    times_ms = await asking
    await asyncio.to_thread(stop_path.unlink)
    return times_ms


def _ask_health(host: str, port: int, stop_path: Path) -> list[float]:
    connection, times_ms = HTTPConnection(host, port, timeout=120), list[float]()
    while not times_ms or not stop_path.exists():
        began_s = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        times_ms.append((time.perf_counter() - began_s) * 1e3)
        time.sleep(PAUSE_S)
    connection.close()
    return times_ms


def _noop() -> None:
    """Starts the pool's process."""


def _post(host: str, port: int, path: str, body: bytes) -> tuple[int, float]:
    connection, began_s = HTTPConnection(host, port, timeout=600), time.perf_counter()
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, (time.perf_counter() - began_s) * 1e3


def _rss(target: Target) -> int:
    lines = Path(f"/proc/{target.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="fake")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
