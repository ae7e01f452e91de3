"""What the daemon hands to the engine when a request is admitted."""

from dataclasses import dataclass, replace
from typing import Literal, NewType

from semipd.core.sampling import SamplingParams
from semipd.core.slo import DEFAULT_CLASS, NO_TARGETS, Targets

SeqId = NewType("SeqId", int)
"""Number of a request, unique in a daemon's life: small enough to travel in every step."""

RequestStage = Literal["waiting", "prefilling", "decoding", "finished"]
Priority = Literal["interactive", "batch"]
CancelResult = Literal["cancelled", "already_finished", "not_found"]


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate.

    Attributes:
        request_id: public id, for logs and events; `seq` is what plans and steps carry.
        prompt: token ids, at least one.
        emitted: tokens an earlier engine already produced for this request (resume); never repeated.
        namespace: root of the prefix index: requests in different namespaces never share blocks.
        arrival_ns: CLOCK_MONOTONIC at the daemon; kept over preemption and resume.
        service_class: name for reports; what holds is in `targets`.
        targets: what it is measured by, resolved by the daemon.
        accept_late: it waits in the background where another would be refused for being late.
    """

    seq: SeqId
    request_id: str
    prompt: list[int]
    params: SamplingParams
    arrival_ns: int
    namespace: str = ""
    emitted: tuple[int, ...] = ()
    service_class: str = DEFAULT_CLASS
    targets: Targets = NO_TARGETS
    accept_late: bool = False

    def retargeted(self, service_class: str, before: Targets, after: Targets) -> "Request":
        """The same, with the new targets of its class unless it has brought its own."""
        follows = self.service_class == service_class and self.targets == before
        return replace(self, targets=after) if follows else self
