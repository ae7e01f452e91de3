"""What is done to the daemon while it serves. Each fault is done and undone before the next begins."""

import asyncio
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from chaoslib import garbage
from chaoslib.jobs import Job, Meter, Shape
from chaoslib.target import Target

RECOVERY_LIMIT_S = 180.0
WORKER_LIMIT_S = 20.0
"""For a stopped worker to be ended, if it has a step: some times supervision.worker_step_limit_s."""

LOOK_EVERY_S = 0.2
NUM_FLOOD = 120
NUM_SLOW = 4
NUM_VANISHING = 12
NUM_GARBAGE = 25
SLOW_PAUSE_S = 0.02


@dataclass(slots=True)
class Arena:
    """`send_many` runs jobs that take part in the judgement, and returns when they have ended. `garbage`
    counts how malformed input was taken; `injected` the faults; `unrecovered` those after which no token came
    within the limit."""

    target: Target
    rng: random.Random
    shape: Shape
    next_job: Callable[[], Job]
    send_many: Callable[[list[Job]], Awaitable[None]]
    meter: Meter
    garbage: Counter[str]
    injected: Counter[str]
    unrecovered: list[str]

    async def recovered(self, fault: str) -> None:
        """Tokens reach clients again."""
        seen, deadline_s = self.meter.num_tokens, time.monotonic() + RECOVERY_LIMIT_S
        while self.meter.num_tokens <= seen + 20:
            if time.monotonic() > deadline_s or self.target.has_ended:
                self.unrecovered.append(fault)
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def gone(self, pid: int, limit_s: float = RECOVERY_LIMIT_S) -> bool:
        """Wait until somebody has ended the process that we stopped. False: nobody has."""
        deadline_s = time.monotonic() + limit_s
        while pid in (self.target.engine_pid(), *self.target.worker_pids()):
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(LOOK_EVERY_S)
        return True


async def kill_engine(arena: Arena) -> None:
    if (pid := arena.target.engine_pid()) is not None:
        arena.target.send_signal(pid, signal.SIGKILL)
    if arena.rng.random() < 0.7:  # else the next fault meets an engine that is not back yet
        await arena.recovered("kill-engine")


async def stop_engine(arena: Arena) -> None:
    if (pid := arena.target.engine_pid()) is not None:
        arena.target.send_signal(pid, signal.SIGSTOP)
        if not await arena.gone(pid):
            arena.unrecovered.append("stop-engine: it was left standing")
            arena.target.send_signal(pid, signal.SIGCONT)
    await arena.recovered("stop-engine")


async def pause_engine(arena: Arena) -> None:
    """Too short to be taken for dead."""
    if (pid := arena.target.engine_pid()) is not None and arena.target.send_signal(pid, signal.SIGSTOP):
        await asyncio.sleep(arena.rng.uniform(0.1, 0.6))
        arena.target.send_signal(pid, signal.SIGCONT)
    await arena.recovered("pause-engine")


async def kill_worker(arena: Arena) -> None:
    if workers := arena.target.worker_pids():
        arena.target.send_signal(arena.rng.choice(workers), signal.SIGKILL)
    await arena.recovered("kill-worker")


async def stop_worker(arena: Arena) -> None:
    """An idle worker that stands still is noticed with its next step; until then it does no harm. One that
    still starts has minutes, so it is left alone."""
    if workers := await _working(arena.target):
        pid = arena.rng.choice(workers)
        arena.target.send_signal(pid, signal.SIGSTOP)
        if not await arena.gone(pid, WORKER_LIMIT_S):
            if await _has_old_step(arena.target):
                arena.unrecovered.append("stop-worker: it was left standing in mid-step")
            arena.target.send_signal(pid, signal.SIGCONT)
    await arena.recovered("stop-worker")


async def _working(target: Target) -> list[int]:
    status = await target.status() or {}
    workers = ((status.get("device") or {}).get("workers") or {}).values()
    return [worker["pid"] for worker in workers if worker["state"] == "up"]


async def _has_old_step(target: Target) -> bool:
    status = await target.status()
    lanes = {} if status is None else status["lanes"]
    return any((lane["step_age_ms"] or 0) / 1e3 > WORKER_LIMIT_S / 2 for lane in lanes.values())


async def full_queue(arena: Arena) -> None:
    """Far more requests at once than may wait."""
    await arena.send_many([replace(arena.next_job(), max_tokens=8, leave_after=0) for _ in range(NUM_FLOOD)])


async def slow_readers(arena: Arena) -> None:
    """Long and bulky answers, read a few hundred bytes at a time. The daemon ends streams that leave too much
    with it, and must go on serving all others."""
    jobs = []
    for _ in range(NUM_SLOW):
        job, shape = arena.next_job(), arena.shape
        longest = shape.context_tokens - len(job.prompt)
        jobs.append(
            replace(
                job,
                transport="http-stream",
                num_choices=1,
                action="stay",
                max_tokens=longest,
                pause_s=SLOW_PAUSE_S,
                logprobs=10,
            )
        )
    await arena.send_many(jobs)


async def disconnects(arena: Arena) -> None:
    """Clients that hang up in every phase of an answer."""
    jobs = [arena.next_job() for _ in range(NUM_VANISHING)]
    await arena.send_many(
        [replace(job, action="vanish", leave_after=arena.rng.randint(0, job.max_tokens)) for job in jobs]
    )


async def full_log(arena: Arena) -> None:
    arena.target.fill_log()
    try:
        await malformed(arena)  # which is worth a line or two
        await arena.recovered("full-log")
    finally:
        arena.target.empty_log()


async def malformed(arena: Arena) -> None:
    for _ in range(NUM_GARBAGE):
        await garbage.throw(arena.rng, arena.target.url, arena.target.socket_path, arena.garbage)


Fault = Callable[[Arena], Awaitable[None]]

FAULTS: dict[str, Fault] = {
    "kill-engine": kill_engine,
    "stop-engine": stop_engine,
    "pause-engine": pause_engine,
    "kill-worker": kill_worker,
    "stop-worker": stop_worker,
    "full-queue": full_queue,
    "slow-readers": slow_readers,
    "disconnects": disconnects,
    "full-log": full_log,
    "malformed": malformed,
}
NEEDS_WORKERS = ("kill-worker", "stop-worker")


async def inject(arena: Arena, names: list[str], until_s: float) -> None:
    """Every fault once in random order, then again in another, until the time is up (time.monotonic)."""
    deck: deque[str] = deque()
    while time.monotonic() < until_s and not arena.target.has_ended:
        if not deck:
            deck.extend(arena.rng.sample(names, len(names)))
        name = deck.popleft()
        await asyncio.sleep(arena.rng.uniform(0.1, 1.0))
        arena.injected[name] += 1
        await FAULTS[name](arena)
