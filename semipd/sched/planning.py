"""Planning: who comes next, who goes to the background, who is told that it comes too late.

A request is refused as `late` when its first token is predicted for more than `max_late_ns` after it was due,
or when so much time has passed. That is decided when it comes and whenever it goes to the background, and
again every FORECAST_PAUSE_NS while it waits: so nobody waits longer than that without a word. Who has agreed
to wait (`accept_late`), who has no target, and whose prompt is begun stays.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from semipd.core.errors import SemipdError
from semipd.core.events import FROM_BACKGROUND, TO_BACKGROUND, Told
from semipd.core.messages import ExpectedStarts
from semipd.core.request import SeqId
from semipd.sched.order import Pace, Prompt
from semipd.sched.outbox import Outbox
from semipd.sched.prompts import Prompts
from semipd.sched.sequence import Sequence

FORECAST_PAUSE_NS = 100_000_000
TELL_EVERY_NS = 1_000_000_000
"""When those in the background will be begun changes all the time; the daemon is told so often."""

SOON_NS, LOOK_AFTER_NS = 1_000_000, 500_000_000

MANY = 128
"""Prompts. A plan and a forecast for a thousand take some tenths of a millisecond each."""

MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0

Refused = list[tuple[Sequence, SemipdError]]


class Plan(NamedTuple):
    """`has_changed`: others than before may come first."""

    has_changed: bool
    refused: Refused


class Planning:
    """A plan and a forecast are made in one turn when few wait, else in turns one after the other: no turn
    pays for both."""

    def __init__(self, prompts: Prompts, max_late_ns: int) -> None:
        self._prompts = prompts
        self._queue = prompts.queue
        self._max_late_ns = max_late_ns
        self._forecast_due_ns = 0
        self._tell_due_ns = 0
        self._has_planned = False  # since the last forecast
        self._moved: list[Prompt] = []
        """Whose coming and going is told with the next forecast."""

    def is_due(self, now_ns: int) -> bool:
        return len(self._queue) > 0 and (now_ns >= self._forecast_due_ns or self._queue.plan_is_due(now_ns))

    def wake_at_ns(self, now_ns: int) -> int:
        """While a long step runs: when somebody may have to be told something."""
        if self._has_planned and self._owes_forecast(now_ns):
            return now_ns + SOON_NS
        if self._queue.has_newcomers:
            return max(self._queue.plan_due_ns, now_ns + SOON_NS)
        return now_ns + LOOK_AFTER_NS

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
        is_forecasts_turn = self._has_planned and self._owes_forecast(now_ns)
        has_changed = False
        if self._queue.plan_is_due(now_ns) and not is_forecasts_turn:
            moved = self._prompts.plan(sequences, begun, pace, busy_ns, now_ns)
            self._moved += moved
            self._has_planned, has_changed = True, bool(moved)
            if len(self._queue) > MANY:
                return Plan(has_changed, [])
        if not self._owes_forecast(now_ns):
            return Plan(has_changed, [])
        refused = self._forecast(sequences, pace, busy_ns, out)
        return Plan(has_changed or bool(refused), refused)

    def _owes_forecast(self, now_ns: int) -> bool:
        return bool(self._moved) or now_ns >= self._forecast_due_ns

    def _forecast(
        self, sequences: Mapping[SeqId, Sequence], pace: Pace, busy_ns: float, out: Outbox
    ) -> Refused:
        now_ns = out.now_ns
        self._forecast_due_ns = now_ns + FORECAST_PAUSE_NS
        self._has_planned = False
        shed = self._queue.forecast(now_ns, pace, busy_ns)
        refused = [
            (sequences[prompt.seq], self._late(prompt, drained_ns, now_ns)) for prompt, drained_ns in shed
        ]
        gone = {prompt.seq for prompt, _ in shed}
        for prompt in self._moved:
            if prompt.is_queued and prompt.seq not in gone:
                out.event(_moved(prompt, now_ns), sequences[prompt.seq])
        self._moved = []
        if now_ns >= self._tell_due_ns and self._queue.num_background:
            self._tell_due_ns = now_ns + TELL_EVERY_NS
            waiting = [prompt for prompt in self._queue.waiting_in_background() if prompt.seq not in gone]
            out.send(ExpectedStarts(
                tuple([prompt.seq for prompt in waiting]),
                tuple([max(prompt.expected_start_ns, now_ns) for prompt in waiting]),
            ))  # fmt: skip
        return refused

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


def _moved(prompt: Prompt, now_ns: int) -> Told:
    if not prompt.in_background:
        return FROM_BACKGROUND({})
    expected_ms = max(prompt.expected_start_ns - now_ns, 0) / 1e6
    return TO_BACKGROUND({"reason": "late", "expected_start_ms": expected_ms})
