"""The request table: every request from admission until its client has the last token.

It holds all that a new engine needs to continue a request: prompt, parameters with a concrete seed,
and the tokens produced so far. A request's stream goes on there as if nothing had happened; what may be
submitted when is decided in resume.py.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from typing import Protocol

from semipd.core.errors import SemipdError
from semipd.core.events import Event, FinishReason
from semipd.core.messages import ExpectedStarts, Finished, Outbound, PromptLogprobs, StepTokens
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.slo import Targets
from semipd.daemon.access.callers import OPERATOR, Caller
from semipd.daemon.access.terms import DEFAULT_TERMS, Terms
from semipd.daemon.engine.ready import EngineReady
from semipd.daemon.history.record import RequestRecord
from semipd.daemon.history.records import RequestHistory
from semipd.daemon.requests.live import LiveRequest
from semipd.daemon.requests.resume import Resumption
from semipd.daemon.requests.rules import slow_reader
from semipd.system.clock import SYSTEM_CLOCK, Clock

log = logging.getLogger(__name__)


class EngineLink(Protocol):
    """What the table needs of the engine. No call waits."""

    @property
    def can_submit(self) -> bool:
        """An engine is there and takes requests now."""

    def check_accepting(self) -> None:
        """Raises SemipdError when new requests cannot be taken, not even for a later engine."""

    def submit(self, request: Request) -> None:
        """Only while `can_submit`. Raises SemipdError(`cannot_be_sent`): this request never can be."""

    def cancel(self, seq: SeqId) -> None:
        """Best effort: an engine that is gone has cancelled everything."""


class RequestTable:
    """Owner of every live request, and the supervisor's observer."""

    def __init__(self, engine: EngineLink, clock: Clock = SYSTEM_CLOCK) -> None:
        self._engine = engine
        self._clock_ns = clock.monotonic_ns
        self._live: dict[SeqId, LiveRequest] = {}
        self._last_seq = 0
        self._closed: SemipdError | None = None
        self._resumption = Resumption()
        self.totals: Counter[str] = Counter()
        self.history = RequestHistory(clock)

    def __len__(self) -> int:
        return len(self._live)

    @property
    def num_suspects(self) -> int:
        """Requests that were in flight at a crash and have not passed that point yet."""
        return self._resumption.num_suspects

    @property
    def num_held(self) -> int:
        """Requests that no engine has at the moment."""
        return self._resumption.num_held

    def admit(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        namespace: str = "",
        arrival_ns: int | None = None,
        news: asyncio.Event | None = None,
        terms: Terms = DEFAULT_TERMS,
    ) -> LiveRequest:
        """Hand a request to the engine, or to the next one. `arrival_ns`: when it reached the daemon; None:
        now. `news`: shared with the requests that are read together with it. Raises what
        `EngineLink.check_accepting` raises, and why the request cannot be sent; nothing of it lives then."""
        if self._closed is not None:
            raise self._closed
        self._engine.check_accepting()
        seq = SeqId(self._last_seq + 1)
        arrived_ns = self._clock_ns() if arrival_ns is None else arrival_ns
        service = terms.service
        request = Request(
            seq,
            request_id,
            prompt,
            params,
            arrived_ns,
            namespace,
            service_class=service.service_class,
            targets=service.targets,
            accept_late=service.accept_late,
        )
        self._last_seq = seq
        try:
            live = self._arrive(request, news, terms)
            self._submit_due()
        except BaseException:
            self._undo(seq, "internal_error")
            raise
        if live.error is not None:
            self._undo(seq, live.error.code)
            raise live.error
        return live

    def _arrive(self, request: Request, news: asyncio.Event | None, terms: Terms) -> LiveRequest:
        live = LiveRequest(request, self.history.arrived(request, terms), news, terms.max_unread)
        self._live[request.seq] = live
        self.totals["admitted"] += 1
        self._resumption.arrived(request.seq)
        return live

    def _undo(self, seq: SeqId, code: str) -> None:
        """Its admission has failed, however far it came: nobody will release it."""
        self._resumption.ended(seq)
        if self._live.pop(seq, None) is not None:
            self.totals["error"] += 1
        self.history.abandoned(seq, code)

    def release(self, live: LiveRequest) -> None:
        """The consumer is done with the request; the engine is told if it is not."""
        if self._live.pop(live.request.seq, None) is None:
            return
        if not live.is_over:
            live.finish("cancelled")
            self._withdraw(live)
        reason = live.finish_reason or "cancelled"
        self.totals[reason] += 1
        self.history.finished(live.record, reason, live.error.code if live.error else None)

    def cancel(self, live: LiveRequest, reason: FinishReason = "cancelled") -> None:
        """End the request now, with `reason` as its consumer's answer."""
        if not live.is_over:
            live.finish(reason)
            self._withdraw(live)

    def cancel_named(self, request_id: str, caller: Caller = OPERATOR) -> int:
        """End every sequence of a request that the caller owns; its client is told so. Returns how many."""
        who = "An operator" if caller.is_operator else "Another call with the same key"
        error = SemipdError("request_cancelled", f"{who} cancelled the request.")
        going = [
            live
            for live in self._live.values()
            if live.request.request_id == request_id and not live.is_over and caller.owns(live.record.owner)
        ]
        for live in going:
            self.fail(live, error, "cancelled")
        return len(going)

    def fail(self, live: LiveRequest, error: SemipdError, reason: FinishReason = "error") -> None:
        """End the request now; its consumer gets what has been produced, then the error."""
        if not live.is_over:
            live.finish(reason, error)
            self._withdraw(live)

    def fail_all(self, error: Callable[[LiveRequest], SemipdError]) -> int:
        """End every live request; later ones are welcome. Returns how many."""
        going = [live for live in self._live.values() if not live.is_over]
        for live in going:
            self.fail(live, error(live))
        return len(going)

    def retarget(self, service_class: str, before: Targets, after: Targets) -> None:
        """Of live requests of the class, those that have brought no targets get the new ones."""
        for live in self._live.values():
            request = live.request.retargeted(service_class, before, after)
            if request is not live.request:
                live.request = request
                live.record.service = replace(live.record.service, targets=after)

    def oldest_arrival_ns(self) -> int | None:
        return min((live.request.arrival_ns for live in self._live.values()), default=None)

    def close(self, error: SemipdError) -> None:
        """Every live request fails with `error`, and so does every later one. The first call counts."""
        if self._closed is not None:
            return
        self._closed = error
        self.history.close()
        for live in self._live.values():
            if not live.is_over:
                live.finish("error", error)
                self._withdraw(live)

    def on_message(self, message: Outbound) -> None:
        match message:
            case StepTokens():
                self._add_tokens(message)
            case PromptLogprobs(seq, entries):
                if seq in self._live:
                    self._live[seq].prompt_logprobs.extend(entries)
            case Finished():
                self._finish(message)
            case ExpectedStarts(seqs, at_ns):
                self.history.expected(zip(seqs, at_ns, strict=True))
            case Event():
                self._note(message)
        if self._resumption.num_held:
            self._submit_due()

    def engine_died(self, error: SemipdError) -> bool:
        """Whoever was in flight is a suspect. Returns whether one of them is failed for it."""
        in_flight = [live for seq, live in self._live.items() if self._resumption.is_in_flight(seq)]
        for live in in_flight:
            live.lose_engine()
            if live.is_over:
                self._resumption.ended(live.request.seq)
        culprits = self._resumption.crashed({live.request.seq: live.record.state for live in in_flight})
        self.history.engine_died(error.message, [live.record for live in in_flight])
        for seq in culprits:
            self._fail_culprit(self._live[seq], error)
        return bool(culprits)

    def engine_ready(self, ready: EngineReady, outage_s: float) -> None:
        self.history.engine_restarted(outage_s, ready.info["name"])
        self._submit_due()

    def _fail_culprit(self, live: LiveRequest, error: SemipdError) -> None:
        request_id = live.request.request_id
        log.error("the engine died twice of this request", extra={"request_id": request_id})
        live.finish(
            "error",
            SemipdError(
                "engine_crashed",
                f"The engine died twice while it worked on the request {request_id!r:.140}, the second time "
                f"on nothing else. {error.message}",
                "Do not send it again as it is; please report it.",
            ),
        )

    def _submit_due(self) -> None:
        while self._engine.can_submit and (seq := self._resumption.next_due()) is not None:
            self._submit(self._live[seq])

    def _submit(self, live: LiveRequest) -> None:
        """A request that cannot be sent fails alone, whoever's turn brought it up."""
        try:
            self._engine.submit(live.submission())
        except Exception as error:
            self._resumption.ended(live.request.seq)
            live.finish("error", _why_unsent(error, live.request.request_id))
            return
        live.num_submissions += 1
        if live.num_submissions > 1:
            self.history.resumed(live.record, len(live.tokens))

    def _withdraw(self, live: LiveRequest) -> None:
        """It is over; an engine that works on it is told."""
        seq = live.request.seq
        if self._resumption.is_in_flight(seq):
            self._engine.cancel(seq)
        self._resumption.ended(seq)
        if self._closed is None and self._resumption.num_held:
            self._submit_due()

    def _add_tokens(self, step: StepTokens) -> None:
        live_requests = self._live
        logprobs = step.logprobs or repeat(None)
        on_trial = self._resumption.on_trial
        grown: list[RequestRecord] = []
        for seq, token, entry in zip(step.seqs, step.tokens, logprobs, strict=False):
            live = live_requests.get(seq)
            # Tokens of a cancelled request may still be on their way.
            if live is not None and live.finish_reason is None:
                live.add(token, entry)
                grown.append(live.record)
                if seq == on_trial:
                    self._resumption.progressed(seq)
                if live.is_neglected:
                    self.fail(live, slow_reader(live.max_unread))
        self.history.stepped(grown, self._clock_ns())

    def _finish(self, message: Finished) -> None:
        live = self._live.get(message.seq)
        if live is None or live.is_over:
            return
        if live.num_submissions == 1:  # of a later one, the last engine knows only its own
            live.cached_tokens = message.cached_tokens
        self._resumption.ended(message.seq)
        live.stop_token = message.stop_token
        live.finish(message.reason, _error_of(message))

    def _note(self, event: Event) -> None:
        self.history.noted(event)
        live = self._live.get(event.seq) if event.seq is not None else None
        if live is not None and event.kind == "admitted":
            live.cached_tokens = live.record.cached_tokens


def _error_of(message: Finished) -> SemipdError | None:
    if message.reason != "error":
        return None
    return SemipdError(message.code, message.message, message.hint, retry_after_s=message.retry_after_s)


def _why_unsent(error: Exception, request_id: str) -> SemipdError:
    if isinstance(error, SemipdError):
        return error
    log.error("a request cannot be submitted", exc_info=error, extra={"request_id": request_id})
    return SemipdError("internal_error", "The daemon failed to hand the request over; its log says how.")
