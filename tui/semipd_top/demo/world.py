"""A whole daemon that exists only on paper: deterministic, without a clock, with the frames of a real one."""

import math
import random
from collections import deque
from typing import Any, cast

from semipd import __version__
from semipd.wire.client_protocol import StateFrame
from semipd_top.demo.drain import DemoDrain
from semipd_top.demo.engine import DemoEngine
from semipd_top.demo.gpu import MODEL, Batch, Sensors, facts
from semipd_top.demo.life import EngineLife
from semipd_top.demo.load import DRAIN_FOR_S, Draft, Incident, Load
from semipd_top.demo.operator import DemoOperator
from semipd_top.demo.partition import Control
from semipd_top.demo.policy import Work
from semipd_top.demo.requests import DemoHistory, DemoRequest
from semipd_top.sources.contract import REQUEST_ROWS, Seen

TURN_S = 0.1
RATE_WINDOW_S = 5.0
ROWS_EVERY_S = 1.0
MAX_WAITING = 96
MAX_WAITING_TOKENS = 250_000
COLLEAGUES_WISH = {
    "mode": "fixed",
    "actor": "ann (pid 4121)",
    "reason": "the reports of the month",
    "prefill_units": 80,
    "expires_s": 35.0,
}
NO_WORK = Work(Batch(0, 0), ())


