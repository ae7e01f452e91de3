"""What partition control tells: its status documents, and what a change would bring."""

from semipd.core.slo import Slo
from semipd.core.split import Split
from semipd.core.state.partition import EnginePartition, EnginePartitionDocument, Forecast, SloDocument
from semipd.partition.deciding import Deciding
from semipd.partition.decision_log import DecisionLog, PartitionChange
from semipd.partition.interface import Snapshot
from semipd.partition.latency_window import LatencyWindow
from semipd.partition.modes import Modes
from semipd.partition.policies.forecast import merged_outlook, prefill_steps, split_outlook
from semipd.partition.step_times.models import Models
from semipd.partition.table import SplitTable


def status(
    modes: Modes, deciding: Deciding, log: DecisionLog, models: Models, effective: Split, slo: SloDocument
) -> EnginePartition:
    """The numbers of this moment. `effective`: the split of the step launched last."""
    shared = modes.shared
    return {
        "mode": modes.mode,
        "policy": deciding.policy.name,
        "change": modes.change.to_plain(),
        "shared": {
            "split": list(modes.divided),
            "merged_tokens": shared.merged_tokens,
            "rule": shared.rule,
            "reason": shared.reason,
        },
        "effective": list(effective),
        "decision": log.outcomes[-1].to_plain() if log.outcomes else None,
        "prefill_duty": deciding.duty,
        "slo": slo,
        "prediction": {
            "ttft_error": log.ttft_error,
            "tpot_error": log.tpot_error,
            "steps": models.status(),
        },
        "switch_ms": log.switch_ms.to_plain(),
    }


def document(now: EnginePartition, table: SplitTable, log: DecisionLog) -> EnginePartitionDocument:
    """With the table, the history of changes and the log of decisions, newest last."""
    return {
        **now,
        "unit": table.unit,
        "num_units": table.num_units,
        "possible": [list(split) for split in table.splits],
        "history": [change.to_plain() for change in log.changes],
        "decisions": [outcome.to_plain() for outcome in log.outcomes],
    }


def slo_status(slo: Slo, window: LatencyWindow, now_ns: int) -> SloDocument:
    return {"targets": slo.to_wire(), "observed": window.observed(now_ns, slo).to_plain()}


def takes_effect(change: PartitionChange, both_lanes_work: bool) -> str:
    if change.mode == "off" or both_lanes_work:
        return "with the next step"
    return "when both lanes have work: until then an idle lane lends its units"


def forecast(
    change: PartitionChange, snapshot: Snapshot, deciding: Deciding, slo: Slo, step_token_budget: int
) -> Forecast:
    """What the work at hand would meet under the change."""
    s = snapshot
    if change.mode == "auto":
        decision = deciding.policy.decide(s, slo)
        return {
            "split": list(() if decision.merged_tokens else decision.split),
            "ttft_ms": decision.predicted_ttft_ms,
            "tpot_ms": decision.predicted_tpot_ms,
            "reason": decision.reason,
        }
    if change.granted is not None:
        found = split_outlook(s, slo, change.granted, prefill_steps(s.prompts, s.chunk_tokens))
    else:
        found = merged_outlook(s, slo, step_token_budget)
    return {
        "split": list(change.granted or ()),
        "ttft_ms": found.ttft_ms,
        "tpot_ms": found.tpot_ms,
        "late_prompts": found.num_late,
        "requests_lost": found.loss,
    }
