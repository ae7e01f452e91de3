"""The request table: every request from admission until its client has the last token.

It holds all that a new engine needs to continue a request: prompt, parameters with a concrete seed,
and the tokens produced so far.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from semipd.core.errors import SemipdError
from semipd.core.events import Event, FinishReason
from semipd.core.messages import Finished, Outbound, StepTokens
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams

log = logging.getLogger(__name__)


class EngineLink(Protocol):
    """What the table needs of the engine. Neither call waits."""

    def submit(self, request: Request) -> None:
        """Raises SemipdError when the engine cannot take requests now."""

    def cancel(self, seq: SeqId) -> None:
        """Best effort: an engine that is gone has cancelled everything."""


class LiveRequest:
    """One request in the table. `tokens` only grows; one consumer reads it at its own pace."""

    __slots__ = ("_waiter", "cached_tokens", "error", "finish_reason", "request", "tokens")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tokens: list[int] = []
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.error: SemipdError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None

    def add(self, token: int) -> None:
        self.tokens.append(token)
        self._wake()

    def finish(self, reason: FinishReason, error: SemipdError | None = None) -> None:
        """The first end counts; later ones are ignored."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self.error = error
            self._wake()

    async def changed(self, num_seen: int) -> None:
        """Wait until there are more than `num_seen` tokens or the request is over."""
        assert self._waiter is None, f"request {self.request.request_id} has two consumers"
        while len(self.tokens) <= num_seen and not self.is_over:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class RequestTable:
    """Owner of every live request. `on_message` is called for each message of the engine, in order."""

    def __init__(self, engine: EngineLink, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._engine = engine
        self._clock_ns = clock_ns
        self._live: dict[SeqId, LiveRequest] = {}
        self._last_seq = 0
        self._closed: SemipdError | None = None
        self.totals: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._live)

    def admit(
        self, request_id: str, prompt: list[int], params: SamplingParams, namespace: str = ""
    ) -> LiveRequest:
        """Hand a request to the engine. Raises what `EngineLink.submit` raises; nothing is kept then."""
        if self._closed is not None:
            raise self._closed
        seq = SeqId(self._last_seq + 1)
        live = LiveRequest(Request(seq, request_id, prompt, params, self._clock_ns(), namespace))
        self._engine.submit(live.request)
        self._last_seq = seq
        self._live[seq] = live
        self.totals["admitted"] += 1
        return live

    def release(self, live: LiveRequest) -> None:
        """The consumer is done with the request; the engine is told if it is not."""
        if self._live.pop(live.request.seq, None) is None:
            return
        if not live.is_over:
            live.finish("cancelled")
            self._engine.cancel(live.request.seq)
        self.totals[live.finish_reason or "cancelled"] += 1

    def cancel(self, live: LiveRequest, reason: FinishReason = "cancelled") -> None:
        """End the request now, with `reason` as its consumer's answer."""
        if not live.is_over:
            live.finish(reason)
            self._engine.cancel(live.request.seq)

    def close(self, error: SemipdError) -> None:
        """Every live request fails with `error`, and so does every later one. The first call counts."""
        if self._closed is not None:
            return
        self._closed = error
        for live in self._live.values():
            if not live.is_over:
                live.finish("error", error)
                self._engine.cancel(live.request.seq)

    def on_message(self, message: Outbound) -> None:
        match message:
            case StepTokens(seqs, tokens):
                self._add_tokens(seqs, tokens)
            case Finished():
                self._finish(message)
            case Event():
                self._note(message)

    def _add_tokens(self, seqs: tuple[SeqId, ...], tokens: list[int]) -> None:
        live_requests = self._live
        for seq, token in zip(seqs, tokens, strict=True):
            live = live_requests.get(seq)
            # Tokens of a cancelled request may still be on their way.
            if live is not None and live.finish_reason is None:
                live.add(token)

    def _finish(self, message: Finished) -> None:
        live = self._live.get(message.seq)
        if live is None or live.is_over:
            return
        live.cached_tokens = message.cached_tokens
        error = SemipdError(message.code, message.message) if message.reason == "error" else None
        live.finish(message.reason, error)

    def _note(self, event: Event) -> None:
        log.debug("%s request_id=%s %s", event.kind, event.request_id, event.data)
        live = self._live.get(event.seq) if event.seq is not None else None
        if live is not None and event.kind == "admitted":
            live.cached_tokens = int(event.data.get("cached_tokens", 0))  # type: ignore[arg-type]
