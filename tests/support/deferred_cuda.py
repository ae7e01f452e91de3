"""A fake driver that runs launched work on CPU tensors as late and in as odd an order as CUDA may.

Each stream is a queue. Something runs only when the host asks whether an event is done, or waits; which
stream goes next is random, as far as the order within a stream and the waits for events allow. So a buffer
used again too early, a missing wait or a value taken from the wrong step changes tokens. All of it is also
recorded, so that `FakeCuda.check_order` finds what happened to go well.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from support.fake_cuda import FakeCuda
from support.fake_cuda_parts import CudaMisuseError, Shape
from support.happens_before import HOST, Access, Resource
from torch import Tensor

from semipd.devices.cuda.driver.interface import Event, Graph, Stream
from semipd.devices.cuda.driver.stream_work import Touched
from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.rows.staging import Staging

POISON = -(10**6)
"""What a staging buffer holds while nobody may read it."""


@dataclass(eq=False)
class _Record:
    """One recording of an event; a wait is for a recording, not for the event's name."""

    is_done: bool = False


@dataclass(eq=False)
class _Item:
    """Exactly one of the three: something to run, a recording to complete, a recording to wait for."""

    body: Callable[[], None] | None = None
    record: _Record | None = None
    wait: _Record | None = None

    @property
    def is_blocked(self) -> bool:
        return self.wait is not None and not self.wait.is_done


@dataclass
class _Queues:
    by_stream: defaultdict[Stream, deque[_Item]] = field(default_factory=lambda: defaultdict(deque))

    def runnable(self) -> list[Stream]:
        return [stream for stream, queue in self.by_stream.items() if queue and not queue[0].is_blocked]


class DeferredCuda(FakeCuda):
    """`max_run`: most pieces of work that run each time the host asks about an event; 0: the device stands
    still."""

    def __init__(self, rng: random.Random, *, shape: Shape | None = None, max_run: int = 3) -> None:
        super().__init__(shape)
        self._rng = rng
        self.max_run = max_run
        self._queues = _Queues()
        self._latest: dict[Event, _Record] = {}
        self._quiet = False
        self.labels: list[tuple[Stream, str]] = []

    # ---- launching -----------------------------------------------------------------------------

    def submit(
        self, stream: Stream, label: str, body: Callable[[], None], touched: Callable[[], Touched]
    ) -> None:
        """See stream_work.Submit."""
        reads, writes = touched()
        with self.on(stream):
            self.launch(label, reads=reads, writes=writes)
        self.labels.append((stream, label))

        def run() -> None:
            with super(DeferredCuda, self).on(stream):
                body()

        self._queues.by_stream[stream].append(_Item(body=run))

    def launch(
        self,
        label: str,
        *,
        reads: Iterable[Resource] = (),
        writes: Iterable[Resource] = (),
        constants: tuple[object, ...] = (),
    ) -> None:
        if not self._quiet:
            super().launch(label, reads=reads, writes=writes, constants=constants)

    def capture(self, stream: Stream, body: Callable[[], None]) -> Graph:
        """The launch inside stands for all kernels of the pass."""

        def traced() -> None:
            if self._capturing is not None:
                self.launch("pass")
            body()

        return super().capture(stream, traced)

    def launch_graph(self, graph: Graph, stream: Stream) -> None:
        """Called by work that runs late: its place in the trace is that of its `submit`."""
        captured = self._graph(graph)
        if captured.context != self._stream(stream).context:
            raise CudaMisuseError(f"graph {graph} was captured on other SMs than stream {stream} has")
        with self.on(stream):
            captured.body()

    # ---- events --------------------------------------------------------------------------------

    def record_event(self, event: Event, stream: Stream) -> None:
        super().record_event(event, stream)
        self._latest[event] = _Record()
        self._queues.by_stream[stream].append(_Item(record=self._latest[event]))

    def wait_event(self, stream: Stream, event: Event) -> None:
        super().wait_event(stream, event)
        self._queues.by_stream[stream].append(_Item(wait=self._latest[event]))

    def event_done(self, event: Event) -> bool:
        for _ in range(self._rng.randrange(self.max_run + 1)):
            self._run_one()
        return self._latest[event].is_done and super().event_done(event)

    def synchronize_event(self, event: Event) -> None:
        while not self._latest[event].is_done:
            assert self._run_one(), f"event {event} will never be done"
        super().synchronize_event(event)

    def synchronize_stream(self, stream: Stream) -> None:
        while self._queues.by_stream[stream]:
            assert self._run_one(), f"stream {stream} will never be done"
        super().synchronize_stream(stream)

    def _run_one(self) -> bool:
        """One item of a random stream; False when none may run."""
        streams = self._queues.runnable()
        if not streams:
            return False
        item = self._queues.by_stream[self._rng.choice(streams)].popleft()
        if item.record is not None:
            item.record.is_done = True
        if item.body is not None:
            self._quiet = True
            try:
                item.body()
            finally:
                self._quiet = False
        return True


class WatchedStaging(Staging):
    """Staging whose host side is in the trace, and whose buffers are spoilt whenever nobody owns them."""

    def __init__(self, driver: FakeCuda) -> None:
        super().__init__(pin=False)
        self._driver = driver
        self._written: set[int] = set()

    def take(self, num_elements: int, dtype: torch.dtype = torch.int32) -> Tensor:
        buffer = super().take(num_elements, dtype).fill_(POISON)
        self._driver.host("staging filled", writes=[("pinned", id(buffer))])
        return buffer

    def reserve(self, sizes: Iterable[LaneSize]) -> None:
        """Nothing has been lent yet."""
        with patch.object(WatchedStaging, "give_back", Staging.give_back):
            super().reserve(sizes)

    def give_back(self, buffers: Iterable[Tensor]) -> None:
        buffers = list(buffers)
        self._driver.host("staging read", reads=[("pinned", id(buffer)) for buffer in buffers])
        for buffer in buffers:
            buffer.fill_(POISON)
        super().give_back(buffers)


def host_frees(driver: FakeCuda, blocks: Iterable[int]) -> None:
    """The coordinator hands these blocks to somebody new: what they held is lost."""
    frees = frozenset(("kv", block) for block in blocks)
    driver.trace.append(Access(HOST, "blocks handed out", frees=frees))
