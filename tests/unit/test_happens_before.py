"""The happens-before model against every schedule of small traces, and by example."""

import random
from collections.abc import Sequence
from itertools import combinations
from typing import cast

from support.happens_before import HOST, Access, Drain, Op, Record, Violation, Wait, violations
from support.seeds import each_seed

BLOCKS = ("a", "b")


def access(stream: int, *, reads: str = "", writes: str = "", frees: str = "") -> Access:
    return Access(stream, "step", frozenset(reads), frozenset(writes), frozenset(frees))


def kinds(trace: Sequence[object]) -> list[tuple[str, int | None, int]]:
    return [(found.kind, found.first, found.second) for found in violations(cast(Sequence[Op], trace))]


def test_one_stream_runs_in_order() -> None:
    assert kinds([access(1, writes="a"), access(1, reads="a")]) == []


def test_two_streams_without_an_event_race() -> None:
    assert kinds([access(1, writes="a"), access(2, reads="a")]) == [("race", 0, 1)]


def test_an_event_orders_what_came_before_its_record_with_what_comes_after_the_wait() -> None:
    ordered = [access(1, writes="a"), Record(1, 7), Wait(2, 7), access(2, reads="a")]
    assert kinds(ordered) == []
    written_after_the_record = [Record(1, 7), access(1, writes="a"), Wait(2, 7), access(2, reads="a")]
    assert kinds(written_after_the_record) == [("race", 1, 3)]
    read_before_the_wait = [access(1, writes="a"), Record(1, 7), access(2, reads="a"), Wait(2, 7)]
    assert kinds(read_before_the_wait) == [("race", 0, 2)]


def test_a_wait_keeps_the_record_of_its_time() -> None:
    """Recording an event again changes nothing for a stream that waits already."""
    again = [Record(1, 7), Wait(2, 7), access(1, writes="a"), Record(1, 7), access(2, reads="a")]
    assert kinds(again) == [("race", 2, 4)]


def test_order_passes_through_a_third_stream_and_through_the_host() -> None:
    first = [access(1, writes="a"), Record(1, 7), Wait(2, 7), Record(2, 8), Wait(3, 8), access(3, reads="a")]
    assert kinds(first) == []
    assert kinds([access(1, writes="a"), Record(1, 7), Wait(HOST, 7), access(2, reads="a")]) == []
    assert kinds([access(1, writes="a"), Drain(1), access(2, reads="a")]) == []


def test_host_work_is_before_later_launches_and_unordered_with_running_ones() -> None:
    staged = [access(HOST, writes="a"), access(1, reads="a"), access(HOST, writes="a")]
    assert kinds(staged) == [("race", 1, 2)]
    waited = [access(HOST, writes="a"), access(1, reads="a"), Drain(1), access(HOST, writes="a")]
    assert kinds(waited) == []


def test_reading_what_nobody_wrote_and_what_was_freed() -> None:
    assert kinds([access(1, reads="a")]) == [("stale read", None, 0)]
    freed = [access(1, writes="a"), Drain(1), access(HOST, frees="a"), access(1, reads="a")]
    assert kinds(freed) == [("stale read", 2, 3)]
    written_again = [*freed[:3], access(1, writes="a"), access(1, reads="a")]
    assert kinds(written_again) == []
    assert kinds([access(1, reads="a", writes="a")]) == []


def test_freeing_under_a_running_step_is_a_race() -> None:
    trace = [access(1, writes="a"), access(HOST, frees="a")]
    assert kinds(trace) == [("race", 0, 1)]


# ---- every schedule ------------------------------------------------------------------------------


