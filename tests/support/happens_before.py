"""Which accesses of a launch trace are ordered, by vector clocks over the host and the streams.

A trace is the list of what the host did, in the host's order (one host: threads that hand work over count
as one). Streams run their work in the order of launching, later than the launch; an event stands for the
work of a stream up to its latest record; a stream or the host waits for events. Nothing else orders anything.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

HOST = -1
"""The host's place among the streams."""

Resource = Hashable
"""What is read, written and freed: a KV block, a static buffer, a pinned staging buffer."""

NOTHING: frozenset[Resource] = frozenset()


@dataclass(frozen=True, slots=True)
class Access:
    """A kernel or copy on a stream, or something the host itself does (`stream` HOST). It is one piece: its
    own writes count as done before its own reads. Freed: nobody may read it before it is written again."""

    stream: int
    label: str
    reads: frozenset[Resource] = NOTHING
    writes: frozenset[Resource] = NOTHING
    frees: frozenset[Resource] = NOTHING


@dataclass(frozen=True, slots=True)
class Record:
    stream: int
    event: int


@dataclass(frozen=True, slots=True)
class Wait:
    """`stream` HOST: the host has seen that the event is done."""

    stream: int
    event: int


@dataclass(frozen=True, slots=True)
class Drain:
    """The host has waited for all work of a stream."""

    stream: int


Op = Access | Record | Wait | Drain
Kind = Literal["race", "stale read"]


class Violation(NamedTuple):
    """Positions in the trace. A race: nothing orders `first` and `second`, and one of them changes the
    resource. A stale read: `second` reads what nobody has written since `first` freed it, or at all: None."""

    kind: Kind
    resource: Resource
    first: int | None
    second: int


Clock = dict[int, int]
"""Per stream, how many of its operations are known to be done."""


@dataclass(slots=True)
class _Clocks:
    now: defaultdict[int, Clock] = field(default_factory=lambda: defaultdict(dict))
    events: dict[int, Clock] = field(default_factory=dict)

    def apply(self, op: Op) -> Clock:
        """The clock of `op`: what is done when it runs, itself included."""
        match op:
            case Wait(stream, event):
                _join(self.now[stream], self.events.get(event, {}))
            case Drain(stream):
                _join(self.now[HOST], self.now[stream])
        actor = HOST if isinstance(op, Drain) else op.stream
        clock = self.now[actor]
        _join(clock, self.now[HOST])
        clock[actor] = clock.get(actor, 0) + 1
        if isinstance(op, Record):
            self.events[op.event] = dict(clock)
        return clock


def _join(clock: Clock, other: Clock) -> None:
    for actor, count in other.items():
        clock[actor] = max(clock.get(actor, 0), count)


class _Seen(NamedTuple):
    """An access of one resource: its place in the trace, its stream and its number there."""

    at: int
    stream: int
    number: int

    def is_before(self, clock: Clock) -> bool:
        return clock.get(self.stream, 0) >= self.number


@dataclass(slots=True)
class _History:
    """What a later access of a resource must be ordered after: the latest write or free, and the reads since.
    Whatever is ordered after a change is ordered after all that the change is ordered after."""

    reads: list[_Seen] = field(default_factory=list)
    change: _Seen | None = None
    is_written: bool = False


def violations(trace: Sequence[Op]) -> list[Violation]:
    """Empty when every schedule that the trace allows does the same. Complete per resource: a resource with
    a race has at least one in the list; its stale reads are certain only if it has none."""
    return list(_walk(trace))


def _walk(trace: Sequence[Op]) -> Iterator[Violation]:
    clocks, histories = _Clocks(), defaultdict[Resource, _History](_History)
    for index, op in enumerate(trace):
        clock = clocks.apply(op)
        if not isinstance(op, Access):
            continue
        seen = _Seen(index, op.stream, clock[op.stream])
        for resource in sorted(op.writes | op.frees, key=repr):
            assert not (resource in op.writes and resource in op.frees), f"{op} writes and frees {resource}"
            yield from _changed(histories[resource], resource, seen, clock, resource in op.writes)
        for resource in sorted(op.reads, key=repr):
            yield from _read(histories[resource], resource, seen, clock)


def _changed(
    history: _History, resource: Resource, seen: _Seen, clock: Clock, is_write: bool
) -> Iterator[Violation]:
    for old in [*history.reads, *([history.change] if history.change else [])]:
        if not old.is_before(clock):
            yield Violation("race", resource, old.at, seen.at)
    history.reads, history.change, history.is_written = [], seen, is_write


def _read(history: _History, resource: Resource, seen: _Seen, clock: Clock) -> Iterator[Violation]:
    change = history.change
    if change is not None and not change.is_before(clock):
        yield Violation("race", resource, change.at, seen.at)
    if not history.is_written:
        yield Violation("stale read", resource, change.at if change else None, seen.at)
    history.reads.append(seen)


def explain(trace: Sequence[Op], found: Sequence[Violation]) -> str:
    """For people: one line a violation."""
    lines = []
    for kind, resource, first, second in found:
        other = "" if first is None else f" and #{first} {trace[first]}"
        lines.append(f"{kind} of {resource!r}: #{second} {trace[second]}{other}")
    return "\n".join(lines)
