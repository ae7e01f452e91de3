"""The real driver: cuda-bindings for contexts, streams and events, torch for what its allocator must know."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from itertools import count
from typing import Any, NamedTuple
from uuid import UUID

from semipd.core.errors import SemipdError
from semipd.devices.cuda.driver.interface import (
    CudaError,
    Event,
    Graph,
    GreenContext,
    SmResource,
    SmSplit,
    Stream,
    Versions,
)

# Numbers, not names: cuda-bindings 13.0 and 13.5 call some of these enums differently.
_SUCCESS = 0
_NOT_READY = 600
_SM_RESOURCE = 1
_GREEN_CONTEXT_DEFAULT_STREAM = 0x1
_STREAM_NON_BLOCKING = 0x1
_EVENT_BLOCKING_SYNC = 0x1
_EVENT_DISABLE_TIMING = 0x2

_HINTS = {
    2: "Device memory is full: lower kv_fraction, kv_bytes or max_num_seqs, or stop what else uses the GPU.",
    100: "No CUDA device is visible: look at nvidia-smi and CUDA_VISIBLE_DEVICES.",
    201: "The calling thread has no CUDA context; this is a bug, please report it.",
    214: "The GPU's memory has an uncorrectable error: look at nvidia-smi -q, and reset or replace the GPU.",
    700: "A kernel touched memory outside its buffers. Nothing on this GPU context works after that.",
    702: "A kernel ran longer than the display's time limit. Use a GPU without a display.",
    709: "The context is gone; this is a bug, please report it.",
    719: "A kernel failed. Nothing on this GPU context works after that; dmesg may show an Xid.",
    801: "This GPU or driver does not support the call.",
    803: "The driver and its libraries are of different versions: reload the driver or reboot.",
    805: "The MPS server cannot be reached: unset CUDA_MPS_PIPE_DIRECTORY; semipd needs no MPS.",
    914: "The driver refuses the SM resource.",
    915: "The driver refuses this combination of SM resources.",
}
_OTHER_HINT = "Look the number up under CUresult in the CUDA driver API reference; dmesg may say more."

_INSTALL_HINT = "Install cuda-bindings 13, for example with pip install 'semipd[gpu]', or use --device cpu."


class _Captured(NamedTuple):
    """torch's CUDAGraph, its stream, and the handle of the memory that the graphs of this stream work in."""

    graph: Any
    stream: Stream
    pool: Any


