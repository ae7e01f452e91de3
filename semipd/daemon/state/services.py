"""What HTTP and socket handlers share: generation, status, readiness, the way to stop."""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from semipd import __version__
from semipd.config.config import Config
from semipd.core.brief import brief
from semipd.core.errors import SemipdError
from semipd.core.state.daemon import StateDocument, Status, StatusWithoutEngine
from semipd.daemon.access.auth import Auth
from semipd.daemon.access.hosts import Hosts
from semipd.daemon.access.rates import RateLimiter
from semipd.daemon.engine.supervisor import Supervisor
from semipd.daemon.history.listing import Listings
from semipd.daemon.history.metrics import Metrics, exposition, families
from semipd.daemon.history.usage import Timing, Usage
from semipd.daemon.history.wall_times import with_wall_times
from semipd.daemon.host.process_limits import ConnectionRoom
from semipd.daemon.requests.generation import GenerationService, TokenUsage
from semipd.daemon.requests.table import RequestTable
from semipd.daemon.state.daemon_state import DaemonState
from semipd.daemon.state.snapshot import state_frame, state_samples
from semipd.daemon.web.cors import Cors

log = logging.getLogger(__name__)

FRESH_ANSWER_S = 1.0
"""A status answer this young proves readiness without another round trip."""

REPLACEMENT_LIMIT_S = 30.0
"""For the supervisor to notice that an engine is silent, and to kill it."""

METRICS_AGE_S = 1.0
"""How old the engine's part of the metrics may be: several scrapers share one question."""

MAX_IGNORED_NAMES = 64
"""Names of unknown fields told apart; clients choose them, so their number is bounded."""

OTHER_FIELDS = "(other)"
"""Stands for the names beyond, and for those that no program would choose."""

_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")

DEFAULT_CONFIG = Config()


class Services(DaemonState):
    """One per daemon: its state, and what servers need beside it."""

    supervisor: Supervisor

    def __init__(
        self,
        model_name: str,
        supervisor: Supervisor,
        table: RequestTable,
        generation: GenerationService,
        shut_down: Callable[[str], None],
        config: Config = DEFAULT_CONFIG,
    ) -> None:
        """Raises SemipdError when a key file cannot be used, or a host or origin is none."""
        super().__init__(model_name, supervisor, table, config, shut_down)
        self.generation = generation
        self.config = config
        self.connection_room = ConnectionRoom.of(config.limits.max_connections)
        self.auth = Auth(config.auth, config.socket.group)
        self.hosts = Hosts(config.server)
        self.cors = Cors(config.server.cors_origins, self.hosts)
        self.limiter = RateLimiter(config.limits.requests_per_s, config.limits.burst)
        self.listings = Listings()
        self.metrics = Metrics(self.history)
        self.started_at_s = int(time.time())
        self.num_serving = 0
        """Requests for tokens, over HTTP and the socket, that have come and are not answered yet."""
        self.ignored_fields: Counter[str] = Counter()

    async def status(self) -> Status:
        """The status document, the engine's numbers fetched through its loop; without them while no engine is
        ready. Raises SemipdError(`engine_silent`)."""
        if self.supervisor.state != "ready":
            return self._status()
        engine = await self.supervisor.status()
        return {**engine, **self._status(), "partition": with_wall_times(engine["partition"], self.clock)}

    def _status(self) -> StatusWithoutEngine:
        supervisor, ready = self.supervisor, self.supervisor.ready
        return {
            "state": supervisor.state,
            "engine": supervisor.report(),
            "model": {"name": self.model_name, "max_model_len": ready.max_model_len if ready else None},
            "device_info": ready.info if ready else None,
            "notes": list(ready.notes) if ready else [],
            "versions": {"daemon": __version__, "engine": ready.version if ready else None},
            "uptime_s": self.uptime_s,
            "startup": [{"name": phase.name, "seconds": phase.seconds} for phase in supervisor.timeline],
            "totals": dict(self.table.totals),
            "live_requests": len(self.table),
            "ignored_fields": dict(self.ignored_fields),
            "slo": self.slo.snapshot(self.classes.targets),
            "admission": self.admission.to_wire(),
            "chat_template": self.generation.prompts.rendering_to_wire(),
            "drain": self.drain.to_wire(),
        }

    async def state(self, max_age_s: float) -> StateDocument:
        """The state frame; the engine's part may be `max_age_s` old. Also without an engine."""
        return state_frame(self, await self.vitals.engine(max_age_s))

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics as text, and its content type. Also without an engine."""
        engine = await self.vitals.engine(METRICS_AGE_S)
        ready = self.supervisor.ready
        counted = self.metrics.samples(ready.max_model_len if ready else None)
        samples = [*counted, *state_samples(self, engine)]
        return await asyncio.to_thread(exposition, families(samples, self.model_name), accept)

    @contextmanager
    def serving(self) -> Iterator[None]:
        self.num_serving += 1
        try:
            yield
        finally:
            self.num_serving -= 1

    async def check_ready(self) -> None:
        """Raises SemipdError with the reason when the daemon drains, or the engine is not ready, does not
        answer or does not move."""
        self.drain.check(for_operators=True)
        answered_s = self.supervisor.last_answer_s
        is_fresh = answered_s is not None and time.monotonic() - answered_s < FRESH_ANSWER_S
        if self.supervisor.state != "ready" or not is_fresh:
            await self.supervisor.status()
        self.supervisor.check_moving()

    def makes_progress(self) -> bool:
        """Whether a watchdog may be content. A silent engine is the supervisor's affair, and so is its start,
        each within limits of their own; one that is silent for longer shows that nobody replaces it."""
        if self.supervisor.state != "ready":
            return self.supervisor.state != "failed"
        answered_s = self.supervisor.last_answer_s
        limit_s = self.supervisor.supervision.answer_limit_s + REPLACEMENT_LIMIT_S
        return answered_s is None or time.monotonic() - answered_s < limit_s

    def in_one_line(self) -> str:
        """For people: what the daemon does now."""
        if self.drain.state != "serving":
            shown = self.drain.to_wire()
            left_s = shown["seconds_left"]
            left = "" if left_s is None else f", {left_s:.0f} s left"
            return f"{shown['state']}: {shown['awaited']} requests{left}"
        if self.supervisor.state != "ready":
            return f"engine {self.supervisor.state}"
        waiting = int(self.admission.waiting.requests)
        return f"serving {self.model_name}: {len(self.table)} requests, {waiting} of them waiting"

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.model_name:
            raise SemipdError(
                "model_not_found",
                f"The model {brief(name, 200)} does not exist here.",
                f"This daemon serves {self.model_name!r}.",
                param="model",
            )

    def ignore_fields(self, names: Iterable[str]) -> None:
        """Count fields that mean nothing to us; each is logged once."""
        for name in names:
            shown = name if self._is_told_apart(name) else OTHER_FIELDS
            if shown not in self.ignored_fields:
                log.info("requests carry the unknown field %r; it is ignored", name[:64])
            self.ignored_fields[shown] += 1

    def _is_told_apart(self, name: str) -> bool:
        if not _FIELD_NAME.fullmatch(name):
            return False
        return name in self.ignored_fields or len(self.ignored_fields) < MAX_IGNORED_NAMES


def usage_to_wire(usage: TokenUsage, timing: Timing | None = None) -> Usage:
    """OpenAI's `usage` object; the socket sends the same."""
    answer: Usage = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if timing is not None:
        answer["timing"] = timing
    return answer
