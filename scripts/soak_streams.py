"""A thousand streams at once on the fake device: do all finish, unchanged, and what do they cost?

    python scripts/soak_streams.py [--streams 1000] [--tokens 768] [--seed 1]

Two thirds over HTTP, a third over the Unix socket, each on a connection of its own; all of them decode at the
same time. Prints how they ended, the daemon's memory before, at its peak and after, and how
late its event loop was: a process of its own asks GET /health again and again and measures the round trip,
which also holds what the machine's other work costs. Exit code 1 when a stream did not finish, was changed,
or when a stream cost more than --max-kib.
"""

import argparse
import asyncio
import http.client
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from urllib.parse import urlsplit

from chaoslib.clients import send
from chaoslib.jobs import Job, Outcome
from chaoslib.judge import ExactJudge, Judge
from chaoslib.models import CONTEXT_TOKENS, VOCAB_SIZE, save_weightless
from chaoslib.target import Target

from semipd.core.plan import blocks_for
from semipd.devices.fake import BLOCK_BYTES, BLOCK_SIZE

PROMPT_TOKENS = 24
ANSWER_LIMIT_S = 900.0
PROBE_PAUSE_S = 0.02


async def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="semipd-streams-") as name:
        folder = Path(name)
        model = save_weightless(folder / "model")
        options = {
            "engine.max_num_seqs": arguments.streams,
            "kv.bytes": (2 + arguments.streams * blocks_for(PROMPT_TOKENS + arguments.tokens, BLOCK_SIZE))
            * BLOCK_BYTES,
            "admission.max_waiting_requests": arguments.streams,
            "server.log_level": "warning",
        }
        target = Target(folder, model, "fake", options)
        try:
            await target.started()
            return await _run(target, model, arguments)
        finally:
            if not target.has_ended:
                target.kill()


async def _run(target: Target, model: Path, arguments: argparse.Namespace) -> int:
    jobs = _jobs(random.Random(arguments.seed), arguments.streams, arguments.tokens)
    await _send_all(target, jobs[:20])  # what is imported and allocated once is not a stream's
    before_kib = _memory_kib(target.pid, "VmRSS")
    probe, pipe = _start_probe(target.url)
    began_s = time.monotonic()
    num_decoding: list[int] = []
    watching = asyncio.create_task(_watch(target, num_decoding), name="watcher")
    outcomes = await _send_all(target, jobs)
    seconds = time.monotonic() - began_s
    watching.cancel()
    pipe.send("stop")
    latencies_ms = sorted(pipe.recv())
    probe.join()
    used_blocks = await target.settled()
    peak_kib, after_kib = _memory_kib(target.pid, "VmHWM"), _memory_kib(target.pid, "VmRSS")
    code = await target.stopped()
    judge = Judge(ExactJudge(CONTEXT_TOKENS, VOCAB_SIZE), model)
    changed = [why for outcome in outcomes if (why := judge.why_changed(outcome))]
    fates = Counter(f"{outcome.fate} {outcome.code}".strip() for outcome in outcomes)
    kib_per_stream = (peak_kib - before_kib) / len(jobs)
    num_tokens = sum(outcome.meter.num_tokens for outcome in outcomes)
    rows = [
        ("streams", f"{len(jobs)}: " + ", ".join(f"{count} {fate}" for fate, count in fates.items())),
        ("most at once", str(max(num_decoding, default=0))),
        ("changed", str(len(changed))),
        ("tokens", f"{num_tokens} in {seconds:.1f} s, {num_tokens / seconds:.0f} per second"),
        ("memory of the daemon", f"{before_kib} KiB before, {peak_kib} at its peak, {after_kib} after"),
        ("per stream at the peak", f"{kib_per_stream:.1f} KiB"),
        ("event loop, GET /health", _percentiles(latencies_ms)),
        ("KV blocks in use after", str(used_blocks)),
        ("exit code", str(code)),
    ]
    print("\n".join(f"| {name} | {text} |" for name, text in rows))
    for why in changed[:5]:
        print(why, file=sys.stderr)
    is_well = fates == {"finished": len(jobs)} and not changed and used_blocks == 0 and code == 0
    return 0 if is_well and kib_per_stream <= arguments.max_kib else 1


def _jobs(rng: random.Random, num: int, tokens: int) -> list[Job]:
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(PROMPT_TOKENS)] for _ in range(num)]
    return [
        Job(number, "socket" if number % 3 == 0 else "http-stream", prompt, tokens, seed=number)
        for number, prompt in enumerate(prompts)
    ]


async def _send_all(target: Target, jobs: list[Job]) -> list[Outcome]:
    outcomes = [Outcome(job) for job in jobs]
    async with asyncio.TaskGroup() as group:
        for outcome in outcomes:
            group.create_task(send(outcome, target.url, target.socket_path, ANSWER_LIMIT_S, is_greedy=False))
    return outcomes


async def _watch(target: Target, num_decoding: list[int]) -> None:
    while True:
        status = await target.status()
        if status is not None and "requests" in status:
            num_decoding.append(status["requests"]["decoding"])
        await asyncio.sleep(0.2)


def _start_probe(url: str) -> tuple[SpawnProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_probe, args=(url, theirs), daemon=True)
    process.start()
    ours.recv()  # it has begun
    return process, ours


def _probe(url: str, pipe: Connection) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=ANSWER_LIMIT_S)
    latencies_ms: list[float] = []
    pipe.send("begun")
    while not pipe.poll():
        began_s = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        latencies_ms.append((time.perf_counter() - began_s) * 1e3)
        time.sleep(PROBE_PAUSE_S)
    pipe.send(latencies_ms)


def _percentiles(ordered_ms: list[float]) -> str:
    def at(pct: float) -> float:
        return ordered_ms[min(int(len(ordered_ms) * pct / 100), len(ordered_ms) - 1)]

    return f"p50 {at(50):.1f} ms, p99 {at(99):.1f} ms, worst {ordered_ms[-1]:.1f} ms of {len(ordered_ms)}"


def _memory_kib(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=768)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-kib", type=float, default=256.0, help="most that a stream may cost the daemon")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
