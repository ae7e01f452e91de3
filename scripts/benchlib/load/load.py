"""Sends planned requests at their times, or so many at once (closed loop), and notes how they ended."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchlib.load.records import Record
from benchlib.load.targets import Prepared, RefusedError
from benchlib.load.workload import PlannedRequest
from semipd.core.errors import SemipdError

LAG_PROBE_S = 0.02


@dataclass
class LoadRun:
    """One run over `requests`. Start it with `run`; read the rest while it runs or afterwards.

    Attributes:
        concurrency: places of the closed loop; 0: every request is sent at its `due_s`.
        limit_s: for one request, from sending to its end.
        duration_s: from the start to the end of the last request.
        loop_lags_s: how late the generator's event loop woke up, sampled all the time.
        cpu_s: what the generator itself used.
    """

    requests: Sequence[PlannedRequest]
    prepared: Sequence[Prepared]
    concurrency: int
    limit_s: float
    records: list[Record] = field(default_factory=list)
    loop_lags_s: list[float] = field(default_factory=list)
    duration_s: float = 0.0
    cpu_s: float = 0.0
    num_in_flight: int = 0
    start_s: float = 0.0
    was_stopped: bool = False

    async def run(self) -> None:
        """Returns when every request is over. Call once."""
        self._stop = asyncio.Event()
        self._tasks = set[asyncio.Task[None]]()
        self._bug: BaseException | None = None
        probe = asyncio.create_task(self._probe_lag(), name="lag-probe")
        cpu_s, self.start_s = time.process_time(), time.perf_counter()
        try:
            await (self._closed_loop() if self.concurrency else self._open_loop())
        finally:
            self.duration_s = max((record.end_s for record in self.records), default=self._now_s())
            self.cpu_s = time.process_time() - cpu_s
            probe.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.wait([probe, *self._tasks])

    def stop(self) -> None:
        """Send nothing more and cancel what is in flight; `run` then returns."""
        self.was_stopped = True
        self._stop.set()
        for task in self._tasks:
            task.cancel()

    async def _open_loop(self) -> None:
        for index, request in enumerate(self.requests):
            assert request.due_s is not None, "an open loop needs times"
            await self._until(request.due_s)
            if self.was_stopped:
                break
            self._launch(self._one(index))
        await self._all_over()

    async def _closed_loop(self) -> None:
        indices = iter(range(len(self.requests)))

        async def place() -> None:
            for index in indices:
                if self.was_stopped:
                    return
                await self._one(index)

        for _ in range(self.concurrency):
            self._launch(place())
        await self._all_over()

    def _launch(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="load")
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._bug = self._bug or error
            self.stop()

    async def _all_over(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._bug is not None:
            raise self._bug

    async def _until(self, due_s: float) -> None:
        """Wait for the time, or for `stop`."""
        # a loop whose clock ticks in milliseconds may wake up a little early
        while (delay_s := due_s - self._now_s()) > 0 and not self.was_stopped:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stop.wait()

    async def _one(self, index: int) -> None:
        """Send one request and close its record, whatever happens."""
        request = self.requests[index]
        record = Record(index, request.prompt_tokens, request.output_tokens, request.due_s)
        self.records.append(record)
        self.num_in_flight += 1
        record.sent_s = self._now_s()
        try:
            async with asyncio.timeout(self.limit_s):
                await self.prepared[index].send(record, self.start_s)
            record.close("ok", self._now_s())
        except TimeoutError:
            message = f"not over within {self.limit_s:g} s"
            record.close("timed_out", self._now_s(), "timeout", message)
        except RefusedError as error:
            record.close("refused", self._now_s(), error.code, error.message)
        except SemipdError as error:
            record.close("failed", self._now_s(), error.code, error.message)
        except ValueError as error:
            record.close("failed", self._now_s(), "malformed_response", str(error))
        except asyncio.CancelledError:
            record.close("cancelled", self._now_s())
            raise
        finally:
            self.num_in_flight -= 1

    async def _probe_lag(self) -> None:
        while True:
            before_s = time.perf_counter()
            await asyncio.sleep(LAG_PROBE_S)
            self.loop_lags_s.append(max(0.0, time.perf_counter() - before_s - LAG_PROBE_S))

    def _now_s(self) -> float:
        return time.perf_counter() - self.start_s