class DemoWorld:
    """Equal seeds and equal calls give equal frames. `began_s`: Unix time. Times inside are seconds since
    then."""

    def __init__(self, seed: int = 7, began_s: float = 1_760_000_000.0) -> None:
        self.began_s = began_s
        self.now = 0.0
        self.history = DemoHistory(began_s)
        self._rng = random.Random(seed)
        self._noise = random.Random(seed + 4)
        self.control = Control(
            self.history.journal, began_s, self.history.slo.targets, random.Random(seed + 1)
        )
        self.operator = DemoOperator(self)
        self.drain = DemoDrain(self.history)
        self.engine: DemoEngine | None = None
        self._load = Load(random.Random(seed + 2))
        self._life = EngineLife(0.0)
        self._sensors = Sensors(random.Random(seed + 3))
        self._rates: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])
        self._suspects: dict[int, int] = {}
        self._rows_due = 0.0

    @property
    def at_s(self) -> float:
        """Unix time."""
        return self.began_s + self.now

    def advance(self, seconds: float) -> Seen:
        """What a subscriber sees after so long. Requests are listed once a second, as for a live daemon."""
        num_turns = math.ceil(seconds / TURN_S - 1e-9)
        start = self.now
        for idx in range(num_turns):
            self._turn(self.now, start + seconds * (idx + 1) / num_turns)
        self.history.journal.publish(self.now)
        rows = None
        if self.now >= self._rows_due - 1e-9:
            self._rows_due = self.now + ROWS_EVERY_S
            rows = self.history.rows(self.now, limit=REQUEST_ROWS)
        return Seen(
            self.at_s,
            StateFrame(cast(Any, self.state()), cast(Any, self.history.journal.take())),
            cast(Any, rows),
        )

    def work(self) -> Work:
        return NO_WORK if self.engine is None else self.engine.work(self.now)

    @property
    def is_shared(self) -> bool:
        """Both lanes have work."""
        engine = self.engine
        return engine is not None and bool(engine.prefilling and engine.decoding)

    def cancel(self, request_id: str) -> str:
        """As the daemon answers: `cancelled`, `already_finished` or `not_found`."""
        named = self.history.named(request_id)
        going = [request for request in named if request.state != "finished"]
        for request in going:
            if self.engine is not None:
                self.engine.cancel(request)
            self.history.finish(request, self.now, "cancelled", "request_cancelled")
        self.history.journal.publish(self.now)
        if going:
            return "cancelled"
        return "already_finished" if named else "not_found"

    def why_not_ready(self) -> str:
        """In a sentence, while there is no engine."""
        return self._life.why_not_ready(self.now)

    # ---- a turn --------------------------------------------------------------------------------

    def _turn(self, start: float, end: float) -> None:
        self.control.expire(start)
        self.drain.turn(start)
        drafts, incidents = self._load.between(start, end)
        for draft in drafts:
            self._arrive(draft)
        if self.engine is not None:
            self.engine.turn(start, end)
            self._acquit()
        else:
            self._sensors.pass_time(end - start, 0.0)
        for incident in incidents:
            self._happen(incident, end)
        if self._life.turn(end):
            self._begin_engine(end)
        self.now = end
        self._rates.append((end, self.history.prompt_tokens, self.history.output_tokens))
        while self._rates[1][0] < end - RATE_WINDOW_S:
            self._rates.popleft()

    def _arrive(self, draft: Draft) -> None:
        request_id = f"{self._rng.getrandbits(128):032x}"
        code = self._why_refused(draft)
        if code is not None:
            self.history.refuse(draft.at_s, code, request_id)
            return
        request = self.history.arrived(draft, request_id)
        if self.engine is None:
            request.is_held = True
        else:
            self.engine.submit(request, draft.at_s + 0.0002)

    def _why_refused(self, draft: Draft) -> str | None:
        if self.drain.state != "serving":
            return "draining"
        if self._life.state == "starting":
            return "engine_not_ready"
        waiting = [r for r in self.history.live.values() if r.admitted is None]
        tokens = sum(request.draft.prompt_tokens for request in waiting)
        is_full = len(waiting) >= MAX_WAITING or tokens + draft.prompt_tokens > MAX_WAITING_TOKENS
        return "overloaded" if waiting and is_full else None

    def _happen(self, incident: Incident, at: float) -> None:
        match incident:
            case "drain":
                self.drain.begin(at, DRAIN_FOR_S)
            case "override" if self.engine is not None:
                self.control.set(at, COLLEAGUES_WISH, self.engine.work(at), self.is_shared)
            case "slow step" if self.engine is not None:
                self.engine.stall(at)
            case "engine death" if self.engine is not None:
                self._kill_engine(self.engine, at)

    def _kill_engine(self, engine: DemoEngine, at: float) -> None:
        in_flight = engine.die()
        self._suspects = {request.seq: request.output_tokens for request in in_flight}
        self._life.die(at)
        self.engine = None
        why = self._life.report(at)["why"]
        self.history.journal.add(at, "engine_died", {"why": why, "in_flight": len(in_flight)})

    def _begin_engine(self, at: float) -> None:
        self.control.forget()
        self.engine = DemoEngine(self.history, self.control, self._sensors, self._rng)
        if self._life.died_at is not None:
            outage_s = at - self._life.died_at
            told = {"outage_s": outage_s, "device": facts(None)["name"]}
            self.history.journal.add(at, "engine_restarted", told)
        for request in sorted(self.history.live.values(), key=lambda request: request.seq):
            self._resume(self.engine, request, at)

    def _resume(self, engine: DemoEngine, request: DemoRequest, at: float) -> None:
        if request.seq in self._suspects:
            output_tokens = request.output_tokens
            self.history.note(request, at, "request_resumed", output_tokens=output_tokens)
        engine.submit(request, at)

    def _acquit(self) -> None:
        """Whoever has come beyond the point of the crash is not its cause."""
        for seq, output_tokens in list(self._suspects.items()):
            request = self.history.live.get(seq)
            if request is None or request.output_tokens > output_tokens:
                del self._suspects[seq]

    # ---- the frame -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The state frame of this moment, with the keys of a real daemon's."""
        engine, ready = self.engine, self._life.was_ready
        return {
            "at_s": self.at_s,
            "uptime_s": self.now,
            "state": self._life.state,
            "engine": self._life.report(self.now),
            "model": MODEL if ready else {**MODEL, "max_model_len": None},
            "versions": {"daemon": __version__, "engine": __version__ if ready else None},
            "device": self._device() if ready else None,
            **self._engine_numbers(),
            "last_split_change": self.control.last_switch,
            "partition": self.control.status() if engine is not None else None,
            "requests": self._requests(),
            "drain": self.drain.to_wire(self.now),
            "throughput": self._throughput(),
            "slo": self.history.slo.snapshot(self.now),
            "lamps": self._lamps(),
            "refused": dict(self.history.refused),
            "notes": [],
        }

    def _device(self) -> dict[str, Any]:
        switches = self.control.num_switches
        return facts(None if self.engine is None else self._sensors.stats(switches))

    def _engine_numbers(self) -> dict[str, Any]:
        engine = self.engine
        if engine is None:
            return dict.fromkeys(("split", "lanes", "prefix", "preemptions", "scheduler", "kv"))
        prefill, decode = self.control.effective
        return {
            "split": {"prefill": prefill, "decode": decode, "unit": "SM"},
            "lanes": engine.lanes(self.now),
            "prefix": {"prompt_tokens": engine.prompt_tokens, "cached_tokens": engine.cached_tokens},
            "preemptions": engine.preemptions,
            "scheduler": "semipd",
            "kv": engine.kv(),
        }

    def _requests(self) -> dict[str, Any]:
        engine, live = self.engine, self.history.live
        oldest = min((r.arrived for r in engine.waiting), default=None) if engine is not None else None
        return {
            "waiting": None if engine is None else len(engine.waiting),
            "prefilling": None if engine is None else len(engine.prefilling),
            "decoding": None if engine is None else len(engine.decoding),
            "oldest_waiting_ms": None if oldest is None else (self.now - oldest) * 1e3,
            "live": len(live),
            "held": sum(request.is_held for request in live.values()),
            "suspects": len(self._suspects),
            "totals": dict(self.history.totals),
        }

    def _throughput(self) -> dict[str, float]:
        (began, *before), (ended, *after) = self._rates[0], self._rates[-1]
        seconds = max(ended - began, TURN_S)
        return {
            "prompt_tokens_per_s": (after[0] - before[0]) / seconds,
            "output_tokens_per_s": (after[1] - before[1]) / seconds,
        }

    def _lamps(self) -> dict[str, Any]:
        engine = self.engine
        age_ms = None
        if engine is not None:
            ages_ms = [lane["step_age_ms"] or 0.0 for lane in engine.lanes(self.now).values()]
            age_ms = max(ages_ms)
        return {
            "process": {"ok": self._life.state == "ready"},
            "loop": {
                "ok": engine is not None,
                "event_loop_lag_ms": self._noise.uniform(0.1, 2.5),
                "engine_answer_ms": None if engine is None else self._noise.uniform(0.3, 1.8),
            },
            "progress": {"ok": engine is not None, "age_ms": age_ms},
        }
