"""The demo's requests as the daemon tells them: rows, events, service levels."""

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from semipd_top.demo.gpu import blocks_of
from semipd_top.demo.load import Draft

MAX_RECENT = 1024
MAX_TIMELINE = 64
BATCH_DELAY_S = 30.0
DEFAULT_TARGETS = {"ttft_ms": 800.0, "tpot_ms": 27.0, "percentile": 90.0, "window_s": 60.0}

EventDict = dict[str, Any]
End = Literal["stop", "length", "cancelled", "error"]


class Journal:
    """Events in the order of their times; they have ids once `publish` was called. Times are seconds since
    the demo began at the Unix time `began_s`."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._num = 0
        self._new: list[EventDict] = []
        self._published: list[EventDict] = []

    def add(self, at: float, kind: str, data: dict[str, Any], request_id: str | None = None) -> EventDict:
        event = {"id": "", "at_s": self._began_s + at, "kind": kind, "request_id": request_id, "data": data}
        self._new.append(event)
        return event

    def publish(self, now: float) -> None:
        """What has happened until now; all that comes later is of a later time."""
        self._new.sort(key=lambda event: float(event["at_s"]))
        num_due = bisect_right(self._new, self._began_s + now, key=lambda event: float(event["at_s"]))
        for event in self._new[:num_due]:
            self._num += 1
            event["id"] = f"{int(self._began_s)}-{self._num}"
        self._published += self._new[:num_due]
        del self._new[:num_due]

    def take(self) -> list[EventDict]:
        """Those published since the last time."""
        taken, self._published = self._published, []
        return taken


@dataclass(slots=True, eq=False)
class DemoRequest:
    """Times are seconds since the demo began. `left_tokens` are still to be computed before it
    decodes; it does so since `joined`, and has come as far as `decoded` tokens."""

    id: str
    seq: int
    draft: Draft
    arrived: float
    state: Literal["waiting", "prefilling", "decoding", "finished"] = "waiting"
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    left_tokens: float = 0.0
    decoded: float = 0.0
    joined: float = 0.0
    is_placed: bool = False
    is_held: bool = False
    blocks: int = 0
    admitted: float | None = None
    first: float | None = None
    last: float | None = None
    finished: float | None = None
    finish_reason: End | None = None
    error_code: str | None = None
    timeline: list[EventDict] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.draft.prompt_tokens + self.output_tokens

    @property
    def delay_s(self) -> float:
        return BATCH_DELAY_S if self.draft.priority == "batch" else 0.0

    @property
    def due(self) -> float:
        """Its place in the queue."""
        return self.arrived + self.delay_s

    @property
    def queue_ms(self) -> float | None:
        return None if self.admitted is None else (self.admitted - self.arrived) * 1e3

    @property
    def prefill_ms(self) -> float | None:
        if self.admitted is None or self.first is None:
            return None
        return (self.first - self.admitted) * 1e3

    @property
    def ttft_ms(self) -> float | None:
        queue_ms, prefill_ms = self.queue_ms, self.prefill_ms
        return None if queue_ms is None or prefill_ms is None else queue_ms + prefill_ms

    @property
    def tpot_ms(self) -> float | None:
        if self.output_tokens < 2 or self.first is None or self.last is None:
            return None
        return (self.last - self.first) * 1e3 / (self.output_tokens - 1)

    def to_row(self, began_s: float, now: float) -> dict[str, Any]:
        return {
            "id": self.id,
            "key": self.draft.key,
            "seq": self.seq,
            "state": self.state,
            "finish_reason": self.finish_reason,
            "error_code": self.error_code,
            "arrived_at_s": began_s + self.arrived,
            "age_ms": ((now if self.finished is None else self.finished) - self.arrived) * 1e3,
            "priority": self.draft.priority,
            "prompt_tokens": self.draft.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "max_tokens": self.draft.max_tokens,
            "blocks": self.blocks,
            "preemptions": self.preemptions,
            "queue_ms": self.queue_ms,
            "prefill_ms": self.prefill_ms,
            "ttft_ms": self.ttft_ms,
            "tpot_ms": self.tpot_ms,
        }

    def to_holder(self) -> dict[str, Any]:
        """An entry of `kv.holders`."""
        return {
            "id": self.id,
            "state": self.state,
            "blocks": self.blocks,
            "tokens": self.tokens,
            "priority": self.draft.priority,
        }

    def needed_blocks(self) -> int:
        return blocks_of(self.tokens)


class DemoHistory:
    """Every live and recent request, and what became of them."""

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.journal = Journal(began_s)
        self.slo = SloWindow()
        self.live: dict[int, DemoRequest] = {}
        self.recent: deque[DemoRequest] = deque(maxlen=MAX_RECENT)
        self.totals: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.output_tokens = 0
        self._rows: dict[int, dict[str, Any]] = {}

    def arrived(self, draft: Draft, request_id: str) -> DemoRequest:
        self.totals["admitted"] += 1
        request = DemoRequest(request_id, self.totals["admitted"], draft, draft.at_s)
        self.live[request.seq] = request
        prompt, most = draft.prompt_tokens, draft.max_tokens
        self.note(request, draft.at_s, "arrived", prompt_tokens=prompt, max_tokens=most)
        return request

    def note(self, request: DemoRequest, at: float, kind: str, **data: Any) -> None:
        event = self.journal.add(at, kind, data, request.id)
        if len(request.timeline) < MAX_TIMELINE:
            request.timeline.append(event)

    def refuse(self, at: float, code: str, request_id: str) -> None:
        self.refused[code] += 1
        self.journal.add(at, "refused", {"code": code}, request_id)
        self.slo.missed(at)

    def first_token(self, request: DemoRequest, at: float) -> None:
        request.first = request.last = at
        request.output_tokens, request.decoded = 1, 1.0
        self.prompt_tokens += request.draft.prompt_tokens
        self.output_tokens += 1
        self.note(request, at, "first_token")
        self.note(request, at, "first_byte", ttft_ms=request.ttft_ms)

    def finish(self, request: DemoRequest, at: float, reason: End, code: str | None = None) -> None:
        """Its blocks must be free already."""
        assert not request.is_placed, f"{request.id} finished with {request.blocks} blocks"
        del self.live[request.seq]
        request.state, request.finished, request.finish_reason = "finished", at, reason
        request.error_code = code
        end = {"reason": reason, "output_tokens": request.output_tokens, "tpot_ms": request.tpot_ms}
        self.note(request, at, "finished", **end, **({} if code is None else {"code": code}))
        self.totals[reason] += 1
        self.slo.judge(request)
        if len(self.recent) == MAX_RECENT:
            self._rows.pop(self.recent[0].seq, None)
        self.recent.append(request)

    def requests(self, state: str | None = None, limit: int = 100) -> list[DemoRequest]:
        """Live ones, then recent ones, each newest first."""
        found: list[DemoRequest] = []
        for group in (self.live.values(), self.recent):
            for request in reversed(group):
                if len(found) == limit:
                    return found
                if state in (None, request.state) or (state == "live" and request.state != "finished"):
                    found.append(request)
        return found

    def rows(self, now: float, state: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        return [self._row(request, now) for request in self.requests(state, limit)]

    def observed(self, now: float) -> dict[str, Any]:
        """What slo.get answers beside the targets."""
        window_s = min(self.slo.targets["window_s"], max(now, 1.0))
        outputs: list[int] = []
        num_arrived = sum(request.arrived > now - window_s for request in self.live.values())
        for request in reversed(self.recent):
            if request.finished is None or request.finished < now - window_s:
                break
            num_arrived += request.arrived > now - window_s
            if request.output_tokens > 1 and request.finish_reason in ("stop", "length"):
                outputs.append(request.output_tokens)
        mean = sum(outputs) / len(outputs) if outputs else None
        return self.slo.observed(now, mean, num_arrived / window_s)

    def named(self, request_id: str) -> list[DemoRequest]:
        return [request for request in self.requests(limit=2 * MAX_RECENT) if request.id == request_id]

    def _row(self, request: DemoRequest, now: float) -> dict[str, Any]:
        if request.state != "finished":
            return request.to_row(self.began_s, now)
        if request.seq not in self._rows:
            self._rows[request.seq] = request.to_row(self.began_s, now)
        return self._rows[request.seq]


@dataclass(slots=True)
class _Outcome:
    at: float
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    delay_ms: float = 0.0


class SloWindow:
    """Attainment and goodput as the daemon counts them."""

    def __init__(self) -> None:
        self.targets = dict(DEFAULT_TARGETS)
        self._outcomes: deque[_Outcome] = deque()

    def judge(self, request: DemoRequest) -> None:
        assert request.finished is not None
        if request.finish_reason == "cancelled":
            return
        outcome = _Outcome(request.finished, request.ttft_ms, request.tpot_ms, request.delay_s * 1e3)
        self._outcomes.append(outcome if request.finish_reason != "error" else _Outcome(request.finished))

    def missed(self, at: float) -> None:
        self._outcomes.append(_Outcome(at))

    def snapshot(self, now: float) -> dict[str, Any]:
        """`slo` of a state frame."""
        self._forget(now)
        window_s = self.targets["window_s"]
        num, num_met = len(self._outcomes), sum(map(self._is_met, self._outcomes))
        return {
            "targets": dict(self.targets),
            "requests": num,
            "attainment": num_met / num if num else None,
            "goodput_rps": num_met / min(window_s, max(now, 1.0)),
            "ttft_ms": _percentiles([one.ttft_ms for one in self._outcomes if one.ttft_ms is not None]),
            "tpot_ms": _percentiles([one.tpot_ms for one in self._outcomes if one.tpot_ms is not None]),
        }

    def observed(self, now: float, mean_output_tokens: float | None, arrivals_per_s: float) -> dict[str, Any]:
        """At the percentile of the targets."""
        pct = self.targets["percentile"]
        self._forget(now)
        ttfts = sorted(one.ttft_ms for one in self._outcomes if one.ttft_ms is not None)
        tpots = sorted(one.tpot_ms for one in self._outcomes if one.tpot_ms is not None)
        return {
            "ttft_ms": percentile(ttfts, pct),
            "tpot_ms": percentile(tpots, pct),
            "mean_tpot_ms": sum(tpots) / len(tpots) if tpots else None,
            "mean_output_tokens": mean_output_tokens,
            "arrivals_per_s": arrivals_per_s,
        }

    def _forget(self, now: float) -> None:
        while self._outcomes and self._outcomes[0].at < now - self.targets["window_s"]:
            self._outcomes.popleft()

    def _is_met(self, outcome: _Outcome) -> bool:
        if outcome.ttft_ms is None or outcome.ttft_ms > self.targets["ttft_ms"] + outcome.delay_ms:
            return False
        return outcome.tpot_ms is None or outcome.tpot_ms <= self.targets["tpot_ms"]


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {f"p{pct}": percentile(ordered, pct) for pct in (50, 90, 99)}


def percentile(ordered: Sequence[float], pct: float) -> float | None:
    """Nearest rank, as the daemon's."""
    if not ordered:
        return None
    return ordered[max(math.ceil(len(ordered) * pct / 100), 1) - 1]
