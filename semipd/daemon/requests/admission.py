"""The waiting queue's bounds: who is let in, and when the others may come again.

What waits is a sequence: a request has one for each choice of each prompt. Each waits from the arrival of its
request until it is first placed in the KV pool, or is over. Those that are still being tokenized, and choices
that are not begun yet, hold a place too, so that nothing can pass the bound between two looks at it. The
answer to who comes too late costs no tokenizing, and says when to come again; who asks for more than a share
of the queue is told that this will never do.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from semipd.config.sections import AdmissionConfig
from semipd.core.errors import SemipdError
from semipd.core.request import Priority, Request, SeqId
from semipd.core.state.daemon import AdmissionState
from semipd.daemon.history.record import RequestRecord
from semipd.daemon.history.records import RequestHistory

RATE_WINDOW_S = 30
MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0


class Load(NamedTuple):
    """So many sequences, and tokens of their prompts."""

    requests: float = 0
    tokens: float = 0

    def plus(self, other: "Load", sign: int = 1) -> "Load":
        return Load(self.requests + sign * other.requests, self.tokens + sign * other.tokens)


class RateMeter:
    """What has been completed per second, over the last RATE_WINDOW_S; in buckets of a second."""

    def __init__(self) -> None:
        self._buckets: deque[tuple[int, Load]] = deque(maxlen=RATE_WINDOW_S)
        self._began_s: float | None = None

    def add(self, done: Load, now_s: float) -> None:
        if self._began_s is None:
            self._began_s = now_s
        second = int(now_s)
        if self._buckets and self._buckets[-1][0] == second:
            done = done.plus(self._buckets.pop()[1])
        self._buckets.append((second, done))

    def per_s(self, now_s: float) -> Load | None:
        """None: nothing was completed lately."""
        while self._buckets and self._buckets[0][0] <= now_s - RATE_WINDOW_S:
            self._buckets.popleft()
        if not self._buckets or self._began_s is None:
            return None
        span_s = min(max(now_s - self._began_s, 1.0), RATE_WINDOW_S)
        requests = sum(done.requests for _, done in self._buckets)
        tokens = sum(done.tokens for _, done in self._buckets)
        return Load(requests / span_s, tokens / span_s)


@dataclass(slots=True, eq=False)
class Reservation:
    """Held by a request for its sequences that the engine has not been given; as a context manager it is
    given up at the end."""

    admission: "Admission"
    priority: Priority
    load: Load

    def fill(self, num_sequences: int, num_tokens: int) -> None:
        """The prompts are known now. Raises what Admission.enter does."""
        self.admission.change(self, Load(num_sequences, num_tokens))

    def hand_over(self, num_tokens: int) -> None:
        """One sequence, with such a prompt, has a record from now on, which is counted instead."""
        self.admission.shrink(self, Load(1, num_tokens))

    def give_up(self) -> None:
        """The whole request has been handed to the engine, or is over. Idempotent."""
        self.admission.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()


class Admission:
    """Counts who waits, from what the history is told, and refuses beyond the bounds."""

    def __init__(
        self,
        config: AdmissionConfig,
        history: RequestHistory,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._clock_s = clock_s
        self._waiting: dict[SeqId, RequestRecord] = {}
        self._preparing: set[Reservation] = set()
        self._load: dict[Priority, Load] = {"interactive": Load(), "batch": Load()}
        self._meter = RateMeter()
        self._promised_s = -math.inf
        """Until then, what is completed was promised to those already refused."""
        history.on_arrived.append(self._arrived)
        history.on_placed.append(self._left)
        history.on_finished.append(self._finished)

    @property
    def waiting(self) -> Load:
        return self._load["interactive"].plus(self._load["batch"])

    def enter(self, priority: Priority, num_sequences: int = 1, num_tokens: int = 0) -> Reservation:
        """A place for a request. `num_tokens`: what is known of the prompts of all its sequences so far.
        Raises SemipdError: `overloaded`, which carries when to come again, and `request_too_large`."""
        reservation = Reservation(self, priority, Load(num_sequences, num_tokens))
        self._check(priority, reservation.load)
        self._preparing.add(reservation)
        self._count(priority, reservation.load)
        return reservation

    def change(self, reservation: Reservation, load: Load) -> None:
        if reservation not in self._preparing:
            return
        self._count(reservation.priority, reservation.load, -1)
        reservation.load = Load()
        self._check(reservation.priority, load)
        reservation.load = load
        self._count(reservation.priority, load)

    def shrink(self, reservation: Reservation, part: Load) -> None:
        assert reservation in self._preparing, "a sequence that held no place was handed over"
        self._count(reservation.priority, part, -1)
        reservation.load = reservation.load.plus(part, -1)

    def leave(self, reservation: Reservation) -> None:
        if reservation in self._preparing:
            self._preparing.remove(reservation)
            self._count(reservation.priority, reservation.load, -1)

    def check_room(self) -> None:
        """Before anything of a request is known. Raises SemipdError(`overloaded`)."""
        self._check("interactive", Load(1, 0))

    def to_wire(self) -> AdmissionState:
        rate = self._meter.per_s(self._clock_s())
        return {
            "waiting_requests": int(self.waiting.requests),
            "waiting_tokens": int(self.waiting.tokens),
            "max_waiting_requests": self._config.max_waiting_requests,
            "max_waiting_tokens": self._config.max_waiting_tokens,
            "max_request_share": self._config.max_request_share,
            "completed_per_s": None if rate is None else rate.requests,
        }

    def check_integrity(self) -> None:
        """Recompute the loads from nothing; AssertionError with the numbers on a mismatch."""
        for priority, counted in self._load.items():
            records = [r for r in self._waiting.values() if r.priority == priority]
            places = [held.load for held in self._preparing if held.priority == priority]
            requests = len(records) + sum(load.requests for load in places)
            tokens = sum(r.prompt_tokens for r in records) + sum(load.tokens for load in places)
            assert counted == (requests, tokens), f"{priority}: {counted} counted, {requests}, {tokens} found"

    def _arrived(self, record: RequestRecord, _request: Request) -> None:
        self._waiting[record.seq] = record
        self._count(record.priority, Load(1, record.prompt_tokens))

    def _left(self, record: RequestRecord) -> None:
        if self._waiting.pop(record.seq, None) is not None:
            self._count(record.priority, Load(1, record.prompt_tokens), -1)

    def _finished(self, record: RequestRecord) -> None:
        """Who was refused for being late has made room, but is no sign of how fast requests are completed."""
        self._left(record)
        if record.error_code != "late":
            self._meter.add(Load(1, record.prompt_tokens), self._clock_s())

    def _count(self, priority: Priority, load: Load, sign: int = 1) -> None:
        self._load[priority] = self._load[priority].plus(load, sign)

    def _check_share(self, priority: Priority, asked: Load) -> None:
        """One sequence may fill the queue: how long its prompt can be is bounded elsewhere."""
        config = self._config
        share = min(config.max_request_share, config.batch_share if priority == "batch" else 1.0)
        most = Load(int(config.max_waiting_requests * share), int(config.max_waiting_tokens * share))
        if asked.requests <= 1 or (asked.requests <= most.requests and asked.tokens <= most.tokens):
            return
        setting = "batch_share" if share < config.max_request_share else "max_request_share"
        tokens, most_tokens = "", ""
        if asked.tokens:  # else they are not known yet
            tokens, most_tokens = f" with {asked.tokens:.0f} prompt tokens", f" with {most.tokens:.0f}"
        raise SemipdError(
            "request_too_large",
            f"The request has {asked.requests:.0f} sequences (prompts times n){tokens}; one request may "
            f"have {max(most.requests, 1):.0f}{most_tokens} "
            f"(admission.{setting}={share:g} of max_waiting_requests={config.max_waiting_requests} and "
            f"max_waiting_tokens={config.max_waiting_tokens}).",
            "Send it as several requests, or with a smaller n.",
            param="n",
        )

    def _check(self, priority: Priority, asked: Load) -> None:
        """A sequence whose prompt alone exceeds a bound is let in when nobody waits: else it never could
        be."""
        self._check_share(priority, asked)
        config, waiting = self._config, self.waiting
        bound = Load(config.max_waiting_requests, config.max_waiting_tokens)
        over = _beyond(waiting, asked, bound)
        who, setting = "", "admission.max_waiting_requests and max_waiting_tokens"
        if over is None and priority == "batch":
            waiting, share = self._load["batch"], config.batch_share
            bound = Load(bound.requests * share, bound.tokens * share)
            over = _beyond(waiting, asked, bound)
            who, setting = " of priority batch", f"admission.batch_share={share:g} of the queue"
        if over is not None:
            raise SemipdError(
                "overloaded",
                f"{waiting.requests:.0f} requests{who} with {waiting.tokens:.0f} prompt tokens wait; "
                f"the bounds are {bound.requests:.0f} and {bound.tokens:.0f} ({setting}).",
                "Send the request again later, or to another server.",
                retry_after_s=self._retry_after_s(over),
            )

    def _retry_after_s(self, over: Load) -> float:
        """Each who is refused is promised the next room that becomes free: they do not all come at once."""
        now_s = self._clock_s()
        rate = self._meter.per_s(now_s) or self._assumed_rate()
        needed_s = max(over.requests / rate.requests, over.tokens / max(rate.tokens, 1.0))
        latest_s = now_s + MAX_RETRY_S
        self._promised_s = min(max(self._promised_s, now_s) + needed_s, latest_s)
        return max(self._promised_s - now_s, MIN_RETRY_S)

    def _assumed_rate(self) -> Load:
        """Nothing was completed lately: not more than one in the time that the first in line has waited."""
        first = next(iter(self._waiting.values()), None)
        waited_s = 0.0 if first is None else self._clock_s() - first.arrival_ns / 1e9
        each_s = max(waited_s, MIN_RETRY_S)
        return Load(1 / each_s, max(first.prompt_tokens if first else 1, 1) / each_s)


def _beyond(waiting: Load, asked: Load, bound: Load) -> Load | None:
    """What would have to go before there is room; None: there is."""
    over = Load(
        max(waiting.requests + asked.requests - bound.requests, 0),
        max(waiting.tokens + asked.tokens - bound.tokens, 0),
    )
    return over if any(over) and any(waiting) else None
