"""Partition control: which split the next steps use, and what becomes known of it.

Pure: time enters as `now_ns`. The coordinator asks `choose` every turn and reports what it launches.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from semipd.core.messages import SetPartition, SetSlo
from semipd.core.request import SeqId
from semipd.core.settings import EngineSettings
from semipd.core.split import PartitionMode, Split
from semipd.core.state.partition import (
    EngineChangeAnswer,
    EnginePartition,
    EnginePartitionDocument,
    Forecast,
    SloDocument,
)
from semipd.partition import report
from semipd.partition.deciding import Deciding
from semipd.partition.decision_log import DecisionLog, PartitionChange
from semipd.partition.interface import StepRecord, Work
from semipd.partition.latency_window import LatencyWindow
from semipd.partition.modes import Modes, SplitChoice
from semipd.partition.overrides import check_targets
from semipd.partition.step_times.models import Models
from semipd.partition.table import SplitTable

GetWork = Callable[[], Work]


class Switch(NamedTuple):
    """A step was launched under another split than the one before, `ms` after that was first wanted."""

    previous: Split
    split: Split
    rule: str
    reason: str
    ms: float


class Control:
    """Ties the modes, the policy, the step times and the logs together."""

    def __init__(self, table: SplitTable, settings: EngineSettings, models: Models) -> None:
        """Raises SemipdError(`impossible_split`)."""
        self.models = models
        self.slo = settings.slo
        self.window = LatencyWindow()
        self.log = DecisionLog()
        self._table = table
        self._settings = settings
        self._modes = Modes(table, settings)
        self._deciding = Deciding(table, settings, models, self.window)
        self._wanted = SplitChoice(table.solo_decode, 0, "lending", "only decode has work")
        self._wanted_since_ns = 0
        self._launched = table.solo_decode
        self.log.changes.append(self._modes.change)

    @property
    def mode(self) -> PartitionMode:
        return self._modes.mode

    @property
    def divided(self) -> Split:
        """What holds, or last held, while both lanes have work."""
        return self._modes.divided

    @property
    def shared(self) -> SplitChoice:
        """What steps use while both lanes have work."""
        return self._modes.shared

    @property
    def wake_at_ns(self) -> int | None:
        """When `expire` has something to do."""
        return self._modes.change.expires_at_ns

    def choose(self, now_ns: int, prefill_busy: bool, decode_busy: bool, get_work: GetWork) -> SplitChoice:
        """What steps launched now shall use. `get_work` is called only when the policy is asked."""
        self._deciding.measure_duty(now_ns)
        if prefill_busy and decode_busy and self.mode == "auto" and self._deciding.is_due(now_ns):
            self._decide(now_ns, get_work())
        self._deciding.was_busy = (prefill_busy, decode_busy)
        choice = self._modes.choose(prefill_busy, decode_busy)
        self._want(choice, now_ns)
        return choice

    def hold(self, split: Split, now_ns: int) -> None:
        """In place of `choose` while a lane is without its executor."""
        self._want(SplitChoice(split, 0, "restart", "a lane waits for its new worker"), now_ns)

    def launched(self, split: Split, now_ns: int) -> Switch | None:
        """A step was launched under `split`, the last choice's. Returns the switch, if it is one."""
        change = self._modes.change
        if change.effective_at_ns is None and (change.granted is None or change.granted == split):
            change.effective_at_ns = now_ns
        if split == self._launched:
            return None
        ms = (now_ns - self._wanted_since_ns) / 1e6
        self.log.switch_ms.add(ms)
        switch = Switch(self._launched, split, self._wanted.rule, self._wanted.reason, ms)
        self._launched = split
        return switch

    def expire(self, now_ns: int) -> PartitionChange | None:
        """Back to auto when an override's time is up; returns that change."""
        change = self._modes.expired(now_ns)
        if change is not None:
            self._enter(change)
        return change

    def arrived(self, now_ns: int) -> None:
        self.window.arrived(now_ns)

    def record(self, step: StepRecord, now_ns: int) -> float | None:
        """Learn from a finished step. Returns what Models.record does."""
        predicted_ms = self.models.record(step, now_ns)
        self.log.step(step)
        if step.new_tokens:
            self.window.prefilled(step.busy_ns, step.units, self._table.num_units)
        return predicted_ms

    def first_token(self, seq: SeqId, now_ns: int, ttft_ms: float) -> None:
        self.window.first_token(now_ns, ttft_ms)
        self.log.first_token(seq, ttft_ms)

    def finished(self, now_ns: int, tpot_ms: float | None, output_tokens: int) -> None:
        """A request ended well; `tpot_ms` is None when it had one token."""
        self.window.finished(now_ns, tpot_ms, output_tokens, self.divided, self.slo)

    def set(
        self, request: SetPartition, now_ns: int, get_work: GetWork
    ) -> tuple[PartitionChange, EngineChangeAnswer]:
        """Change the mode, unless it is a dry run. Returns the change and the answer; its `forecast` is None
        while step times are not known.

        Raises SemipdError: `impossible_split`, `invalid_value`, `scheduler_has_one_lane`.
        """
        change = self._modes.plan(request, now_ns)
        forecast = self._forecast(change, now_ns, get_work()) if self.models.confident else None
        if not request.dry_run:
            self._enter(change)
        when = report.takes_effect(change, self._deciding.was_busy == (True, True))
        return change, {
            **change.to_plain(),
            "dry_run": request.dry_run,
            "forecast": forecast,
            "takes_effect": when,
        }

    def set_slo(self, request: SetSlo, now_ns: int) -> SloDocument:
        """Change some targets, or none. Raises SemipdError(`invalid_value`); then nothing has changed."""
        check_targets(request.targets)
        if request.targets:
            self.slo = replace(self.slo, **request.targets)
            self.window.forget_cached()
            self._deciding.is_due_now()
            change = PartitionChange(now_ns, self.mode, request.actor, request.reason, effective_at_ns=now_ns)
            change.slo = self.slo.to_wire()
            self.log.changes.append(change)
        return report.slo_status(self.slo, self.window, now_ns)

    def status(self, now_ns: int) -> EnginePartition:
        """The numbers of this moment."""
        slo = report.slo_status(self.slo, self.window, now_ns)
        return report.status(self._modes, self._deciding, self.log, self.models, self._launched, slo)

    def full_status(self, now_ns: int) -> EnginePartitionDocument:
        """With the table, the history of changes and the log of decisions, newest last."""
        return report.document(self.status(now_ns), self._table, self.log)

    def _decide(self, now_ns: int, work: Work) -> None:
        before = self.divided
        decision = self._deciding.decide(now_ns, work, self._modes, self.slo)
        watched = None if decision.watched is None else work.seqs[decision.watched]
        self.log.decided(now_ns, decision, watched)
        self._modes.follow(decision, f"policy {self._deciding.policy.name}")
        self._note_division(before, now_ns)

    def _enter(self, change: PartitionChange) -> None:
        before = self.divided
        self._modes.enter(change)
        self._deciding.is_due_now()
        self.log.changes.append(change)
        self._note_division(before, change.at_ns)

    def _note_division(self, before: Split, now_ns: int) -> None:
        if self.divided != before:
            self.window.restart(now_ns)

    def _want(self, choice: SplitChoice, now_ns: int) -> None:
        if choice.split != self._wanted.split:
            self._wanted_since_ns = now_ns
        self._wanted = choice

    def _forecast(self, change: PartitionChange, now_ns: int, work: Work) -> Forecast:
        snapshot = self._deciding.snapshot(now_ns, work, self._modes, self.slo)
        return report.forecast(change, snapshot, self._deciding, self.slo, self._settings.step_token_budget)
