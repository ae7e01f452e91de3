"""When the policy is asked, and on what snapshot."""

import math

from semipd.core.settings import EngineSettings
from semipd.core.slo import Slo
from semipd.partition.interface import Decision, Policy, Snapshot, Work
from semipd.partition.latency_window import LatencyWindow
from semipd.partition.modes import Modes
from semipd.partition.policies.paper import PaperPolicy
from semipd.partition.policies.predictive import PredictivePolicy
from semipd.partition.step_times.models import Models
from semipd.partition.table import SplitTable

DECIDE_EVERY_NS = 10_000_000
DECIDE_AGAIN_NS = 5_000_000
"""When a lane has just found work. With a long queue a decision takes some tenths of a millisecond."""

DUTY_SPAN_NS = 3e9
"""Time constant of the share in which prefill works beside decode: about a few requests' lives."""


class Deciding:
    """`duty` is Snapshot.prefill_duty; `was_busy`: which lanes had work in the last turn."""

    def __init__(
        self, table: SplitTable, settings: EngineSettings, models: Models, window: LatencyWindow
    ) -> None:
        self.policy: Policy = PaperPolicy() if settings.partition_policy == "paper" else PredictivePolicy()
        self.duty = 1.0
        self.was_busy = (False, False)
        self._table = table
        self._settings = settings
        self._models = models
        self._window = window
        self._turn_ns = 0
        self._decided_at_ns: int | None = None
        self._num_windows_seen = 0

    def measure_duty(self, now_ns: int) -> None:
        """Once a turn, before `was_busy` changes."""
        prefill_was_busy, decode_was_busy = self.was_busy
        if decode_was_busy:
            keep = math.exp((self._turn_ns - now_ns) / DUTY_SPAN_NS)
            self.duty = keep * self.duty + (1 - keep) * prefill_was_busy
        self._turn_ns = now_ns

    def is_due(self, now_ns: int) -> bool:
        if self.policy.per_window:
            return self._window.num_closed > self._num_windows_seen
        if self._decided_at_ns is None:
            return True
        pause_ns = DECIDE_EVERY_NS if self.was_busy == (True, True) else DECIDE_AGAIN_NS
        return now_ns - self._decided_at_ns >= pause_ns

    def is_due_now(self) -> None:
        """What the last decision rested on has changed: do not wait for the next one."""
        self._decided_at_ns = None

    def decide(self, now_ns: int, work: Work, modes: Modes, slo: Slo) -> Decision:
        self._decided_at_ns = now_ns
        self._num_windows_seen = self._window.num_closed
        return self.policy.decide(self.snapshot(now_ns, work, modes, slo), slo)

    def snapshot(self, now_ns: int, work: Work, modes: Modes, slo: Slo) -> Snapshot:
        return Snapshot(
            now_ns=now_ns,
            table=self._table,
            start=modes.start,
            current=modes.divided,
            times=self._models,
            num_decodes=work.num_decodes,
            context_tokens=work.context_tokens,
            num_joining=work.num_joining,
            joining_tokens=work.joining_tokens,
            prompts=work.prompts,
            busy_prefill_ms=work.busy_prefill_ms,
            streams=work.streams,
            prefill_duty=self.duty,
            chunk_tokens=self._settings.prefill_chunk_tokens,
            merge_tokens=self._settings.merge_tokens,
            merged_tokens=modes.shared.merged_tokens,
            observed=self._window.observed(now_ns, slo),
            windows=tuple(self._window.closed),
        )
