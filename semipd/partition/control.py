"""Partition control: who decides which split holds: the policy, an operator, or nobody.

    auto    the policy decides while both lanes are busy; an idle lane lends all its units
    fixed   an operator's split while both lanes are busy; may expire, back to auto
    off     no split: merged steps on the whole device, as engine.scheduler = chunked runs them; may expire

Pure: time enters as `now_ns`. The coordinator asks `choose` every turn and reports what it launches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from semipd.core.messages import SetPartition, SetSlo
from semipd.core.request import SeqId
from semipd.core.slo import DEFAULT_SLO, Slo
from semipd.core.split import PartitionMode, PolicyName, Split
from semipd.core.state.partition import (
    EngineChangeAnswer,
    EnginePartition,
    EnginePartitionDocument,
    Forecast,
    SloDocument,
)
from semipd.partition.forecast import merged_outlook, prefill_steps, split_outlook
from semipd.partition.interface import Policy, Snapshot, StepRecord, Work
from semipd.partition.journal import Change, Journal
from semipd.partition.models import Models
from semipd.partition.overrides import check_targets, describe_rounding, plan_change
from semipd.partition.paper import PaperPolicy
from semipd.partition.predictive import PredictivePolicy
from semipd.partition.table import SplitTable
from semipd.partition.window import SloWindow

DECIDE_EVERY_NS = 10_000_000
DECIDE_AGAIN_NS = 5_000_000
"""When a lane has just found work. With a long queue a decision takes some tenths of a millisecond."""

DUTY_SPAN_NS = 3e9
"""Time constant of the share in which prefill works beside decode: about a few requests' lives."""

Look = Callable[[], Work]


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """What holds at start-up; the fields are those of engine.settings.EngineSettings."""

    scheduler: str = "semipd"
    mode: PartitionMode = "auto"
    policy: PolicyName = "predictive"
    prefill_units: int = 0
    prefill_chunk_tokens: int = 512
    step_token_budget: int = 512
    merge_tokens: int = 8192
    slo: Slo = DEFAULT_SLO


class Choice(NamedTuple):
    """What the next steps shall use. `merged_tokens`: merged steps of at most so many tokens on the whole
    device; 0: the lanes run apart. `rule` says who wants it."""

    split: Split
    merged_tokens: int
    rule: str
    reason: str


class Switch(NamedTuple):
    """A step was launched under another split than the one before, `ms` after that was first wanted."""

    previous: Split
    split: Split
    rule: str
    reason: str
    ms: float


