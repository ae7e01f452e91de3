"""A daemon without its servers: the engine, the requests, what has become of them, and who may still come."""

from collections.abc import Callable
from dataclasses import asdict, fields

from semipd.config.config import Config
from semipd.core.events import SLO_CHANGED, SPLIT_CHANGED, Event
from semipd.core.request import CancelResult
from semipd.core.slo import DEFAULT_CLASS, TARGET_BOUNDS, Slo, Targets
from semipd.core.state.daemon import LastSplitChange
from semipd.daemon.access.callers import OPERATOR, Caller
from semipd.daemon.access.classes import Service, ServiceClasses
from semipd.daemon.engine.life import EngineLife
from semipd.daemon.history.slo import ServiceLevels
from semipd.daemon.history.vitals import Vitals
from semipd.daemon.requests.admission import Admission, Reservation
from semipd.daemon.requests.drain import Drain
from semipd.daemon.requests.table import RequestTable
from semipd.daemon.web.status_codes import is_clients_fault
from semipd.system.clock import SYSTEM_CLOCK, Clock


class DaemonState:
    """What state frames, metrics and answers to operators are made of. `shut_down(why)` is called at the end
    of a drain that stops the daemon."""

    def __init__(
        self,
        model_name: str,
        supervisor: EngineLife,
        table: RequestTable,
        config: Config,
        shut_down: Callable[[str], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.model_name = model_name
        self.supervisor = supervisor
        self.table = table
        self.clock = clock
        self.history = table.history
        self.admission = Admission(config.admission, self.history, clock.monotonic_s)
        self.classes = ServiceClasses(config)
        self.drain = Drain(
            table, config.drain.limit_s, on_drained=lambda: shut_down(self.drain.why), clock=clock
        )
        self.vitals = Vitals(supervisor, self.history, clock)
        slo = Slo(**asdict(config.slo))
        self.slo = ServiceLevels(slo, self.classes.names, is_clients_fault, clock.monotonic_ns)
        self.history.itl_percentile = slo.itl_percentile
        self.history.on_finished.append(self.slo.finished)
        self.history.on_refused.append(self.slo.refused)
        self.history.on_slo_changed.append(self._slo_changed)
        self._started_s = clock.monotonic_s()

    @property
    def uptime_s(self) -> float:
        return self.clock.monotonic_s() - self._started_s

    def last_split_change(self) -> LastSplitChange | None:
        event = self.history.last_split_change
        if event is None:
            return None
        return {"at_s": self.clock.wall_s(event.at_ns), **SPLIT_CHANGED.of(event)}

    def cancel_named(self, request_id: str, caller: Caller = OPERATOR) -> CancelResult:
        """End one of the caller's requests by its public id; an operator ends anybody's."""
        if self.table.cancel_named(request_id, caller):
            return "cancelled"
        return "already_finished" if self.history.named(request_id, caller) else "not_found"

    def check_open(self) -> None:
        """Whether a request for tokens can be let in at all; nothing needs to be known of it. Raises
        SemipdError: `draining`, `overloaded`."""
        self.drain.check()
        self.admission.check_room()

    def enter(self, service: Service, num_sequences: int = 1, num_tokens: int = 0) -> Reservation:
        """A place in the waiting queue, held until all of the request has been handed to the engine. Raises
        what `check_open` and Admission.enter do."""
        self.drain.check()
        return self.admission.enter(service.priority, num_sequences, num_tokens)

    def _slo_changed(self, event: Event) -> None:
        """In the engine they hold already; here for requests to come, and for those that are judged."""
        told, name = event.data, SLO_CHANGED.of(event)["service_class"]
        if name == DEFAULT_CLASS:
            self.slo.slo = Slo(**{field.name: told[field.name] for field in fields(Slo)})
            self.history.itl_percentile = self.slo.slo.itl_percentile
        before, after = self.classes.targets(name), Targets.of({key: told[key] for key in TARGET_BOUNDS})
        self.classes.retarget(name, after)
        self.table.retarget(name, before, after)
        self.slo.retarget(name, before, after)