class CudaDriver:
    """See driver.Driver. One per process and device."""

    def __init__(self, api: Any, torch: Any, ordinal: int) -> None:
        self._api = api
        self._torch = torch
        self._ordinal = ordinal
        self._device = self._call("cuDeviceGet", ordinal)
        self._primary = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._sm_type = api.CUdevResourceType(_SM_RESOURCE)
        self._torch_streams: dict[Stream, Any] = {}
        self._pools: dict[Stream, Any] = {}
        self._graphs: dict[Graph, _Captured] = {}
        self._graph_numbers = count(1)
        self._buffers: dict[str, Any] = {}
        self.bind_thread()

    @classmethod
    def open(cls, ordinal: int = 0) -> "CudaDriver":
        """Start CUDA in this process and bind the calling thread. The environment is set before.

        Raises SemipdError(`cuda_unavailable`): no package, driver library or device; CudaError.
        """
        try:
            from cuda.bindings import driver as api
        except ImportError as error:
            raise SemipdError(
                "cuda_unavailable", f"cuda-bindings cannot be imported ({error}).", _INSTALL_HINT
            ) from error
        torch = import_module("torch")
        # torch makes the primary context, so that its flags and libraries are as torch wants them.
        try:
            torch.cuda.init()
            torch.cuda.set_device(ordinal)
        except (RuntimeError, AssertionError) as error:
            message = f"torch {torch.__version__} cannot use CUDA device {ordinal} ({error})."
            hint = "Look at nvidia-smi, CUDA_VISIBLE_DEVICES and torch.version.cuda, or use --device cpu."
            raise SemipdError("cuda_unavailable", message, hint) from error
        return cls(api, torch, ordinal)

    def close(self) -> None:
        """Give the primary context back; torch keeps it until the process ends."""
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def bind_thread(self) -> None:
        # Both: torch does not make a context current that it believes to be.
        self._torch.cuda.set_device(self._ordinal)
        self._call("cuCtxSetCurrent", self._primary)

    def versions(self) -> Versions:
        return Versions(self._call("cuDriverGetVersion"), metadata.version("cuda-bindings"))

    def device_name(self) -> str:
        name: bytes = self._call("cuDeviceGetName", 256, self._device)
        return name.split(b"\0")[0].decode()

    def device_uuid(self) -> str:
        return str(UUID(bytes=bytes(self._call("cuDeviceGetUuid", self._device).bytes)))

    def memory_bytes(self) -> tuple[int, int]:
        free, total = self._call("cuMemGetInfo")
        return free, total

    def release_cached(self) -> None:
        self._torch.cuda.empty_cache()

    def sm_resource(self) -> SmResource:
        return _resource(self._call("cuDeviceGetDevResource", self._device, self._sm_type))

    def split_sms(self, whole: SmResource, num_groups: int, min_sms: int) -> SmSplit:
        groups, made, rest = self._call("cuDevSmResourceSplitByCount", num_groups, whole.handle, 0, min_sms)
        # The list is as long as was asked for; only the first `made` are groups.
        remainder = _resource(rest) if int(rest.type) == _SM_RESOURCE and rest.sm.smCount else None
        return SmSplit(tuple(_resource(group) for group in groups[:made]), remainder)

    def create_green_context(self, resources: Sequence[SmResource]) -> GreenContext:
        handles = [resource.handle for resource in resources]
        description = self._call("cuDevResourceGenerateDesc", handles, len(handles))
        context = self._call("cuGreenCtxCreate", description, self._device, _GREEN_CONTEXT_DEFAULT_STREAM)
        return GreenContext(int(context))

    def green_context_sms(self, context: GreenContext) -> int:
        return _resource(self._call("cuGreenCtxGetDevResource", context, self._sm_type)).sm_count

    def destroy_green_context(self, context: GreenContext) -> None:
        self._call("cuGreenCtxDestroy", context)

    def placement(self, stream: Stream, num_ctas: int, spin_ns: int) -> frozenset[int]:
        smids = self._launch_placement("placement", stream, num_ctas, spin_ns)
        with self.on(stream):
            return frozenset(smids.tolist())

    def occupy(self, stream: Stream, num_ctas: int, spin_ns: int) -> None:
        self._launch_placement("occupy", stream, num_ctas, spin_ns)

    def _launch_placement(self, purpose: str, stream: Stream, num_ctas: int, spin_ns: int) -> Any:
        """int32 [num_ctas], which the kernel fills."""
        try:
            from semipd.devices.cuda.driver.placement_kernel import launch_placement

            smids = self._buffer(purpose, num_ctas)
            with self.on(stream):
                launch_placement(smids, spin_ns)
        except Exception as error:
            # Triton has many ways to fail: no compiler, no folder for its cache, a version we do not know.
            message = f"The placement kernel did not run ({type(error).__name__}: {error})."
            hint = "Triton needs a C compiler and a writable cache folder (TRITON_CACHE_DIR)."
            raise SemipdError("placement_failed", message, hint) from error
        return smids

    def _buffer(self, purpose: str, num_ctas: int) -> Any:
        """One for counting and one for keeping a lane busy meanwhile, whatever the stream: a placement check
        ends before the next one starts, and what busy lanes write nobody reads."""
        buffer = self._buffers.get(purpose)
        if buffer is None or buffer.numel() < num_ctas:
            buffer = self._torch.empty(num_ctas, dtype=self._torch.int32, device=f"cuda:{self._ordinal}")
            self._buffers[purpose] = buffer
            self._torch.cuda.synchronize()
        return buffer[:num_ctas]

    def priority_range(self) -> tuple[int, int]:
        least, greatest = self._call("cuCtxGetStreamPriorityRange")
        return least, greatest

    def create_stream(self, priority: int, context: GreenContext | None) -> Stream:
        if context is None:
            return Stream(int(self._call("cuStreamCreateWithPriority", _STREAM_NON_BLOCKING, priority)))
        return Stream(int(self._call("cuGreenCtxStreamCreate", context, _STREAM_NON_BLOCKING, priority)))

    def stream_context(self, stream: Stream) -> GreenContext | None:
        _, green = self._call("cuStreamGetCtx_v2", stream)
        return GreenContext(int(green)) or None

    def synchronize_stream(self, stream: Stream) -> None:
        self._call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: Stream) -> None:
        self._torch_streams.pop(stream, None)
        self._pools.pop(stream, None)
        self._call("cuStreamDestroy", stream)

    def create_event(self, *, timing: bool = False) -> Event:
        flags = _EVENT_BLOCKING_SYNC | (0 if timing else _EVENT_DISABLE_TIMING)
        return Event(int(self._call("cuEventCreate", flags)))

    def record_event(self, event: Event, stream: Stream) -> None:
        self._call("cuEventRecord", event, stream)

    def wait_event(self, stream: Stream, event: Event) -> None:
        self._call("cuStreamWaitEvent", stream, event, 0)

    def event_done(self, event: Event) -> bool:
        # Asked every 20 us while work is in flight: an exception for "not yet" would cost more than asking.
        (status,) = self._api.cuEventQuery(event)
        if int(status) == _NOT_READY:
            return False
        _check("cuEventQuery", status)
        return True

    def synchronize_event(self, event: Event) -> None:
        self._call("cuEventSynchronize", event)

    def elapsed_ms(self, start: Event, end: Event) -> float:
        return float(self._call("cuEventElapsedTime", start, end))

    def destroy_event(self, event: Event) -> None:
        self._call("cuEventDestroy", event)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        with self._torch.cuda.stream(self._torch_stream(stream)):
            yield

    def capture(self, stream: Stream, body: Callable[[], None]) -> Graph:
        try:
            captured = self._capture(stream, body)
        except self._torch.cuda.OutOfMemoryError:
            # While it captures, torch's allocator cannot take back what other streams have cached.
            self.release_cached()
            captured = self._capture(stream, body)
        graph = Graph(next(self._graph_numbers))
        self._graphs[graph] = captured
        self._pools[stream] = captured.pool
        return graph

    def _capture(self, stream: Stream, body: Callable[[], None]) -> "_Captured":
        """torch's capture, not the driver's: its allocator must keep the graph's scratch memory for the
        graph. But not torch.cuda.graph, which gives all cached device and pinned memory back first: the next
        steps would wait for the driver to map it again."""
        graph = self._torch.cuda.CUDAGraph()
        # The handle of a pool without graphs is dead, also when its only capture failed: torch asserts that
        # nobody captures into it again.
        pool = self._pools.get(stream) or self._torch.cuda.graph_pool_handle()
        self._torch.cuda.synchronize()
        with self.on(stream):
            # Other threads of the engine may look at events meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                body()
            finally:
                graph.capture_end()
        return _Captured(graph, stream, pool)

    def launch_graph(self, graph: Graph, stream: Stream) -> None:
        with self.on(stream):
            self._graphs[graph].graph.replay()

    def destroy_graph(self, graph: Graph) -> None:
        # Resetting also frees the cuBLAS workspaces that other graphs of the stream still write to (torch
        # issue 193402). So all graphs of a stream go together, when none of them will run again.
        captured, stream, _ = self._graphs.pop(graph)
        captured.reset()
        if all(other.stream != stream for other in self._graphs.values()):
            self._pools.pop(stream, None)

    def _torch_stream(self, stream: Stream) -> Any:
        found = self._torch_streams.get(stream)
        if found is None:
            found = self._torch.cuda.ExternalStream(stream, device=f"cuda:{self._ordinal}")
            self._torch_streams[stream] = found
        return found

    def _call(self, name: str, *args: object) -> Any:
        """What the call returns beside its status: nothing, one value or a tuple. Raises CudaError."""
        try:
            status, *values = getattr(self._api, name)(*args)
        except (RuntimeError, AttributeError) as error:  # the library, or the function in it, is missing
            hint = "Update the NVIDIA driver and cuda-bindings, or use --device cpu."
            raise SemipdError("cuda_unavailable", f"{name} cannot be called ({error}).", hint) from error
        _check(name, status)
        return values[0] if len(values) == 1 else tuple(values)


def _check(name: str, status: Any) -> None:
    """Raises CudaError for whatever is not success."""
    if int(status) != _SUCCESS:
        word = getattr(status, "name", "unknown error")
        raise CudaError(name, int(status), word, _HINTS.get(int(status), _OTHER_HINT))


def _resource(handle: Any) -> SmResource:
    # Bindings before 13.0 do not say the smallest size.
    return SmResource(handle.sm.smCount, getattr(handle.sm, "minSmPartitionSize", 0), handle)
