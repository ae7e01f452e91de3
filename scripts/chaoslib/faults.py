"""What is done to the daemon while it serves. Each fault is done and undone before the next begins."""

import asyncio
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from chaoslib import garbage, operators
from chaoslib.clock import MachineClock
from chaoslib.jobs import Job, Meter, Shape
from chaoslib.target import Target
from semipd.core.errors import SemipdError

RECOVERY_LIMIT_S = 180.0
WORKER_LIMIT_S = 20.0
"""For a stopped worker to be ended, if it has a step: some times supervision.worker_step_limit_s."""

LOOK_EVERY_S = 0.2
NUM_FLOOD = 120
NUM_SLOW = 4
NUM_VANISHING = 12
NUM_GARBAGE = 25
NUM_SLEEPERS = 5
NUM_POISON = 8
SLOW_PAUSE_S = 0.02
STOP_DAEMON_S = 20.0


@dataclass(slots=True)
class Arena:
    """`send_many` runs jobs that take part in the judgement, and returns when they have ended. `garbage`
    counts how malformed input was taken; `injected` the faults; `unrecovered` those after which no token came
    within the limit."""

    target: Target
    clock: MachineClock
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
        seen, deadline_s = self.meter.num_tokens, self.clock.now_s + RECOVERY_LIMIT_S
        while self.meter.num_tokens <= seen + 20:
            if self.clock.now_s > deadline_s or self.target.has_ended:
                self.unrecovered.append(fault)
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def gone(self, pid: int, limit_s: float = RECOVERY_LIMIT_S) -> bool:
        """Wait until somebody has ended the process that we stopped. False: nobody has."""
        deadline_s = self.clock.now_s + limit_s
        while pid in (self.target.engine_pid(), *self.target.worker_pids()):
            if self.clock.now_s > deadline_s:
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


async def kill_start(arena: Arena) -> None:
    """The engine, and successors of it in the middle of their start."""
    for _ in range(arena.rng.randint(2, 4)):
        if (pid := arena.target.engine_pid()) is not None:
            arena.target.send_signal(pid, signal.SIGKILL)
        await asyncio.sleep(arena.rng.uniform(0.05, 2.0))
    await arena.recovered("kill-start")


async def stop_start(arena: Arena) -> None:
    """A successor stands still in the middle of its start."""
    if (pid := await _successor(arena)) is not None:
        await asyncio.sleep(arena.rng.uniform(0.0, 0.5))
        arena.target.send_signal(pid, signal.SIGSTOP)
        if not await arena.gone(pid):
            arena.unrecovered.append("stop-start: it was left standing")
            arena.target.send_signal(pid, signal.SIGCONT)
    await arena.recovered("stop-start")


async def _successor(arena: Arena) -> int | None:
    """Kill the engine; the pid of the next one as soon as it is there."""
    before, target = arena.target.engine_pid(), arena.target
    if before is not None:
        target.send_signal(before, signal.SIGKILL)
    deadline_s = arena.clock.now_s + RECOVERY_LIMIT_S
    while (pid := target.engine_pid()) in (None, before) and arena.clock.now_s < deadline_s:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return pid if pid != before else None


async def stop_daemon(arena: Arena) -> None:
    """SIGSTOP of the daemon itself with streams open, as by Ctrl-Z."""
    arena.target.send_signal(arena.target.pid, signal.SIGSTOP)
    await asyncio.sleep(STOP_DAEMON_S)
    arena.target.send_signal(arena.target.pid, signal.SIGCONT)
    await arena.recovered("stop-daemon")


async def drain_crash(arena: Arena) -> None:
    """A drain begins while no engine is there, and is undone."""
    if (pid := arena.target.engine_pid()) is not None:
        arena.target.send_signal(pid, signal.SIGKILL)
    try:
        began = await operators.drain(arena.target.url)
        await asyncio.sleep(arena.rng.uniform(0.2, 2.0))
        undone = await operators.undo_drain(arena.target.url)
    except (OSError, ValueError, SemipdError) as error:
        arena.unrecovered.append(f"drain-crash: {error!r}")
        return
    if (began, undone) != (200, 200):
        arena.unrecovered.append(f"drain-crash: answered {began}, {undone}")
    await arena.recovered("drain-crash")


async def changes(arena: Arena) -> None:
    await operators.change_everything(arena.rng, arena.target.socket_path, arena.garbage)
    await arena.recovered("changes")


async def sleepers(arena: Arena) -> None:
    """Subscribers that sleep through a restart, and then are told how things stand."""
    asleep = [await operators.Sleeper.asleep(arena.target.socket_path) for _ in range(NUM_SLEEPERS)]
    try:
        if (pid := arena.target.engine_pid()) is not None:
            arena.target.send_signal(pid, signal.SIGKILL)
        await arena.recovered("sleepers")
        seen = asyncio.gather(*(sleeper.sees_a_ready_engine() for sleeper in asleep))
        await arena.clock.within(RECOVERY_LIMIT_S, seen)
    except (OSError, EOFError, TimeoutError, SemipdError) as error:
        arena.unrecovered.append(f"sleepers: {error!r}")
    finally:
        for sleeper in asleep:
            sleeper.close()


async def poison(arena: Arena) -> None:
    """Parameters at the edge of what they may be."""
    pid = arena.target.engine_pid()
    for wishes in arena.rng.sample(operators.POISON, NUM_POISON):
        await operators.poison(arena.target.url, wishes, arena.garbage)
    await arena.recovered("poison")
    if pid is not None and arena.target.engine_pid() != pid:
        arena.unrecovered.append("poison: the engine died of it")


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
        await garbage.throw(arena.rng, arena.target.url, arena.target.socket_path, arena.garbage, arena.clock)


Fault = Callable[[Arena], Awaitable[None]]

FAULTS: dict[str, Fault] = {
    "kill-engine": kill_engine,
    "stop-engine": stop_engine,
    "kill-start": kill_start,
    "stop-start": stop_start,
    "stop-daemon": stop_daemon,
    "drain-crash": drain_crash,
    "changes": changes,
    "sleepers": sleepers,
    "poison": poison,
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
