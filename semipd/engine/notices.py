"""Events that belong to no request."""

from semipd.devices.contract import LaneName, WorkerDied, WorkerNews
from semipd.partition.journal import Change
from semipd.sched.outbox import Outbox


def partition_event(change: Change, out: Outbox) -> None:
    expires_s = 0.0 if change.expires_at_ns is None else (change.expires_at_ns - change.at_ns) / 1e9
    out.event(
        "partition_changed",
        None,
        mode=change.mode,
        actor=change.actor,
        reason=change.reason,
        granted=list(change.granted or ()),
        expires_s=expires_s,
    )


def worker_event(lane: LaneName, news: WorkerNews, out: Outbox) -> None:
    if isinstance(news, WorkerDied):
        facts = {"how": news.how, "signal": news.signal, "step_id": news.step_id or 0}
        out.event("worker_died", None, lane=lane, pid=news.pid, **facts)
    else:
        out.event("worker_restarted", None, lane=lane, pid=news.pid, seconds=news.seconds)
