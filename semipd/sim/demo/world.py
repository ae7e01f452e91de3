"""A whole daemon in one process, over a simulated GPU, and what happens to it in a day."""

import random
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

from semipd.config.classes import ClassConfig
from semipd.config.config import Config
from semipd.config.sections import (
    AdmissionConfig,
    EngineConfig,
    KvConfig,
    LimitsConfig,
    ServedModelConfig,
    SloConfig,
    SupervisionConfig,
)
from semipd.core.messages import SetPartition
from semipd.core.slo import BATCH_CLASS
from semipd.core.state.requests import RequestRow
from semipd.daemon.engine.ready import EngineReady
from semipd.daemon.history.vitals import SAMPLE_INTERVAL_S
from semipd.daemon.requests.drain import POLL_S
from semipd.daemon.requests.rules import RequestRules
from semipd.daemon.requests.table import RequestTable
from semipd.daemon.state.daemon_state import DaemonState
from semipd.daemon.state.snapshot import state_frame
from semipd.sim.demo.clients import Clients
from semipd.sim.demo.device import Sensors
from semipd.sim.demo.engine import DemoEngine
from semipd.sim.demo.load import DOCUMENTS, DRAIN_FOR_S, DemoLoad, Incident
from semipd.sim.demo.timeline import Timeline
from semipd.sim.simulator import MAX_TICKS_AT_ONE_TIME
from semipd.wire.client_protocol import StateFrame
from semipd.wire.frames import FrameReader, encode_frame

if TYPE_CHECKING:
    from semipd.sim.demo.operator import DemoOperator

D = TypeVar("D", bound=Mapping[str, Any])

CONFIG = Config(
    model=ServedModelConfig(
        name="llama-3.1-70b-w8", served_model_name="Llama-3.1-70B-Instruct", max_model_len=32_768
    ),
    engine=EngineConfig(device="sim:h200", max_num_seqs=64, prefill_chunk_tokens=1024),
    kv=KvConfig(bytes=40 * 2**30),
    slo=SloConfig(ttft_ms=1500.0, tpot_ms=50.0),
    classes={
        BATCH_CLASS: ClassConfig(),
        DOCUMENTS: ClassConfig(ttft_ms=1500.0, ttft_ms_per_1k_tokens=300.0, tpot_ms=60.0, itl_ms=150.0),
    },
    admission=AdmissionConfig(max_waiting_requests=96, max_waiting_tokens=250_000),
    limits=LimitsConfig(max_unread_tokens=128),
    supervision=SupervisionConfig(backoff_s=1.0),
)

LOAD_TURN_S = 0.1
SLOW_STEP_NS = 1_300_000_000
MAX_EVENTS = 4096
DRAINER, DRAIN_LIMIT_S = "deploy (pid 31204)", 60.0
COLLEAGUE = "ann (pid 4121)"


