"""The request table: every request from admission until its client has the last token.

It holds all that a new engine needs to continue a request: prompt, parameters with a concrete seed,
and the tokens produced so far.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from itertools import repeat
from typing import Protocol

from semipd.core.errors import SemipdError
from semipd.core.events import Event, FinishReason
from semipd.core.messages import Finished, Outbound, PromptLogprobs, StepTokens
from semipd.core.plan import TokenLogprobs
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.daemon.history import RequestHistory, RequestRecord

log = logging.getLogger(__name__)


class EngineLink(Protocol):
    """What the table needs of the engine. Neither call waits."""

    def submit(self, request: Request) -> None:
        """Raises SemipdError when the engine cannot take requests now."""

    def cancel(self, seq: SeqId) -> None:
        """Best effort: an engine that is gone has cancelled everything."""


class LiveRequest:
    """One request in the table. `tokens` only grows; one consumer reads it at its own pace.

    `news` is set whenever something has changed; requests that one consumer reads together share it.
    `logprobs` has an entry per token if the request asked for them; `prompt_logprobs` likewise has one
    per prompt token but the first, all of them before the first token.
    """

    __slots__ = (
        "cached_tokens",
        "error",
        "finish_reason",
        "logprobs",
        "news",
        "prompt_logprobs",
        "record",
        "request",
        "stop_token",
        "tokens",
    )

    def __init__(self, request: Request, record: RequestRecord, news: asyncio.Event | None = None) -> None:
        self.request = request
        self.record = record
        self.news = news or asyncio.Event()
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_token: int | None = None
        self.error: SemipdError | None = None

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None

    def add(self, token: int, logprobs: TokenLogprobs | None = None) -> None:
        self.tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        self.news.set()

    def finish(self, reason: FinishReason, error: SemipdError | None = None) -> None:
        """The first end counts; later ones are ignored."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self.error = error
            self.news.set()

    async def changed(self, num_seen: int) -> None:
        """Wait until there are more than `num_seen` tokens or the request is over."""
        while len(self.tokens) <= num_seen and not self.is_over:
            self.news.clear()
            await self.news.wait()


class RequestTable:
    """Owner of every live request. `on_message` is called for each message of the engine, in order."""

    def __init__(self, engine: EngineLink, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._engine = engine
        self._clock_ns = clock_ns
        self._live: dict[SeqId, LiveRequest] = {}
        self._last_seq = 0
        self._closed: SemipdError | None = None
        self.totals: Counter[str] = Counter()
        self.history = RequestHistory(clock_ns=clock_ns)

    def __len__(self) -> int:
        return len(self._live)

    def admit(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        namespace: str = "",
        arrival_ns: int | None = None,
        news: asyncio.Event | None = None,
    ) -> LiveRequest:
        """Hand a request to the engine. `arrival_ns`: when it reached the daemon; None: now. `news`: shared
        with the requests that are read together with it. Raises what `EngineLink.submit` raises; nothing is
        kept then."""
        if self._closed is not None:
            raise self._closed
        seq = SeqId(self._last_seq + 1)
        arrived_ns = self._clock_ns() if arrival_ns is None else arrival_ns
        request = Request(seq, request_id, prompt, params, arrived_ns, namespace)
        self._engine.submit(request)
        live = LiveRequest(request, self.history.arrived(request), news)
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
        reason = live.finish_reason or "cancelled"
        self.totals[reason] += 1
        self.history.finished(live.record, reason, live.error.code if live.error else None)

    def cancel(self, live: LiveRequest, reason: FinishReason = "cancelled") -> None:
        """End the request now, with `reason` as its consumer's answer."""
        if not live.is_over:
            live.finish(reason)
            self._engine.cancel(live.request.seq)

    def cancel_named(self, request_id: str) -> int:
        """An operator ends every sequence of a request; its client is told so. Returns how many."""
        named = [live for live in self._live.values() if live.request.request_id == request_id]
        going = [live for live in named if not live.is_over]
        for live in going:
            live.finish("cancelled", SemipdError("request_cancelled", "An operator cancelled the request."))
            self._engine.cancel(live.request.seq)
        return len(going)

    def close(self, error: SemipdError) -> None:
        """Every live request fails with `error`, and so does every later one. The first call counts."""
        if self._closed is not None:
            return
        self._closed = error
        self.history.close()
        for live in self._live.values():
            if not live.is_over:
                live.finish("error", error)
                self._engine.cancel(live.request.seq)

    def on_message(self, message: Outbound) -> None:
        match message:
            case StepTokens():
                self._add_tokens(message)
            case PromptLogprobs(seq, entries):
                if seq in self._live:
                    self._live[seq].prompt_logprobs.extend(entries)
            case Finished():
                self._finish(message)
            case Event():
                self._note(message)

    def _add_tokens(self, step: StepTokens) -> None:
        live_requests = self._live
        logprobs = step.logprobs or repeat(None)
        grown: list[RequestRecord] = []
        for seq, token, entry in zip(step.seqs, step.tokens, logprobs, strict=False):
            live = live_requests.get(seq)
            # Tokens of a cancelled request may still be on their way.
            if live is not None and live.finish_reason is None:
                live.add(token, entry)
                grown.append(live.record)
        self.history.stepped(grown, self._clock_ns())

    def _finish(self, message: Finished) -> None:
        live = self._live.get(message.seq)
        if live is None or live.is_over:
            return
        live.cached_tokens = message.cached_tokens
        live.stop_token = message.stop_token
        error = (
            SemipdError(message.code, message.message, message.hint) if message.reason == "error" else None
        )
        live.finish(message.reason, error)

    def _note(self, event: Event) -> None:
        self.history.noted(event)
        live = self._live.get(event.seq) if event.seq is not None else None
        if live is not None and event.kind == "admitted":
            live.cached_tokens = int(event.data.get("cached_tokens", 0))  # type: ignore[arg-type]
