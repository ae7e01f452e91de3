"""The demo's engine: a coordinator in this process, with the life that an engine's process has."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar, cast

from semipd import __version__
from semipd.config.sections import SupervisionConfig
from semipd.core.errors import SemipdError
from semipd.core.messages import Cancel, EngineQuestion, Inbound, Outbound, Status, Submit
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings
from semipd.core.state.daemon import StartPhase
from semipd.core.state.device import DeviceFacts
from semipd.core.state.engine import EngineStatus
from semipd.daemon.engine.backoff import Restarts
from semipd.daemon.engine.life import STATUS_LIMIT_S, EngineLife, Outage
from semipd.daemon.engine.live_settings import UNASKED
from semipd.daemon.engine.ready import EngineReady, PhaseTime, refusal
from semipd.daemon.engine.supervisor import Observer
from semipd.engine.coordinator import Coordinator
from semipd.engine.status import engine_status
from semipd.partition.step_times.models import Models
from semipd.sim.demo.device import DemoDevice, Sensors
from semipd.sim.demo.timeline import Timeline

A = TypeVar("A")

PHASES = (
    ("starting CUDA", 1.2, 60.0),
    ("loading weights", 4.6, 120.0),
    ("dividing the SMs", 0.4, 30.0),
    ("capturing graphs", 2.4, 300.0),
    ("warming up", 0.9, 120.0),
)
"""Name, seconds, limit."""

WARM_FACTOR = 0.6
"""Of these times, when another engine was there before: the weights are in the page cache."""

ASKED = 1
"""Nonce of a question; repeated settings have UNASKED."""

FAILED_START_S = 1.4
"""After a death the first start fails so soon, while memory of the dead engine is still taken."""

DEATH = SemipdError(
    "engine_crashed",
    "The engine ended on signal SIGKILL; the kernel's log says whether memory ran out.",
    "Send the request again.",
)
NO_MEMORY = SemipdError(
    "engine_start_failed",
    "The engine ended because of insufficient_memory: 9.3 GiB less than needed are free.",
    "Send the request again.",
)


class DemoEngine(EngineLife):
    """Started at once. Set `observer` and `on_ready` before time passes."""

    observer: Observer
    on_ready: Callable[[EngineReady], None]
    """Called for every engine, the first one included."""

    def __init__(
        self,
        settings: EngineSettings,
        supervision: SupervisionConfig,
        timeline: Timeline,
        sensors: Sensors,
    ) -> None:
        super().__init__(supervision, timeline.clock)
        self.coordinator: Coordinator | None = None
        self.device: DemoDevice | None = None
        self.wake_at_ns: int | None = None
        self._settings = settings
        self._timeline = timeline
        self._sensors = sensors
        self._restarts = Restarts(supervision)
        self._models: Models | None = None
        self._inbox: list[Inbound] = []
        self._started_s = self._ready_since_s = timeline.seconds
        self._start()

    @property
    def can_submit(self) -> bool:
        return self.coordinator is not None

    def submit(self, request: Request) -> None:
        self._send(Submit(request))

    def cancel(self, seq: SeqId) -> None:
        if self.coordinator is not None:
            self._send(Cancel(seq))

    async def ask(self, question: Callable[[int], EngineQuestion[A]], limit_s: float = STATUS_LIMIT_S) -> A:
        return self.answer(question)

    def answer(self, question: Callable[[int], EngineQuestion[A]]) -> A:
        """As `ask`, at once."""
        self.check_ready()
        self._inbox.append(cast(Inbound, question(ASKED)))
        status = next(m for m in self.tick() if isinstance(m, Status) and m.nonce == ASKED)
        if status.refused is not None:
            raise refusal(status.refused)
        self.live_settings.granted(question(UNASKED))
        return cast(A, status.data)

    @property
    def timeline(self) -> list[PhaseTime]:
        return [PhaseTime(name, seconds * self._factor) for name, seconds, _ in PHASES]

    def status_now(self) -> EngineStatus | None:
        """Without a turn of the coordinator's: looking changes nothing. None: there is no engine."""
        if self.coordinator is None:
            return None
        return engine_status(self.coordinator, self._timeline.now_ns)

    def tick(self) -> list[Outbound]:
        """Turns of the coordinator until it has read everything; what it has said."""
        said: list[Outbound] = []
        while self.coordinator is not None:
            inbox, self._inbox = self._inbox, []
            turn = self.coordinator.tick(self._timeline.now_ns, inbox)
            self.wake_at_ns = turn.wake_at_ns
            said += turn.outbox
            for message in turn.outbox:
                self.observer.on_message(message)
            if not self._inbox:
                break
        return said

    def die(self) -> None:
        """Everything is lost but what the daemon knows."""
        assert self.coordinator is not None, "the engine is dead already"
        self.coordinator = self.device = self.wake_at_ns = None
        self._inbox.clear()
        self.state, self.outage = "restarting", Outage(DEATH, self._clock_s())
        self.observer.engine_died(DEATH)
        self._await_start(self._timeline.seconds - self._ready_since_s, fruitful=True)

    def _send(self, message: Inbound) -> None:
        self._inbox.append(message)
        self.wake_at_ns = self._timeline.now_ns

    def _await_start(self, served_s: float, *, fruitful: bool) -> None:
        delay_s = self._restarts.died(served_s, fruitful=fruitful)
        assert delay_s is not None, "the demo's engine always comes back"
        assert self.outage is not None, "an engine is replaced that is not dead"
        self.outage.attempt += 1
        self.outage.next_start_s = self._clock_s() + delay_s
        self._timeline.after(delay_s, self._start)

    def _start(self) -> None:
        self._started_s = self._timeline.seconds
        if self.outage is not None and self.outage.attempt == 1:
            self._timeline.after(FAILED_START_S, self._fail_to_start)
        else:
            self._timeline.after(sum(phase.seconds for phase in self.timeline), self._become_ready)

    def _fail_to_start(self) -> None:
        assert self.outage is not None
        self.outage.why = NO_MEMORY
        self._await_start(0.0, fruitful=False)

    def _become_ready(self) -> None:
        self.device = device = DemoDevice.open(self._settings)
        device.sensors = self._sensors
        self.coordinator = Coordinator(device, self._settings, self._models)
        self._models = self.coordinator.control.models
        facts = cast(DeviceFacts, asdict(device.info))
        self.ready = EngineReady(facts, self.coordinator.policy, (), __version__)
        self.state, self._ready_since_s = "ready", self._timeline.seconds
        self.on_ready(self.ready)
        for setting in self.live_settings.to_repeat():
            self._send(setting)
        if self.outage is not None:
            outage_s, self.outage = self._clock_s() - self.outage.since_s, None
            self.num_restarts += 1
            self.observer.engine_ready(self.ready, outage_s)

    @property
    def _factor(self) -> float:
        return WARM_FACTOR if self.ready is not None else 1.0

    @property
    def pid(self) -> int | None:
        return None

    def _phase(self) -> StartPhase | None:
        if self.state == "ready" or self._backoff_left_s():
            return None
        seconds = self._timeline.seconds - self._started_s
        for name, takes_s, limit_s in PHASES[:-1]:
            if seconds < takes_s * self._factor:
                return {"name": name, "seconds": seconds, "limit_s": limit_s}
            seconds -= takes_s * self._factor
        name, _, limit_s = PHASES[-1]
        return {"name": name, "seconds": seconds, "limit_s": limit_s}
