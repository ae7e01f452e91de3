"""Events that belong to no request."""

from semipd.core.events import (
    PARTITION_CHANGED,
    SLO_CHANGED,
    SPLIT_CHANGED,
    WORKER_DIED,
    WORKER_RESTARTED,
    Told,
)
from semipd.core.split import LaneName
from semipd.core.state.partition import SloTargets, TargetsDocument
from semipd.devices.contract import WorkerDeath, WorkerNews
from semipd.partition.control import Switch
from semipd.partition.decision_log import PartitionChange


def partition_changed(change: PartitionChange) -> Told:
    expires_s = 0.0 if change.expires_at_ns is None else (change.expires_at_ns - change.at_ns) / 1e9
    return PARTITION_CHANGED(
        {
            "mode": change.mode,
            "actor": change.actor,
            "reason": change.reason,
            "granted": list(change.granted or ()),
            "expires_s": expires_s,
        }
    )


def split_changed(switch: Switch) -> Told:
    return SPLIT_CHANGED(
        {
            "from": list(switch.previous),
            "to": list(switch.split),
            "rule": switch.rule,
            "reason": switch.reason,
            "switch_ms": switch.ms,
        }
    )


def slo_changed(actor: str, reason: str, service_class: str, targets: TargetsDocument | SloTargets) -> Told:
    return SLO_CHANGED({"actor": actor, "reason": reason, "service_class": service_class, **targets})


def worker_changed(lane: LaneName, news: WorkerNews) -> Told:
    if isinstance(news, WorkerDeath):
        return WORKER_DIED(
            {
                "lane": lane,
                "pid": news.pid,
                "how": news.how,
                "signal": news.signal,
                "step_id": news.step_id or 0,
            }
        )
    return WORKER_RESTARTED({"lane": lane, "pid": news.pid, "seconds": news.seconds})
