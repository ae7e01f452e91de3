"""Service classes of a simulated workload: who belongs to which, and what each is measured by."""

import random
from dataclasses import dataclass

from semipd.core.slo import DEFAULT_CLASS, Targets
from semipd.sim.workloads.traces import Arrival


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
