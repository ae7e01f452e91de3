"""The CUDA driver calls that the lanes need, as a seam: real in `bindings`, in tests a fake with its rules.

Handles are the driver's own numbers. A call that the driver refuses raises CudaError.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, NewType, Protocol

from semipd.core.errors import SemipdError

GreenContext = NewType("GreenContext", int)
Stream = NewType("Stream", int)
Event = NewType("Event", int)
Graph = NewType("Graph", int)

INVALID_RESOURCE_TYPE = 914
INVALID_RESOURCE_CONFIGURATION = 915


class CudaError(SemipdError):
    """A driver call failed; code `cuda_error`.

    Attributes:
        call: the driver's function, e.g. "cuGreenCtxCreate".
        status: its CUresult; `name` is the enum's word for it.
    """

    def __init__(self, call: str, status: int, name: str, hint: str) -> None:
        super().__init__("cuda_error", f"{call} failed: {name} ({status}).", hint)
        self.call = call
        self.status = status
        self.name = name


class Versions(NamedTuple):
    """`driver`: the CUDA version it supports, 1000 * major + 10 * minor; `bindings`: the package's."""

    driver: int
    bindings: str


def cuda_version(number: int) -> str:
    """13000 is "13.0"."""
    return f"{number // 1000}.{number % 1000 // 10}"


@dataclass(frozen=True, slots=True, eq=False)
class SmResource:
    """A set of SMs as the driver hands it out. Which SMs they are is in `handle` only, so a resource is
    passed on, never built by hand.

    Attributes:
        sm_count: SMs in it.
        min_sms: smallest part the driver makes of it; 0 where it says nothing.
    """

    sm_count: int
    min_sms: int
    handle: object


class SmSplit(NamedTuple):
    """Outputs of one split call: `groups` of equal size, and what is left. They are disjoint."""

    groups: tuple[SmResource, ...]
    remainder: SmResource | None


class Driver(Protocol):
    """One device. Every method but `bind_thread` needs a thread that called it.

    Nothing blocks, except where it is said. Streams, events and graphs may be used from any bound thread,
    each from one at a time.
    """

    def bind_thread(self) -> None:
        """Make the device's primary context current in the calling thread."""

    def versions(self) -> Versions: ...

    def device_name(self) -> str: ...

    def device_uuid(self) -> str:
        """Of the device, or of the MIG instance, as 8-4-4-4-12 hexadecimal digits."""

    def memory_bytes(self) -> tuple[int, int]:
        """Free and total bytes of the device, all processes counted (cuMemGetInfo)."""

    def release_cached(self) -> None:
        """What the allocator holds and nobody uses goes back to the device (torch.cuda.empty_cache). Blocks
        until the device is idle; for start-up only."""

    def sm_resource(self) -> SmResource:
        """Every SM of the device (cuDeviceGetDevResource)."""

    def split_sms(self, whole: SmResource, num_groups: int, min_sms: int) -> SmSplit:
        """Up to `num_groups` equal groups of at least `min_sms` (cuDevSmResourceSplitByCount).
        `whole` is of a device or a green context, never an output of a split."""

    def create_green_context(self, resources: Sequence[SmResource]) -> GreenContext:
        """A context confined to these SMs, all outputs of the same `split_sms` (cuDevResourceGenerateDesc,
        cuGreenCtxCreate)."""

    def green_context_sms(self, context: GreenContext) -> int:
        """How many SMs the driver says it has (cuGreenCtxGetDevResource)."""

    def destroy_green_context(self, context: GreenContext) -> None:
        """Its streams are destroyed and its work is done."""

    def placement(self, stream: Stream, num_ctas: int, spin_ns: int) -> frozenset[int]:
        """The SMs (%smid) on which CTAs launched on the stream really ran. Each of `num_ctas` stays
        `spin_ns`, so that they spread over every SM they may use. Blocks until they are done."""

    def occupy(self, stream: Stream, num_ctas: int, spin_ns: int) -> None:
        """Launch such CTAs and do not wait for them."""

    def priority_range(self) -> tuple[int, int]:
        """Least and greatest priority; a lower number is more urgent, so the second is the smaller."""

    def create_stream(self, priority: int, context: GreenContext | None) -> Stream:
        """Non-blocking: no implicit order with the default stream. None: on the whole device."""

    def stream_context(self, stream: Stream) -> GreenContext | None: ...

    def synchronize_stream(self, stream: Stream) -> None:
        """Block until all its work is done."""

    def destroy_stream(self, stream: Stream) -> None: ...

    def create_event(self, *, timing: bool = False) -> Event:
        """Waiting for it on the host sleeps instead of spinning."""

    def record_event(self, event: Event, stream: Stream) -> None:
        """The event stands for the stream's work so far, and no longer for what it stood for before."""

    def wait_event(self, stream: Stream, event: Event) -> None:
        """What is launched on `stream` from now on waits for the event's latest record."""

    def event_done(self, event: Event) -> bool: ...

    def synchronize_event(self, event: Event) -> None:
        """Block until the work it stands for is done; other Python threads run meanwhile."""

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Device time between two done events made with `timing`."""

    def destroy_event(self, event: Event) -> None: ...

    def on(self, stream: Stream) -> AbstractContextManager[None]:
        """What torch and Triton launch inside goes to this stream."""

    def capture(self, stream: Stream, body: Callable[[], None]) -> Graph:
        """What `body` launches, as a graph bound to the SMs of the stream's context. Graphs of one stream
        share scratch memory, so only one of them may run at a time. Blocks until the device is idle."""

    def launch_graph(self, graph: Graph, stream: Stream) -> None:
        """The stream sets the order only: the SMs are those of the capture."""

    def destroy_graph(self, graph: Graph) -> None: ...
