"""Who decides which split holds while both lanes have work: the policy, an operator, or nobody.

    auto    the policy decides
    fixed   an operator's split; may expire, back to auto
    off     no split: merged steps on the whole device, as engine.scheduler = chunked runs them; may expire

In auto and fixed an idle lane lends all its units to the other.
"""

from typing import NamedTuple

from semipd.core.messages import SetPartition
from semipd.core.settings import EngineSettings
from semipd.core.split import PartitionMode, Split
from semipd.partition.decision_log import PartitionChange
from semipd.partition.interface import Decision
from semipd.partition.overrides import describe_rounding, plan_change
from semipd.partition.table import SplitTable


class SplitChoice(NamedTuple):
    """What the next steps shall use. `merged_tokens`: merged steps of at most so many tokens on the whole
    device; 0: the lanes run apart. `rule` says who wants it."""

    split: Split
    merged_tokens: int
    rule: str
    reason: str


class Modes:
    """Attributes:
    change: the change in force, which set the mode.
    shared: what steps use while both lanes have work.
    divided: the split that holds, or last held, while both lanes have work.
    start: the configured split.
    """

    def __init__(self, table: SplitTable, settings: EngineSettings) -> None:
        """Only the scheduler `semipd` splits; under others the mode is off. Raises
        SemipdError(`impossible_split`)."""
        self._table = table
        self._settings = settings
        self._lent_to_prefill = SplitChoice(table.solo_prefill, 0, "lending", "only prefill has work")
        self._lent_to_decode = SplitChoice(table.solo_decode, 0, "lending", "only decode has work")
        self.start = self.divided = self._configured_split()
        self.enter(self._first_change())

    def enter(self, change: PartitionChange) -> None:
        """The change holds from the next step on."""
        self.mode: PartitionMode = change.mode
        self.change = change
        if change.mode == "off":
            tokens = self._settings.step_token_budget
            self.shared = SplitChoice(self._table.solo_decode, tokens, change.actor, change.reason)
        else:
            self.divided = change.granted or self.divided
            self.shared = SplitChoice(self.divided, 0, change.actor, change.reason)

    def follow(self, decision: Decision, rule: str) -> None:
        """What a policy has decided holds from the next step on."""
        if decision.merged_tokens:
            self.shared = SplitChoice(self._table.solo_decode, decision.merged_tokens, rule, decision.reason)
        else:
            self.divided = decision.split
            self.shared = SplitChoice(decision.split, 0, rule, decision.reason)

    def choose(self, prefill_busy: bool, decode_busy: bool) -> SplitChoice:
        if self.mode == "off" or (prefill_busy and decode_busy):
            return self.shared
        return self._lent_to_prefill if prefill_busy else self._lent_to_decode

    def plan(self, request: SetPartition, now_ns: int) -> PartitionChange:
        """See plan_change."""
        return plan_change(request, self._table, self._settings.scheduler, now_ns)

    def expired(self, now_ns: int) -> PartitionChange | None:
        """The change back to auto, when an override's time is up."""
        change = self.change
        if change.expires_at_ns is None or now_ns < change.expires_at_ns:
            return None
        return PartitionChange(
            now_ns, "auto", "expiry", f"the mode {change.mode} set by {change.actor} has ended"
        )

    def _configured_split(self) -> Split:
        if not self._table.splits:
            return self._table.solo_decode
        units = self._settings.prefill_units
        return self._table.nearest(prefill_units=units) if units else self._table.half()

    def _first_change(self) -> PartitionChange:
        settings, units = self._settings, self._settings.prefill_units
        mode: PartitionMode = settings.partition_mode if settings.scheduler == "semipd" else "off"
        requested = {"prefill_units": units} if units and self._table.splits else {}
        rounding = describe_rounding(requested, self.start, self._table)
        granted = self.start if mode == "fixed" else None
        return PartitionChange(0, mode, "configuration", "start", requested, granted, rounding, None, 0)