class DemoWorld:
    """Equal seeds and equal times give equal frames, however often anybody looks, as long as no operator
    acts. `began_s`: Unix time."""

    def __init__(self, seed: int = 7, began_s: float = 1_760_000_000.0) -> None:
        self._timeline = timeline = Timeline(began_s)
        self._noise = random.Random(seed)
        settings = CONFIG.engine_settings("")
        self._sensors = Sensors(random.Random(seed + 1))
        self._engine = DemoEngine(settings, CONFIG.supervision, timeline, self._sensors)
        self._engine.observer = table = RequestTable(self._engine, timeline.clock)
        self._engine.on_ready = self._engine_is_ready
        self.state = DaemonState(
            CONFIG.served_model_name, self._engine, table, CONFIG, lambda _why: None, timeline.clock
        )
        rules = RequestRules.of(CONFIG)
        self._clients = Clients(self.state, rules, timeline, random.Random(seed + 2))
        self._load = DemoLoad(random.Random(seed + 3))
        self._last_event = 0
        self._busy_ns = 0
        timeline.every(LOAD_TURN_S, self._plan_load)
        timeline.every(SAMPLE_INTERVAL_S, self._sample)
        timeline.every(POLL_S, self.state.drain.turn)

    @property
    def at_s(self) -> float:
        """Unix time."""
        return self.state.clock.time_s()

    @cached_property
    def operator(self) -> "DemoOperator":
        """Imported when somebody acts: the daemon's schemas and routes take half a second."""
        from semipd.sim.demo.operator import DemoOperator

        return DemoOperator(self)

    def advance(self, seconds: float) -> None:
        """Events are worked on one after the other; whoever looks finds everything of that time done."""
        timeline, engine = self._timeline, self._engine
        end_ns = timeline.now_ns + round(seconds * 1e9)
        while True:
            due = [at_ns for at_ns in (engine.wake_at_ns, timeline.next_ns) if at_ns is not None]
            at_ns = min(due)
            if at_ns > end_ns:
                break
            timeline.move_to(max(at_ns, timeline.now_ns))
            self.settle()
        timeline.move_to(end_ns)

    def settle(self) -> None:
        """Let the engine and the clients do what they can do now."""
        engine, now_ns = self._engine, self._timeline.now_ns
        for _ in range(MAX_TICKS_AT_ONE_TIME):
            if engine.wake_at_ns is not None and engine.wake_at_ns <= now_ns:
                engine.tick()
            self._clients.read()
            if engine.wake_at_ns is None or engine.wake_at_ns > now_ns:
                return
        raise AssertionError(f"time stands still at {now_ns} ns")

    def frame(self) -> StateFrame:
        """Of now, with the events since the one before."""
        state, journal = self.state, self.state.history.journal
        entries, lost, self._last_event = journal.read(self._last_event, MAX_EVENTS)
        events = [journal.to_wire(entry) for entry in entries]
        frame = StateFrame(state_frame(state, self._engine.status_now()), events, lost)
        return StateFrame.from_wire(over_the_wire(frame.to_wire(1)))

    def rows(self, limit: int) -> list[RequestRow]:
        """Live and recent requests, as the daemon lists them."""
        return self.state.history.all_to_wire(self.state.history.records(limit=limit))

    def _engine_is_ready(self, ready: EngineReady) -> None:
        self.state.history.block_size = ready.info["block_size"]

    def _plan_load(self) -> None:
        now_s = self._timeline.seconds
        drafts, incidents = self._load.between(now_s, now_s + LOAD_TURN_S)
        for draft in drafts:
            self._timeline.at(draft.at_s, lambda draft=draft: self._clients.send(draft))  # type: ignore[misc]
        for incident in incidents:
            self._happen(incident)

    def _sample(self) -> None:
        """What the daemon measures of itself all the time."""
        vitals = self.state.vitals
        vitals.sample(self._noise.uniform(0.0001, 0.0025))
        is_up = self._engine.coordinator is not None
        vitals.answer_ms = self._noise.uniform(0.3, 1.8) if is_up else None
        self._sensors.pass_time(SAMPLE_INTERVAL_S, self._busy_frac())

    def _busy_frac(self) -> float:
        """Of the device, since the last time."""
        coordinator, before_ns = self._engine.coordinator, self._busy_ns
        self._busy_ns = 0
        if coordinator is not None:
            self._busy_ns = coordinator.decode.busy_ns + coordinator.prefill.busy_ns
        return min(max(self._busy_ns - before_ns, 0) / 1e9 / SAMPLE_INTERVAL_S, 1.0)

    def _happen(self, incident: Incident) -> None:
        engine, drain = self._engine, self.state.drain
        match incident:
            case "drain":
                drain.begin(DRAINER, "new weights", DRAIN_LIMIT_S)
                self._timeline.after(DRAIN_FOR_S, self._end_drain)
            case "override" if engine.can_submit:
                engine.answer(_colleagues_override)
            case "slow step" if engine.device is not None:
                engine.device.stall(engine.device.decode, SLOW_STEP_NS, self._timeline.now_ns)
                engine.wake_at_ns = self._timeline.now_ns
            case "engine death" if engine.can_submit:
                engine.die()

    def _end_drain(self) -> None:
        self.state.drain.cancel(DRAINER, "not today")


def over_the_wire(document: D) -> D:
    """As a client receives it."""
    [received] = FrameReader().feed(encode_frame(cast(dict[str, Any], document)))
    return cast(D, received)


def _colleagues_override(nonce: int) -> SetPartition:
    return SetPartition(
        nonce, "fixed", COLLEAGUE, "the reports of the month", prefill_units=80, expires_s=35.0
    )
