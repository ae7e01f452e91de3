"""The supervisor: the engine is started, watched, replaced when it dies or hangs, given up, stopped."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from semipd.config.sections import SupervisionConfig
from semipd.core.errors import SemipdError
from semipd.core.messages import Cancel, EngineQuestion, Outbound, Submit
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings
from semipd.core.state.daemon import StartPhase
from semipd.core.state.engine import EngineStatus
from semipd.daemon.engine.backoff import Restarts
from semipd.daemon.engine.life import DEFAULT_SUPERVISION, STATUS_LIMIT_S, EngineLife, Outage
from semipd.daemon.engine.live_settings import UNASKED
from semipd.daemon.engine.liveness import Watch
from semipd.daemon.engine.ready import EngineReady, PhaseTime
from semipd.daemon.engine.run import EXIT_LIMIT_S, KILL_LIMIT_S, EngineRun
from semipd.daemon.host.process_limits import EXHAUSTED, next_step
from semipd.engine.launcher import EngineChild, spawn_engine
from semipd.wire.engine_link import LINK_FRAME_BYTES

log = logging.getLogger(__name__)

A = TypeVar("A")

MAX_UNSENT_BYTES = LINK_FRAME_BYTES
"""Submissions the engine has not read yet; beyond, no more are sent."""

MIN_RETRY_S, MAX_RETRY_S, EXHAUSTED_LIMIT_S = 0.1, 10.0, 300.0
"""While the system has no room for an engine's process, its start is tried again for so long before that
counts as a death; the wait between two tries is doubled."""


class Observer(Protocol):
    """Who is told what the engine does; none of it may wait. Between `engine_died` and `engine_ready` no
    message comes."""

    def on_message(self, message: Outbound) -> None: ...

    def engine_died(self, error: SemipdError) -> bool:
        """Every message it had sent has been given. Returns whether a request was given up because of it."""

    def engine_ready(self, ready: EngineReady, outage_s: float) -> None:
        """Not for the first engine. `outage_s`: since the death of the one before."""


class _Nobody:
    def on_message(self, message: Outbound) -> None:
        pass

    def engine_died(self, error: SemipdError) -> bool:
        return False

    def engine_ready(self, ready: EngineReady, outage_s: float) -> None:
        pass


class Supervisor(EngineLife):
    """Keeps one engine running. Set `observer` before `start`."""

    def __init__(
        self,
        settings: EngineSettings,
        spawn: Callable[[], EngineChild] = spawn_engine,
        supervision: SupervisionConfig = DEFAULT_SUPERVISION,
    ) -> None:
        super().__init__(supervision)
        self.observer: Observer = _Nobody()
        self.on_ready: list[Callable[[EngineReady], None]] = []
        """Called for every engine, the first one included."""
        self.on_exhausted: list[Callable[[], None]] = []
        """Called when the system has no room for an engine's process: who can, gives something back."""
        self._settings = settings
        self._spawn = spawn
        self._restarts = Restarts(supervision)
        self._run: EngineRun | None = None
        self._ready_since_s = 0.0
        self._supervising: asyncio.Task[SemipdError] | None = None

    async def start(self) -> EngineReady:
        """Start the engine and wait until it is ready; from then on it is watched and replaced.

        Call from the main thread. Raises what EngineRun.start raises; nothing is left running then.
        """
        ready = await self._start_run()
        self._supervising = asyncio.create_task(self._supervise(), name="engine-supervision")
        return ready

    async def failed(self) -> SemipdError:
        """Wait until engines are given up; says why. For a started supervisor."""
        assert self._supervising is not None, "the engine is not ready"
        return await asyncio.shield(self._supervising)

    async def stop(self) -> None:
        """Stop the engine and start no other. Idempotent; also after a failed start."""
        self.state = "stopping"
        if self._supervising is not None:
            self._supervising.cancel()
            await asyncio.wait([self._supervising])
        if self._run is not None:
            await self._run.stop()

    def kill(self) -> None:
        """SIGKILL the engine and every process of its group, now."""
        if self._run is not None:
            self._run.kill()

    def reopen_log(self) -> None:
        """Tell the engine that our standard error stream goes to another file now."""
        if self._run is not None:
            self._run.reopen_log()

    @property
    def can_submit(self) -> bool:
        return self.state == "ready" and self._run is not None and not self._is_congested(self._run)

    def check_accepting(self) -> None:
        """Raises `overloaded`, too."""
        super().check_accepting()
        run = self._run
        if self.state == "ready" and run is not None and self._is_congested(run):
            raise SemipdError(
                "overloaded",
                f"The engine has {run.unsent_bytes} bytes of requests to read; "
                f"the limit is {MAX_UNSENT_BYTES}.",
                "Send the request again later.",
                retry_after_s=1,
            )

    def submit(self, request: Request) -> None:
        assert self.can_submit, f"submitted to an engine that is {self.state}"
        assert self._run is not None
        self._run.send(Submit(request))

    def cancel(self, seq: SeqId) -> None:
        if self.state == "ready" and self._run is not None:
            self._run.send(Cancel(seq))

    async def ask(self, question: Callable[[int], EngineQuestion[A]], limit_s: float = STATUS_LIMIT_S) -> A:
        run = self._require_ready()
        try:
            async with asyncio.timeout(limit_s):
                answer = await run.ask(question)
        except TimeoutError as error:
            raise SemipdError("engine_silent", f"The engine did not answer within {limit_s:g} s.") from error
        self.live_settings.granted(question(UNASKED))
        return answer

    def check_moving(self) -> None:
        """Raises SemipdError(`engine_stalled`) when a lane, as the last answer had it, works on one step for
        too long. See Watch for what then becomes of the engine."""
        run, config = self._require_ready(), self.supervision
        for name, lane in run.last_status["lanes"].items() if run.last_status else ():
            if lane["step_age_ms"] is None:
                continue
            assert run.last_answer_s is not None, "a status, but no answer"
            age_s = lane["step_age_ms"] / 1e3 + time.monotonic() - run.last_answer_s
            if age_s > config.stall_s:
                raise SemipdError(
                    "engine_stalled",
                    f"The {name} lane has worked on one step for {age_s:.1f} s "
                    f"(supervision.stall_s={config.stall_s:g}).",
                    f"The engine is replaced after supervision.step_limit_s={config.step_limit_s:g} s.",
                )

    @property
    def timeline(self) -> list[PhaseTime]:
        return self._run.timeline if self._run is not None else []

    @property
    def last_answer_s(self) -> float | None:
        """When the engine last answered a question (time.monotonic)."""
        return self._run.last_answer_s if self._run is not None else None

    @property
    def pid(self) -> int | None:
        return None if self._run is None else self._run.pid

    def _phase(self) -> StartPhase | None:
        if self._run is None or self.state not in ("starting", "restarting") or self._backoff_left_s():
            return None
        phase = self._run.phase
        return {
            "name": phase.name,
            "seconds": time.monotonic() - phase.began_s,
            "limit_s": self._run.phase_limit_s,
        }

    def _require_ready(self) -> EngineRun:
        """Raises what `check_ready` does."""
        self.check_ready()
        assert self._run is not None
        return self._run

    def _new_run(self) -> EngineRun:
        return EngineRun(self._settings, self.observer.on_message, self._spawn)

    async def _start_run(self, outage: Outage | None = None) -> EngineReady:
        """`outage`: this start ends it, if the system has room for a process soon."""
        try:
            self._run = self._new_run() if outage is None else await self._patient_run(outage)
        except OSError as error:
            raise _unstartable(error) from error
        self.ready = await self._run.start()
        self._ready_since_s = time.monotonic()
        self.state = "ready"
        for order in self.live_settings.to_repeat():
            self._run.send(order)
        for observe in self.on_ready:
            observe(self.ready)
        return self.ready

    async def _patient_run(self, outage: Outage) -> EngineRun:
        """Tried again and again, within a limit, while the system has no room: that is no death."""
        deadline_s, delay_s = time.monotonic() + EXHAUSTED_LIMIT_S, MIN_RETRY_S
        while True:
            try:
                return self._new_run()
            except OSError as error:
                if error.errno not in EXHAUSTED or time.monotonic() + delay_s > deadline_s:
                    raise
                outage.why = _unstartable(error)
            log.error("%s Trying again in %g s.", outage.why, delay_s)
            for give_back in self.on_exhausted:
                give_back()
            outage.next_start_s = time.monotonic() + delay_s
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, MAX_RETRY_S)

    async def _supervise(self) -> SemipdError:
        """Until engines are given up; says why."""
        while True:
            error = await self._until_dead()
            served_s = time.monotonic() - self._ready_since_s
            self.state, self.outage = "restarting", Outage(error, time.monotonic())
            assert self._run is not None
            await self._run.stop()
            # a request that was given up cannot be the cause of the next death
            fruitful = self.observer.engine_died(error) or self._run.has_emitted
            if not await self._replace(self.outage, served_s, fruitful=fruitful):
                return self._give_up(self.outage.why)

    async def _replace(self, outage: Outage, served_s: float, *, fruitful: bool) -> bool:
        """Start engines until one is ready; False: too many have died."""
        while (delay_s := self._restarts.died(served_s, fruitful=fruitful)) is not None:
            outage.attempt += 1
            outage.next_start_s = time.monotonic() + delay_s
            log.error("%s Starting another one in %g s.", outage.why.message, delay_s)
            await asyncio.sleep(delay_s)
            try:
                ready = await self._start_run(outage)
            except SemipdError as error:
                outage.why, served_s, fruitful = error, 0.0, False
                continue
            outage_s = time.monotonic() - outage.since_s
            log.warning("the engine is ready again after %.1f s", outage_s)
            self.num_restarts += 1
            self.outage = None
            self.observer.engine_ready(ready, outage_s)
            return True
        return False

    def _give_up(self, last: SemipdError) -> SemipdError:
        config = self.supervision
        self.failure = SemipdError(
            "engine_failed",
            f"The engine died {self._restarts.num_fruitless} times in a row without a token between them "
            f"(supervision.max_deaths={config.max_deaths}, window_s={config.window_s:g}). {last.message}",
            last.hint or "Its last words are on the standard error stream of the daemon.",
        )
        self.state, self.outage = "failed", None
        return self.failure

    async def _until_dead(self) -> SemipdError:
        """Watch the engine until it ends, killing it when it hangs; says how it ended."""
        run = self._run
        assert run is not None
        ended = asyncio.create_task(run.ended(), name="engine-end")
        watching = asyncio.create_task(self._watch(run), name="engine-watch")
        try:
            await asyncio.wait([ended, watching], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                run.kill(watching.result())
                await asyncio.wait([ended], timeout=EXIT_LIMIT_S + 2 * KILL_LIMIT_S)
            how = ended.result() if ended.done() else f"The engine (pid {run.pid}) cannot be killed."
        finally:
            for task in (ended, watching):
                task.cancel()
            await asyncio.wait([ended, watching])
        return SemipdError("engine_crashed", how, "Send the request again.")

    async def _watch(self, run: EngineRun) -> str:
        """Ask the engine again and again; returns when it must be taken for hung, and why."""
        config = self.supervision
        watch = Watch(config.interval_s, config.answer_limit_s, config.step_limit_s)
        asking: asyncio.Task[EngineStatus] | None = None
        began_s, usage = time.monotonic(), run.usage()
        try:
            while True:
                asking = asking or asyncio.create_task(run.status(), name="engine-liveness")
                await asyncio.sleep(config.interval_s)
                elapsed_s, began_s = time.monotonic() - began_s, time.monotonic()
                before, usage = usage, run.usage()
                status = asking.result() if asking.done() else None
                if why := watch.turned(elapsed_s, status, usage.since(before)):
                    return why
                if status is not None:
                    asking = None
        finally:
            if asking is not None:
                asking.cancel()
                await asyncio.wait([asking])

    @staticmethod
    def _is_congested(run: EngineRun) -> bool:
        return run.unsent_bytes > MAX_UNSENT_BYTES


def _unstartable(error: OSError) -> SemipdError:
    message = f"The engine process cannot be started: {error}."
    return SemipdError("engine_start_failed", message, next_step(error.errno))
