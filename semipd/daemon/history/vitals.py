"""Numbers of this moment: how late the event loop is, tokens per second, and the engine's own numbers."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from semipd.core.errors import SemipdError
from semipd.core.state.daemon import Throughput
from semipd.core.state.engine import EngineStatus
from semipd.daemon.engine.life import EngineLife
from semipd.daemon.history.records import RequestHistory
from semipd.system.clock import SYSTEM_CLOCK, Clock

SAMPLE_INTERVAL_S = 0.25
RATE_WINDOW_S = 5.0
"""What throughput is averaged over."""

_NUM_SAMPLES = int(RATE_WINDOW_S / SAMPLE_INTERVAL_S) + 1
ENGINE_LIMIT_S = 1.0
"""For the engine to answer; a scrape must not wait long for a silent one."""


class _Sample(NamedTuple):
    at_s: float
    lag_s: float
    prompt_tokens: int
    output_tokens: int


class Vitals:
    """Samples while `watched`. The engine is asked at most once at a time, whoever wants to know."""

    def __init__(self, supervisor: EngineLife, history: RequestHistory, clock: Clock = SYSTEM_CLOCK) -> None:
        self._supervisor = supervisor
        self._history = history
        self._clock_s = clock.monotonic_s
        self._samples: deque[_Sample] = deque(maxlen=_NUM_SAMPLES)
        self._asking: asyncio.Task[EngineStatus | None] | None = None
        self._answer: EngineStatus | None = None
        self._asked_s = float("-inf")
        self.answer_ms: float | None = None
        """How long the engine's last answer took; None when it did not answer."""

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch(), name="vitals")
        try:
            yield
        finally:
            for ending in (task, self._asking):
                if ending is not None:
                    ending.cancel()
                    with suppress(asyncio.CancelledError):
                        await ending

    def sample(self, lag_s: float) -> None:
        """To be called every SAMPLE_INTERVAL_S. `lag_s`: how late the event loop came to it."""
        history = self._history
        sample = _Sample(self._clock_s(), lag_s, history.prompt_tokens, history.output_tokens)
        self._samples.append(sample)

    @property
    def loop_lag_s(self) -> float:
        """The worst delay of the event loop within the last seconds."""
        return max((sample.lag_s for sample in self._samples), default=0.0)

    def throughput(self) -> Throughput:
        """Tokens per second over the last seconds."""
        if len(self._samples) < 2:
            return {"prompt_tokens_per_s": 0.0, "output_tokens_per_s": 0.0}
        first, last = self._samples[0], self._samples[-1]
        seconds = last.at_s - first.at_s
        return {
            "prompt_tokens_per_s": (last.prompt_tokens - first.prompt_tokens) / seconds,
            "output_tokens_per_s": (last.output_tokens - first.output_tokens) / seconds,
        }

    async def engine(self, max_age_s: float) -> EngineStatus | None:
        """The engine's status, at most that old; None when it does not answer."""
        if self._clock_s() - self._asked_s > max_age_s:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask(), name="engine-numbers")
            await asyncio.shield(self._asking)
        return self._answer

    async def _ask(self) -> EngineStatus | None:
        began_s = self._clock_s()
        try:
            self._answer = await self._supervisor.status(ENGINE_LIMIT_S)
            self.answer_ms = (self._clock_s() - began_s) * 1e3
        except SemipdError:
            self._answer = self.answer_ms = None
        self._asked_s = self._clock_s()
        return self._answer

    async def _watch(self) -> None:
        lag_s = 0.0
        while True:
            began_s = self._clock_s()
            self.sample(lag_s)
            await asyncio.sleep(SAMPLE_INTERVAL_S)
            lag_s = max(self._clock_s() - began_s - SAMPLE_INTERVAL_S, 0.0)
