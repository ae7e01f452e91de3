"""Parts of the fake driver: its SMs and how they are divided, and what it remembers of streams and graphs."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from semipd.devices.cuda.driver.interface import (
    INVALID_RESOURCE_CONFIGURATION,
    CudaError,
    GreenContext,
    SmResource,
    SmSplit,
    Stream,
)

INVALID_VALUE = 1
OUT_OF_MEMORY = 2
INVALID_CONTEXT = 201


class CudaMisuseError(AssertionError):
    """The real driver would do anything, or what we never want."""


def require(rule: bool, broken: str) -> None:
    if not rule:
        raise CudaMisuseError(broken)


def refused(call: str, status: int) -> CudaError:
    return CudaError(call, status, "CUDA_ERROR_FAKE", "Ask the fake driver.")


@dataclass(frozen=True)
class Shape:
    """How a device's SMs fall into groups: `num_groups` of `group_sms`, and a remainder. `min_sms` is what
    the driver says is the smallest."""

    num_sms: int = 132
    group_sms: int = 8
    num_groups: int = 15
    min_sms: int = 8


@dataclass(frozen=True, eq=False)
class _Sms:
    """Behind SmResource.handle. `split_call` 0: not an output of a split."""

    ids: frozenset[int]
    split_call: int


class Partition:
    """`can_merge`: whether several resources may go into one descriptor. `num_splits`: split calls so far."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.everything = frozenset(range(shape.num_sms))
        self.can_merge = True
        self.num_splits = 0

    def whole(self) -> SmResource:
        return self._resource(self.everything, 0)

    def split(self, whole: SmResource, num_groups: int, min_sms: int) -> SmSplit:
        """Large groups are made of the smallest ones, so what these leave over is never in a group."""
        sms = _sms_of(whole)
        if sms.split_call or not 0 < min_sms <= len(sms.ids) or num_groups < 1:
            raise refused("cuDevSmResourceSplitByCount", INVALID_VALUE)
        self.num_splits += 1
        unit = self.shape.group_sms
        size = -(-max(min_sms, self.shape.min_sms) // unit) * unit
        num_groups = min(num_groups, self.shape.num_groups // (size // unit))
        ids = sorted(sms.ids)
        groups = [frozenset(ids[i * size : (i + 1) * size]) for i in range(num_groups)]
        rest = sms.ids.difference(*groups)
        remainder = self._resource(rest, self.num_splits) if rest else None
        return SmSplit(tuple(self._resource(group, self.num_splits) for group in groups), remainder)

    def merge(self, resources: Sequence[SmResource]) -> frozenset[int]:
        """The SMs of a context with these resources: all outputs of one split call, each once."""
        parts = [_sms_of(resource) for resource in resources]
        calls = {part.split_call for part in parts}
        if len(calls) != 1 or (len(parts) > 1 and (0 in calls or not self.can_merge)):
            raise refused("cuDevResourceGenerateDesc", INVALID_RESOURCE_CONFIGURATION)
        ids = frozenset[int]().union(*(part.ids for part in parts))
        require(len(ids) == sum(len(part.ids) for part in parts), "a resource stands twice in a descriptor")
        return ids

    def _resource(self, ids: frozenset[int], split_call: int) -> SmResource:
        return SmResource(len(ids), self.shape.min_sms, _Sms(ids, split_call))


def _sms_of(resource: SmResource) -> _Sms:
    assert isinstance(resource.handle, _Sms), f"{resource} was built by hand"
    return resource.handle


@dataclass
class StreamState:
    """`launched` operations so far; the first `done` of them are known to be done."""

    context: GreenContext | None
    launched: int = 0
    done: int = 0
    waits: list[tuple[int, Stream, int]] = field(default_factory=list)  # at, for stream, up to


Kernel = tuple[str, tuple[object, ...]]
"""Label and the host values it was launched with."""


@dataclass(frozen=True)
class GraphState:
    stream: Stream
    context: GreenContext | None
    body: Callable[[], None]
    kernels: tuple[Kernel, ...]


@dataclass
class EventState:
    """`record`: the operation of a stream that it stands for; `at_ms` only with timing."""

    timing: bool
    record: tuple[Stream, int] | None = None
    at_ms: float = 0.0


class FakeSms:
    """The half of the fake that deals with calls, threads and contexts; see fake_cuda.FakeCuda."""

    def __init__(self, shape: Shape) -> None:
        self.partition = Partition(shape)
        self.log: list[str] = []
        self._next_handle = 1
        self._calls: Counter[str] = Counter()
        self._failures: dict[str, tuple[range, int]] = {}
        self._contexts: dict[GreenContext, frozenset[int]] = {}
        self._thread = threading.local()

    def fail(self, call: str, *, at: int = 1, times: int = 1, status: int = OUT_OF_MEMORY) -> None:
        """The `at`-th call of a method from now, and the following `times - 1`, are refused."""
        first = self._calls[call] + at
        self._failures[call] = (range(first, first + times), status)

    def bind_thread(self) -> None:
        self._thread.is_bound = True

    def sm_resource(self) -> SmResource:
        self._called("sm_resource")
        return self.partition.whole()

    def split_sms(self, whole: SmResource, num_groups: int, min_sms: int) -> SmSplit:
        self._called("split_sms")
        return self.partition.split(whole, num_groups, min_sms)

    def create_green_context(self, resources: Sequence[SmResource]) -> GreenContext:
        self._called("create_green_context")
        ids = self.partition.merge(resources)
        context = GreenContext(self._created("context"))
        self._contexts[context] = ids
        return context

    def green_context_sms(self, context: GreenContext) -> int:
        self._called("green_context_sms")
        self._context(context)
        return len(self._contexts[context])

    def _called(self, call: str) -> None:
        if not getattr(self._thread, "is_bound", False):
            raise refused(call, INVALID_CONTEXT)
        self._calls[call] += 1
        calls, status = self._failures.get(call, (range(0), 0))
        if self._calls[call] in calls:
            raise refused(call, status)

    def _created(self, kind: str) -> int:
        """A handle; no two things have the same one, whatever their kinds."""
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self.log.append(f"create {kind} {handle}")
        return handle

    def _context(self, context: GreenContext) -> None:
        require(context in self._contexts, f"context {context} does not exist")
