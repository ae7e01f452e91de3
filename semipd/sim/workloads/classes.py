"""Service classes of a simulated workload: who belongs to which, and what each is measured by."""

import random
from dataclasses import dataclass

from semipd.core.slo import DEFAULT_CLASS, NO_TARGETS, Targets
from semipd.sim.workloads.traces import Arrival, Trace


@dataclass(frozen=True, slots=True)
class ServiceClass:
    """`share`: of the requests to which the trace gives no class."""

    name: str
    targets: Targets
    share: float = 0.0


def class_of(classes: tuple[ServiceClass, ...], arrival: Arrival, seed: int) -> ServiceClass:
    """The trace's class of that name, or one drawn by the shares: the same at every rate and policy. The
    shares must add up to 1 where they are needed."""
    name = arrival.row.service_class
    for known in classes:
        if name == known.name:
            return known
    assert not name, f"the trace has a class {name!r}, the case has none of that name"
    drawn = random.Random(f"class {seed} {arrival.idx}").random()
    for known in classes:
        drawn -= known.share
        if drawn < 0.0:
            return known
    return classes[-1]


def one_class(targets: Targets) -> tuple[ServiceClass, ...]:
    """Everybody is measured by the same."""
    return (ServiceClass(DEFAULT_CLASS, targets, 1.0),)


def classes_of(trace: Trace, slo: Targets | None) -> tuple[ServiceClass, ...]:
    """Those of the trace's requests. `slo`: in place of the targets of every class that has some; of all, if
    none has. None: the trace's own targets hold."""
    if not trace.classes:
        return one_class(slo or NO_TARGETS)
    used = {row.service_class for row in trace.rows}
    found = {name: targets for name, targets in trace.classes.items() if name in used}
    if slo is not None:
        targeted = {name for name, targets in found.items() if targets != NO_TARGETS} or used
        found |= dict.fromkeys(targeted, slo)
    return tuple(ServiceClass(name, targets) for name, targets in found.items())
