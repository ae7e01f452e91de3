"""A CUDA driver without a GPU: enforces the API's rules, and records what was launched.

What the driver would refuse raises CudaError, as the real one does. What the API leaves undefined, and what
our own rules forbid (work on the default stream, a wait for nothing, a graph away from its SMs), raises
CudaMisuseError. Work "runs" when it is launched; whether an event is *seen* to be done is another matter, see
`random_progress`.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from support.fake_cuda_parts import (
    CudaMisuseError,
    EventState,
    FakeSms,
    GraphState,
    Kernel,
    Shape,
    StreamState,
    refused,
    require,
)
from support.happens_before import HOST, Access, Drain, Op, Record, Resource, Wait, explain, violations

from semipd.devices.cuda.driver.interface import (
    Event,
    Graph,
    GreenContext,
    Stream,
    Versions,
)

STREAM_CAPTURE_UNSUPPORTED = 900

PlacementOf = Callable[[GreenContext | None, frozenset[int]], frozenset[int]]


class FakeCuda(FakeSms):
    """See semipd.devices.cuda.driver.interface.Driver.

    Attributes:
        trace: everything launched, recorded and waited for, in the host's order.
        priorities: of every stream ever made.
        log: creations and destructions, e.g. "create stream 7".
        partition: the SMs, and whether the driver merges resources (`partition.can_merge`).
        memory: free and total bytes.
        placement_of: what the placement of a context answers, given the truth.
        serialises: (busy, other): whether work of the other stream waits for that of the busy one.
    """

    def __init__(
        self,
        shape: Shape | None = None,
        *,
        versions: Versions | None = None,
        random_progress: random.Random | None = None,
    ) -> None:
        """`random_progress`: an event is only sometimes seen to be done; without it, at once."""
        super().__init__(shape or Shape())
        self.memory = (130 * 2**30, 140 * 2**30)
        self.placement_of: Callable[[GreenContext | None, frozenset[int]], frozenset[int]] = lambda _, ids: (
            ids
        )
        self.serialises: Callable[[Stream, Stream], bool] = lambda busy, other: busy == other
        self.trace: list[Op] = []
        self.priorities: dict[Stream, int] = {}
        self._versions = versions or Versions(13000, "13.0.3")
        self._random = random_progress
        self._streams: dict[Stream, StreamState] = {}
        self._events: dict[Event, EventState] = {}
        self._graphs: dict[Graph, GraphState] = {}
        self._capturing: tuple[Stream, list[Kernel]] | None = None
        self._replaying: list[Kernel] | None = None
        self._busy: set[Stream] = set()

    # ---- for tests -----------------------------------------------------------------------------

    def launch(
        self,
        label: str,
        *,
        reads: Iterable[Resource] = (),
        writes: Iterable[Resource] = (),
        constants: tuple[object, ...] = (),
    ) -> None:
        """A kernel or copy on the current stream. `constants`: host values it was launched with, which a
        graph freezes: replaying with others is misuse."""
        stream, kernel = self._current(), (label, constants)
        if self._capturing is not None:
            capturing, kernels = self._capturing
            require(stream == capturing, f"{label} on stream {stream} while stream {capturing} is captured")
            kernels.append(kernel)
            return
        if self._replaying is not None:
            captured = self._replaying.pop(0) if self._replaying else None
            require(captured == kernel, f"captured {captured}, replayed {kernel}")
        self._streams[stream].launched += 1
        self.trace.append(Access(stream, label, frozenset(reads), frozenset(writes)))

    def host(
        self,
        label: str,
        *,
        reads: Iterable[Resource] = (),
        writes: Iterable[Resource] = (),
        frees: Iterable[Resource] = (),
    ) -> None:
        """The host itself reads or writes memory that the device uses, or gives a block back."""
        self.trace.append(Access(HOST, label, frozenset(reads), frozenset(writes), frozenset(frees)))

    def check_order(self) -> None:
        """Every access in the trace is ordered as it must be, whatever the hardware does."""
        found = violations(self.trace)
        assert not found, explain(self.trace, found[:10])

    def stream_sms(self, stream: Stream) -> frozenset[int]:
        context = self._stream(stream).context
        return self.partition.everything if context is None else self._contexts[context]

    def alive(self) -> list[str]:
        """What has not been destroyed."""
        tables: list[Iterable[int]] = [self._contexts, self._streams, self._events, self._graphs]
        kinds = zip(("context", "stream", "event", "graph"), tables, strict=True)
        return [f"{kind} {handle}" for kind, table in kinds for handle in table]

    # ---- the driver: general -------------------------------------------------------------------

    def versions(self) -> Versions:
        return self._versions

    def device_name(self) -> str:
        return "Fake GPU"

    def device_uuid(self) -> str:
        return "00000000-0000-0000-0000-000000000000"

    def memory_bytes(self) -> tuple[int, int]:
        self._called("memory_bytes")
        return self.memory

    def release_cached(self) -> None:
        self._called("release_cached")
        self.log.append("release cached")

    # ---- partitioning --------------------------------------------------------------------------

    def destroy_green_context(self, context: GreenContext) -> None:
        self._called("destroy_green_context")
        self._context(context)
        streams = [stream for stream, state in self._streams.items() if state.context == context]
        graphs = [graph for graph, state in self._graphs.items() if state.context == context]
        require(not streams, f"context {context} destroyed before its streams {streams}")
        require(not graphs, f"context {context} destroyed before its graphs {graphs}")
        del self._contexts[context]
        self.log.append(f"destroy context {context}")

    def placement(self, stream: Stream, num_ctas: int, spin_ns: int) -> frozenset[int]:
        """CTAs that do not stay do not spread: without spinning a few SMs do all the work."""
        self._called("placement")
        state = self._stream(stream)
        truth = sorted(self.placement_of(state.context, self.stream_sms(stream)))
        self._busy = {busy for busy in self._busy if not self.serialises(busy, stream)}
        self.synchronize_stream(stream)
        return frozenset(truth[: num_ctas if spin_ns > 0 else 1])

    def occupy(self, stream: Stream, num_ctas: int, spin_ns: int) -> None:
        """Runs until the host, or work behind it in the same hardware queue, has waited for it."""
        self._called("occupy")
        self._stream(stream).launched += 1
        self._busy.add(stream)

    # ---- streams and events --------------------------------------------------------------------

    def priority_range(self) -> tuple[int, int]:
        self._called("priority_range")
        return 0, -5

    def create_stream(self, priority: int, context: GreenContext | None) -> Stream:
        self._called("create_stream")
        require(-5 <= priority <= 0, f"priority {priority} would silently be clamped")
        if context is not None:
            self._context(context)
        stream = Stream(self._created("stream"))
        self._streams[stream] = StreamState(context)
        self.priorities[stream] = priority
        return stream

    def stream_context(self, stream: Stream) -> GreenContext | None:
        self._called("stream_context")
        return self._stream(stream).context

    def synchronize_stream(self, stream: Stream) -> None:
        self._called("synchronize_stream")
        state = self._stream(stream)
        self._refuse_in_graph("cuStreamSynchronize")
        self._finish(stream, state.launched)
        self.trace.append(Drain(stream))

    def destroy_stream(self, stream: Stream) -> None:
        self._called("destroy_stream")
        state = self._stream(stream)
        require(state.done == state.launched, f"stream {stream} destroyed with work nobody waited for")
        graphs = [graph for graph, captured in self._graphs.items() if captured.stream == stream]
        require(not graphs, f"stream {stream} destroyed before the graphs {graphs} captured on it")
        del self._streams[stream]
        self.log.append(f"destroy stream {stream}")

    def create_event(self, *, timing: bool = False) -> Event:
        self._called("create_event")
        event = Event(self._created("event"))
        self._events[event] = EventState(timing)
        return event

    def record_event(self, event: Event, stream: Stream) -> None:
        self._called("record_event")
        state, stream_state = self._event(event), self._stream(stream)
        self._refuse_event_in_graph(stream)
        stream_state.launched += 1
        state.record, state.at_ms = (stream, stream_state.launched), float(len(self.trace))
        self.trace.append(Record(stream, event))

    def wait_event(self, stream: Stream, event: Event) -> None:
        self._called("wait_event")
        state, record = self._stream(stream), self._recorded(event)
        self._refuse_event_in_graph(stream)
        state.launched += 1
        state.waits.append((state.launched, *record))
        self.trace.append(Wait(stream, event))

    def event_done(self, event: Event) -> bool:
        self._called("event_done")
        stream, number = self._recorded(event)
        if stream in self._busy:
            return False
        if self._is_ahead(stream, number) and self._random is not None and self._random.random() < 0.7:
            return False
        self._finish(stream, number)
        self.trace.append(Wait(HOST, event))
        return True

    def synchronize_event(self, event: Event) -> None:
        self._called("synchronize_event")
        self._refuse_in_graph("cuEventSynchronize")
        self._finish(*self._recorded(event))
        self.trace.append(Wait(HOST, event))

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """A millisecond for everything traced between."""
        self._called("elapsed_ms")
        for event in (start, end):
            require(self._event(event).timing, f"event {event} was made without timing")
            require(not self._is_ahead(*self._recorded(event)), f"event {event} is not known to be done")
        return self._events[end].at_ms - self._events[start].at_ms

    def destroy_event(self, event: Event) -> None:
        self._called("destroy_event")
        self._event(event)
        del self._events[event]
        self.log.append(f"destroy event {event}")

    # ---- launching -----------------------------------------------------------------------------

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        self._called("on")
        self._stream(stream)
        before = getattr(self._thread, "current", None)
        self._thread.current = stream
        try:
            yield
        finally:
            self._thread.current = before

    def capture(self, stream: Stream, body: Callable[[], None]) -> Graph:
        """Replaying runs `body` again, and compares what it launches."""
        self._called("capture")
        state = self._stream(stream)
        require(self._capturing is None and self._replaying is None, "captures do not nest")
        busy = [s for s, other in self._streams.items() if other.done < other.launched]
        require(not busy, f"capture while work on streams {busy} may still run")
        kernels: list[Kernel] = []
        self._capturing = (stream, kernels)
        try:
            with self.on(stream):
                body()
        finally:
            self._capturing = None
        require(bool(kernels), "captured an empty graph")
        graph = Graph(self._created("graph"))
        self._graphs[graph] = GraphState(stream, state.context, body, tuple(kernels))
        return graph

    def launch_graph(self, graph: Graph, stream: Stream) -> None:
        self._called("launch_graph")
        captured, state = self._graph(graph), self._stream(stream)
        require(
            captured.context == state.context,
            f"graph {graph} has the SMs of context {captured.context}, stream {stream} of {state.context}",
        )
        self._refuse_in_graph("cuGraphLaunch")
        self._replaying = list(captured.kernels)
        try:
            with self.on(stream):
                captured.body()
            require(not self._replaying, f"captured, but not replayed: {self._replaying}")
        finally:
            self._replaying = None

    def destroy_graph(self, graph: Graph) -> None:
        self._called("destroy_graph")
        self._graph(graph)
        del self._graphs[graph]
        self.log.append(f"destroy graph {graph}")

    # ---- rules ---------------------------------------------------------------------------------

    def _stream(self, stream: Stream) -> StreamState:
        require(stream in self._streams, f"stream {stream} does not exist")
        return self._streams[stream]

    def _event(self, event: Event) -> EventState:
        require(event in self._events, f"event {event} does not exist")
        return self._events[event]

    def _graph(self, graph: Graph) -> GraphState:
        require(graph in self._graphs, f"graph {graph} does not exist")
        return self._graphs[graph]

    def _recorded(self, event: Event) -> tuple[Stream, int]:
        record = self._event(event).record
        if record is None:
            raise CudaMisuseError(f"event {event} was never recorded: a wait for it waits for nothing")
        return record

    def _current(self) -> Stream:
        stream: Stream | None = getattr(self._thread, "current", None)
        if stream is None:
            raise CudaMisuseError("launched on the default stream")
        self._stream(stream)
        return stream

    def _refuse_event_in_graph(self, stream: Stream) -> None:
        inside = self._capturing is not None or self._replaying is not None
        require(not inside, f"an event of stream {stream} inside a graph")

    def _refuse_in_graph(self, call: str) -> None:
        if self._capturing is not None or self._replaying is not None:
            raise refused(call, STREAM_CAPTURE_UNSUPPORTED)

    def _is_ahead(self, stream: Stream, number: int) -> bool:
        """Not known to be done. A stream that is gone was drained before."""
        return stream in self._streams and self._streams[stream].done < number

    def _finish(self, stream: Stream, number: int) -> None:
        """Work is done only with all that it is ordered after."""
        todo = [(stream, number)]
        while todo:
            stream, number = todo.pop()
            if not self._is_ahead(stream, number):
                continue
            state = self._streams[stream]
            state.done = number
            self._busy.discard(stream)
            todo += [(source, up_to) for at, source, up_to in state.waits if at <= number]
            state.waits = [wait for wait in state.waits if wait[0] > number]