class Control:
    """Owns the mode, the targets, the step times and the logs."""

    def __init__(self, table: SplitTable, settings: ControlSettings, models: Models) -> None:
        """Only the scheduler `semipd` splits; under others the mode is off. Raises
        SemipdError(`impossible_split`)."""
        self.table = table
        self.models = models
        self.policy: Policy = PaperPolicy() if settings.policy == "paper" else PredictivePolicy()
        self.slo = settings.slo
        self.window = SloWindow()
        self.journal = Journal()
        self.mode: PartitionMode = settings.mode if settings.scheduler == "semipd" else "off"
        self._settings = settings
        self._start = self._divided = self._configured_split()
        self._lent_to_prefill = Choice(table.solo_prefill, 0, "lending", "only prefill has work")
        self._lent_to_decode = Choice(table.solo_decode, 0, "lending", "only decode has work")
        self._wanted = self._lent_to_decode
        self._wanted_since_ns = 0
        self._launched = table.solo_decode
        self._decided_at_ns: int | None = None
        self._num_windows_seen = 0
        self._turn_ns = 0
        self._busy = (False, False)
        self._duty = 1.0
        self._change = self._first_change()
        self._shared = self._enter(self._change)

    # ---- every turn ----------------------------------------------------------------------------

    def choose(self, now_ns: int, prefill_busy: bool, decode_busy: bool, look: Look) -> Choice:
        """What steps launched now shall use. `look` is called only when the policy is asked."""
        self._measure_duty(now_ns)
        busy = (prefill_busy, decode_busy)
        if busy == (True, True):
            if self.mode == "auto" and self._is_time_to_decide(now_ns):
                self._decide(now_ns, look)
            choice = self._shared
        elif self.mode == "off":
            choice = self._shared
        else:
            choice = self._lent_to_prefill if prefill_busy else self._lent_to_decode
        self._busy = busy
        self._want(choice, now_ns)
        return choice

    def hold(self, split: Split, now_ns: int) -> None:
        """In place of `choose` while a lane is without its executor."""
        self._want(Choice(split, 0, "restart", "a lane waits for its new worker"), now_ns)

    @property
    def divided(self) -> Split:
        """What holds, or last held, while both lanes have work."""
        return self._divided

    def _want(self, choice: Choice, now_ns: int) -> None:
        if choice.split != self._wanted.split:
            self._wanted_since_ns = now_ns
        self._wanted = choice

    def launched(self, split: Split, now_ns: int) -> Switch | None:
        """A step was launched under `split`, the last choice's. Returns the switch, if it is one."""
        change = self._change
        if change.effective_at_ns is None and (change.granted is None or change.granted == split):
            change.effective_at_ns = now_ns
        if split == self._launched:
            return None
        ms = (now_ns - self._wanted_since_ns) / 1e6
        self.journal.switch_ms.add(ms)
        switch = Switch(self._launched, split, self._wanted.rule, self._wanted.reason, ms)
        self._launched = split
        return switch

    @property
    def wake_at_ns(self) -> int | None:
        """When `expire` has something to do."""
        return self._change.expires_at_ns

    def expire(self, now_ns: int) -> Change | None:
        """Back to auto when an override's time is up; returns that change."""
        change = self._change
        if change.expires_at_ns is None or now_ns < change.expires_at_ns:
            return None
        why = f"the mode {change.mode} set by {change.actor} has ended"
        self._enter(Change(now_ns, "auto", "expiry", why))
        return self._change

    # ---- what happened -------------------------------------------------------------------------

    def arrived(self, now_ns: int) -> None:
        self.window.arrived(now_ns)

    def record(self, step: StepRecord, now_ns: int) -> float | None:
        """Learn from a finished step. Returns what Models.record does."""
        predicted_ms = self.models.record(step, now_ns)
        self.journal.step(step)
        if step.new_tokens:
            self.window.prefilled(step.busy_ns, step.units, self.table.num_units)
        return predicted_ms

    def first_token(self, seq: SeqId, now_ns: int, ttft_ms: float) -> None:
        self.window.first_token(now_ns, ttft_ms)
        self.journal.first_token(seq, ttft_ms)

    def finished(self, now_ns: int, tpot_ms: float | None, output_tokens: int) -> None:
        """A request ended well; `tpot_ms` is None when it had one token."""
        self.window.finished(now_ns, tpot_ms, output_tokens, self._divided, self.slo)

    # ---- operators -----------------------------------------------------------------------------

    def set(self, wish: SetPartition, now_ns: int, look: Look) -> tuple[Change, EngineChangeAnswer]:
        """Change the mode, unless it is a dry run. Returns the change and the answer.

        Raises SemipdError: `impossible_split`, `invalid_value`, `scheduler_has_one_lane`.
        """
        change = plan_change(wish, self.table, self._settings.scheduler, now_ns)
        forecast = self._forecast(change, now_ns, look)
        if not wish.dry_run:
            self._enter(change)
        answer: EngineChangeAnswer = {
            **change.to_plain(),
            "dry_run": wish.dry_run,
            "forecast": forecast,
            "takes_effect": self._when(change),
        }
        return change, answer

    def set_slo(self, wish: SetSlo, now_ns: int) -> SloDocument:
        """Change some targets, or none. Raises SemipdError(`invalid_value`); then nothing has changed."""
        check_targets(wish.targets)
        if wish.targets:
            self.slo = replace(self.slo, **wish.targets)
            self.window.forget_cached()
            self._decided_at_ns = None
            change = Change(now_ns, self.mode, wish.actor, wish.reason, effective_at_ns=now_ns)
            change.slo = self.slo.to_wire()
            self.journal.changes.append(change)
        return self.slo_status(now_ns)

    # ---- deciding ------------------------------------------------------------------------------

    def _is_time_to_decide(self, now_ns: int) -> bool:
        if self.policy.per_window:
            return self.window.num_closed > self._num_windows_seen
        if self._decided_at_ns is None:
            return True
        pause_ns = DECIDE_EVERY_NS if self._busy == (True, True) else DECIDE_AGAIN_NS
        return now_ns - self._decided_at_ns >= pause_ns

    def _decide(self, now_ns: int, look: Look) -> None:
        self._decided_at_ns = now_ns
        self._num_windows_seen = self.window.num_closed
        work = look()
        decision = self.policy.decide(self._snapshot(now_ns, work), self.slo)
        self.journal.decided(
            now_ns, decision, None if decision.watched is None else work.seqs[decision.watched]
        )
        rule = f"policy {self.policy.name}"
        if decision.merged_tokens:
            self._shared = Choice(self.table.solo_decode, decision.merged_tokens, rule, decision.reason)
            return
        self._shared = Choice(decision.split, 0, rule, decision.reason)
        self._divide(decision.split, now_ns)

    def _divide(self, split: Split, now_ns: int) -> None:
        if split != self._divided:
            self._divided = split
            self.window.restart(now_ns)

    def _enter(self, change: Change) -> Choice:
        """The change holds from the next step on."""
        if change.mode == "off":
            tokens = self._settings.step_token_budget
            self._shared = Choice(self.table.solo_decode, tokens, change.actor, change.reason)
        else:
            self._divide(change.granted or self._divided, change.at_ns)
            self._shared = Choice(self._divided, 0, change.actor, change.reason)
        self.mode = change.mode
        self._change = change
        self._decided_at_ns = None
        self.journal.changes.append(change)
        return self._shared

    def _snapshot(self, now_ns: int, work: Work) -> Snapshot:
        return Snapshot(
            now_ns=now_ns,
            table=self.table,
            start=self._start,
            current=self._divided,
            times=self.models,
            num_decodes=work.num_decodes,
            context_tokens=work.context_tokens,
            num_joining=work.num_joining,
            joining_tokens=work.joining_tokens,
            prompts=work.prompts,
            busy_prefill_ms=work.busy_prefill_ms,
            prefill_duty=self._duty,
            chunk_tokens=self._settings.prefill_chunk_tokens,
            merge_tokens=self._settings.merge_tokens,
            merged_tokens=self._shared.merged_tokens,
            observed=self.window.observed(now_ns, self.slo),
            windows=tuple(self.window.closed),
        )

    def _measure_duty(self, now_ns: int) -> None:
        prefill_was_busy, decode_was_busy = self._busy
        if decode_was_busy:
            keep = math.exp((self._turn_ns - now_ns) / DUTY_SPAN_NS)
            self._duty = keep * self._duty + (1 - keep) * prefill_was_busy
        self._turn_ns = now_ns

    def _configured_split(self) -> Split:
        if not self.table.splits:
            return self.table.solo_decode
        units = self._settings.prefill_units
        return self.table.nearest(prefill_units=units) if units else self.table.half()

    def _first_change(self) -> Change:
        units = self._settings.prefill_units
        requested = {"prefill_units": units} if units and self.table.splits else {}
        rounding = describe_rounding(requested, self._start, self.table)
        granted = self._start if self.mode == "fixed" else None
        return Change(0, self.mode, "configuration", "start", requested, granted, rounding, None, 0)

    # ---- answers -------------------------------------------------------------------------------

    def _when(self, change: Change) -> str:
        if change.mode == "off" or self._busy == (True, True):
            return "with the next step"
        return "when both lanes have work: until then an idle lane lends its units"

    def _forecast(self, change: Change, now_ns: int, look: Look) -> Forecast | None:
        """What the work at hand would meet; None while step times are not known."""
        if not self.models.confident:
            return None
        s = self._snapshot(now_ns, look())
        if change.mode == "auto":
            decision = self.policy.decide(s, self.slo)
            return {
                "split": list(() if decision.merged_tokens else decision.split),
                "ttft_ms": decision.predicted_ttft_ms,
                "tpot_ms": decision.predicted_tpot_ms,
                "reason": decision.reason,
            }
        if change.granted is not None:
            found = split_outlook(s, self.slo, change.granted, prefill_steps(s.prompts, s.chunk_tokens))
        else:
            found = merged_outlook(s, self.slo, self._settings.step_token_budget)
        return {
            "split": list(change.granted or ()),
            "ttft_ms": found.ttft_ms,
            "tpot_ms": found.tpot_ms,
            "late_prompts": found.num_late,
            "requests_lost": found.loss,
        }

    def slo_status(self, now_ns: int) -> SloDocument:
        observed = self.window.observed(now_ns, self.slo)
        return {"targets": self.slo.to_wire(), "observed": observed.to_plain()}

    def status(self, now_ns: int) -> EnginePartition:
        """The numbers of this moment."""
        journal, change = self.journal, self._change
        return {
            "mode": self.mode,
            "policy": self.policy.name,
            "change": change.to_plain(),
            "shared": {
                "split": list(self._divided),
                "merged_tokens": self._shared.merged_tokens,
                "rule": self._shared.rule,
                "reason": self._shared.reason,
            },
            "effective": list(self._launched),
            "decision": journal.outcomes[-1].to_plain() if journal.outcomes else None,
            "prefill_duty": self._duty,
            "slo": self.slo_status(now_ns),
            "prediction": {
                "ttft_error": journal.ttft_error,
                "tpot_error": journal.tpot_error,
                "steps": self.models.status(),
            },
            "switch_ms": journal.switch_ms.to_plain(),
        }

    def full_status(self, now_ns: int) -> EnginePartitionDocument:
        """With the table, the history of changes and the log of decisions, newest last."""
        return {
            **self.status(now_ns),
            "unit": self.table.unit,
            "num_units": self.table.num_units,
            "possible": [list(split) for split in self.table.splits],
            "history": [change.to_plain() for change in self.journal.changes],
            "decisions": [outcome.to_plain() for outcome in self.journal.outcomes],
        }