class Schedules:
    """Plays a trace in every way the hardware may. Knows nothing of clocks: a state is how far the host and
    each stream have come, and what has been written."""

    def __init__(self, trace: Sequence[Op]) -> None:
        self.trace = trace
        self.bound = self._bind()
        self.both_orders: set[tuple[int, int]] = set()
        self.bad_reads: set[int] = set()
        self._before: set[tuple[int, int]] = set()
        self._explore()
        for i, j in combinations(range(len(trace)), 2):
            if {(i, j), (j, i)} <= self._before:
                self.both_orders.add((i, j))

    def _bind(self) -> dict[int, int | None]:
        """The record that each wait waits for."""
        latest: dict[int, int] = {}
        bound: dict[int, int | None] = {}
        for index, op in enumerate(self.trace):
            match op:
                case Record(_, event):
                    latest[event] = index
                case Wait(_, event):
                    bound[index] = latest.get(event)
        return bound

    def _explore(self) -> None:
        start: tuple[frozenset[int], int, frozenset[str]] = (frozenset(), 0, frozenset())
        todo, known = [start], {start}
        while todo:
            done, issued, written = todo.pop()
            self._before |= {(i, j) for i in done for j in range(len(self.trace)) if j not in done}
            for index, now_issued in self._moves(done, issued):
                if index is None:
                    state = (done, now_issued, written)
                else:
                    state = (done | {index}, now_issued, self._run(index, written))
                if state not in known:
                    known.add(state)
                    todo.append(state)

    def _moves(self, done: frozenset[int], issued: int) -> list[tuple[int | None, int]]:
        """(operation that runs now or None, operations the host has gone through)."""
        moves: list[tuple[int | None, int]] = []
        if issued < len(self.trace):
            if not self._is_host(self.trace[issued]):
                moves.append((None, issued + 1))
            elif self._may_run(issued, done):
                moves.append((issued, issued + 1))
        heads: set[int] = set()
        for index in range(issued):
            op = self.trace[index]
            if index in done or self._is_host(op) or op.stream in heads:
                continue
            heads.add(op.stream)
            if self._may_run(index, done):
                moves.append((index, issued))
        return moves

    @staticmethod
    def _is_host(op: Op) -> bool:
        return isinstance(op, Drain) or op.stream == HOST

    def _may_run(self, index: int, done: frozenset[int]) -> bool:
        op = self.trace[index]
        if isinstance(op, Wait):
            return self.bound[index] is None or self.bound[index] in done
        if isinstance(op, Drain):
            mine = (i for i, other in enumerate(self.trace[:index]) if other.stream == op.stream)
            return all(i in done or isinstance(self.trace[i], Drain) for i in mine)
        return True

    def _run(self, index: int, written: frozenset[str]) -> frozenset[str]:
        op = self.trace[index]
        if not isinstance(op, Access):
            return written
        written = frozenset(str(block) for block in (written | op.writes) - op.frees)
        if not op.reads <= written:
            self.bad_reads.add(index)
        return written

    def racing_pairs(self) -> dict[str, set[tuple[int, int]]]:
        pairs: dict[str, set[tuple[int, int]]] = {block: set() for block in BLOCKS}
        for i, j in self.both_orders:
            first, second = self.trace[i], self.trace[j]
            if isinstance(first, Access) and isinstance(second, Access):
                for block in BLOCKS:
                    if _changes(first, block, second) or _changes(second, block, first):
                        pairs[block].add((i, j))
        return pairs


def _changes(op: Access, block: str, other: Access) -> bool:
    return block in op.writes | op.frees and block in other.reads | other.writes | other.frees


def random_trace(rng: random.Random) -> list[Op]:
    trace: list[Op] = []
    streams = rng.choice([(1, 2), (1, 2, 3)])
    recorded: list[int] = []
    for _ in range(rng.randrange(2, 10)):
        stream = rng.choice([*streams, *streams, HOST])
        match rng.choice(["access", "access", "record", "wait", "drain"]):
            case "access":
                trace.append(_random_access(stream, rng))
            case "record" if stream != HOST:
                event = rng.randrange(3)
                recorded.append(event)
                trace.append(Record(stream, event))
            case "wait" if recorded:
                trace.append(Wait(stream, rng.choice(recorded)))
            case "drain" if rng.random() < 0.3 and stream != HOST:
                trace.append(Drain(stream))
    return trace


def _random_access(stream: int, rng: random.Random) -> Access:
    kinds: dict[str, set[str]] = {"reads": set(), "writes": set(), "frees": set()}
    for block in BLOCKS:
        kind = rng.choice(["reads", "writes", "none", "frees" if stream == HOST else "reads", "both"])
        if kind == "both":
            kinds["reads"].add(block)
            kinds["writes"].add(block)
        elif kind != "none":
            kinds[kind].add(block)
    return Access(stream, "step", *(frozenset(kinds[kind]) for kind in ("reads", "writes", "frees")))


@each_seed(range(20))
def test_the_model_agrees_with_every_schedule(seed: int) -> None:
    rng = random.Random(seed)
    outcomes = {"clean": 0, "race": 0, "stale read": 0}
    for _ in range(60):
        trace = random_trace(rng)
        found, truth = violations(trace), Schedules(trace)
        _agree(trace, found, truth)
        for kind in {str(violation.kind) for violation in found} or {"clean"}:
            outcomes[kind] += 1
    assert min(outcomes.values()) > 0, f"the traces are too much alike: {outcomes}"


def _agree(trace: list[Op], found: list[Violation], truth: Schedules) -> None:
    racing = truth.racing_pairs()
    for block in BLOCKS:
        races = {(v.first, v.second) for v in found if v.kind == "race" and v.resource == block}
        assert races <= racing[block], f"{races - racing[block]} is ordered in {trace}"
        assert bool(races) == bool(racing[block]), f"{racing[block]} not found in {trace}"
    if not any(racing.values()):
        stale = {v.second for v in found if v.kind == "stale read"}
        assert stale == truth.bad_reads, f"{stale} and {truth.bad_reads} in {trace}"
