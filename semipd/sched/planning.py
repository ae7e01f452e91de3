"""Planning: who comes next, who goes to the background, who is told that it comes too late.

A request is refused as `late` when its first token is predicted for more than `max_late_ns` after it was due,
or when so much time has passed. That is decided when it comes and whenever it goes to the background, and
again every FORECAST_PAUSE_NS while it waits: so nobody waits longer than that without a word. Who has agreed
to wait (`accept_late`), who has no target, and whose prompt is begun stays.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from semipd.core.errors import SemipdError
from semipd.core.events import FROM_BACKGROUND, TO_BACKGROUND
from semipd.core.messages import ExpectedStarts
from semipd.core.request import SeqId
from semipd.sched.order import Pace, Prompt
from semipd.sched.outbox import Outbox
from semipd.sched.prompts import Prompts
from semipd.sched.sequence import Sequence

FORECAST_PAUSE_NS = 100_000_000
TELL_EVERY_NS = 1_000_000_000
"""When those in the background will be begun changes all the time; the daemon is told so often."""

MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0

Refused = list[tuple[Sequence, SemipdError]]


class Plan(NamedTuple):
    """`has_changed`: others than before may come first."""

    has_changed: bool
    refused: Refused


class Planning:
    def __init__(self, prompts: Prompts, max_late_ns: int) -> None:
        self._prompts = prompts
        self._max_late_ns = max_late_ns
        self._forecast_due_ns = 0
        self._tell_due_ns = 0

    def plan(
        self,
        sequences: Mapping[SeqId, Sequence],
        begun: Iterable[Sequence],
        pace: Pace,
        busy_ns: float,
        out: Outbox,
    ) -> Plan:
        """Renew what the order rests on, and decide. `busy_ns`: see PromptQueue.plan."""
        now_ns = out.now_ns
        moved = self._prompts.plan(sequences, begun, pace, busy_ns, now_ns)
        if not any(prompt.in_background for prompt in moved) and now_ns < self._forecast_due_ns:
            self._tell_moved(moved, sequences, {}, out)
            return Plan(bool(moved), [])
        self._forecast_due_ns = now_ns + FORECAST_PAUSE_NS
        forecast = self._prompts.queue.forecast(now_ns, pace, busy_ns)
        starts_ns = {
            prompt.seq: max(end_ns - prompt.cost_ns, now_ns)
            for prompt, end_ns in forecast.first_tokens_ns
            if prompt.in_background and not prompt.is_begun
        }
        shed = {prompt.seq for prompt, _ in forecast.shed}
        self._tell_moved([prompt for prompt in moved if prompt.seq not in shed], sequences, starts_ns, out)
        if starts_ns and now_ns >= self._tell_due_ns:
            self._tell_due_ns = now_ns + TELL_EVERY_NS
            out.send(ExpectedStarts(tuple(starts_ns), tuple(starts_ns.values())))
        refused = [
            (sequences[prompt.seq], self._late(prompt, drained_ns, now_ns))
            for prompt, drained_ns in forecast.shed
        ]
        return Plan(bool(moved or refused), refused)

    @staticmethod
    def _tell_moved(
        moved: Iterable[Prompt],
        sequences: Mapping[SeqId, Sequence],
        starts_ns: Mapping[SeqId, int],
        out: Outbox,
    ) -> None:
        for prompt in moved:
            told = FROM_BACKGROUND({})
            if prompt.in_background:
                start_ns = starts_ns.get(prompt.seq)
                expected_ms = None if start_ns is None else (start_ns - out.now_ns) / 1e6
                told = TO_BACKGROUND({"reason": "late", "expected_start_ms": expected_ms})
            out.event(told, sequences[prompt.seq])

    def _late(self, prompt: Prompt, drained_ns: int, now_ns: int) -> SemipdError:
        assert prompt.due_ns is not None, f"{prompt} has no target, and is late"
        waited_s = (now_ns - prompt.arrival_ns) / 1e9
        due_s = (prompt.due_ns - prompt.arrival_ns) / 1e9
        retry_s = min(max((drained_ns - now_ns) / 1e9, MIN_RETRY_S), MAX_RETRY_S)
        return SemipdError(
            "late",
            f"The first token was to come within {due_s:.3g} s; {waited_s:.3g} s have passed, and it is not "
            f"expected within {self._max_late_ns / 1e9:g} s after that (admission.max_late_s).",
            "Send the request again later, to another server, or with accept_late to wait in the background.",
            retry_after_s=retry_s,
        )
