"""Launches that are prepared once and repeated: what a launch costs the host.

From `kernel[grid](...)` to its launcher Triton looks at every argument anew, and an operation checks its
tensors and chooses its configuration: 20 to 65 us of Python an operation, in every layer. Nearly all of it
depends on the *class* of the arguments only: of each tensor the dtype, shape, strides, device and address
modulo 16; of everything else the value. So an operation says what it launches for its arguments (a sequence
of `Launch`), and a `LaunchCache` keeps for each class the compiled kernels with all arguments but addresses.

A class holds more than what Triton compiles a kernel for (types; whether integers are 1 or multiples of 16;
the alignment of pointers), so all calls of one class mean the same compiled kernels with the same integers.
What else Triton looks at, its settings (`triton.knobs`) and a kernel's globals, does not change in serving.

Other versions of Triton than those below, the interpreter, arguments that are neither numbers nor tensors,
and launches that a profiler has hooked itself into go the ordinary way.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor

KNOWN_TRITON = ((3, 6), (3, 9))
"""Versions whose launchers were read: `CompiledKernel.run` takes the grid, the stream, the function, its
packed metadata, the launch's metadata, two hooks (these three may be None), then every argument of the
kernel, constants included."""

MAX_CLASSES = 1024
"""Of one operation; with one more, all are forgotten. A class holds the number of rows, and a prompt's last
chunk may have any; but the layers of a step share one. A class is about 1 KB, and 100 us to make anew."""

Repeat = Callable[[int, tuple[int, ...]], None]
"""(stream, addresses of the operation's tensors): launch once more."""


@dataclass(frozen=True, slots=True)
class Launch:
    """`kernel[(num_programs,)](*args, **constants)`.

    Attributes:
        args: its run-time arguments in order. Tensors are those the operation was given, or views of one;
            Triton's `TensorDescriptor` (for TMA) is of one of them.
        constants: its `tl.constexpr` arguments, and options such as `num_warps`.
    """

    kernel: Any
    num_programs: int
    args: tuple[Any, ...]
    constants: Mapping[str, Any]

    def run(self) -> Any:
        """The ordinary way. Returns Triton's compiled kernel; None in the interpreter."""
        return self.kernel[(self.num_programs,)](*self.args, **self.constants)


Plan = Callable[..., Sequence[Launch]]
"""(tensors, then everything else): checks them and says what to launch, in order. Depends on the class of its
arguments alone; raises SemipdError."""


class LaunchCache:
    """The launches of one operation, by the class of its arguments."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._known: dict[Hashable, tuple[Repeat, ...] | None] = {}
        _CACHES.append(self)

    def run(self, tensors: tuple[Tensor, ...], *others: Hashable) -> None:
        """Launch `plan(*tensors, *others)` on the current stream. Raises SemipdError."""
        addresses = tuple([tensor.data_ptr() for tensor in tensors])
        key = (
            others,
            tuple([address & 15 for address in addresses]),
            tuple([(t.dtype, t.shape, t.stride(), t.get_device()) for t in tensors]),
        )
        repeats = self._known.get(key)
        if repeats is None:
            self._run_ordinarily(key, tensors, others)
            return
        driver, settings = _triton()
        if settings.launch_enter_hook.calls or settings.launch_exit_hook.calls:
            self._run_ordinarily(key, tensors, others)
            return
        stream = driver.active.get_current_stream(driver.active.get_current_device())
        for repeat in repeats:
            repeat(stream, addresses)

    def _run_ordinarily(
        self, key: Hashable, tensors: tuple[Tensor, ...], others: tuple[Hashable, ...]
    ) -> None:
        launches = self._plan(*tensors, *others)
        compiled = [launch.run() for launch in launches]
        if key not in self._known:
            if len(self._known) >= MAX_CLASSES:
                self.forget()
            self._known[key] = _all_repeated(launches, compiled, tensors)

    def forget(self) -> None:
        self._known.clear()


_CACHES: list[LaunchCache] = []
"""One for each operation, for as long as the process lives."""


def forget_launches() -> None:
    """All of every operation: for whoever gives Triton another driver."""
    for launches in _CACHES:
        launches.forget()


def _all_repeated(
    launches: Sequence[Launch], compiled: Sequence[Any], tensors: tuple[Tensor, ...]
) -> tuple[Repeat, ...] | None:
    """The launches with the stream and the addresses of `tensors` left open. None: only the ordinary way."""
    if None in compiled or _triton_version() not in KNOWN_TRITON:
        return None
    repeats = list[Repeat]()
    for launch, kernel in zip(launches, compiled, strict=True):
        arguments = _arguments(launch, tensors)
        if arguments is None:
            return None
        repeats.append(_repeat(launch.num_programs, kernel, arguments, len(tensors)))
    return tuple(repeats)


class _Descriptor(NamedTuple):
    """A tensor descriptor of the operation's tensor number `idx`."""

    idx: int
    descriptor: Any


@dataclass(frozen=True, slots=True)
class _At:
    """As much of a tensor as Triton's launchers ask for when they encode its descriptor."""

    address: int

    def data_ptr(self) -> int:
        return self.address


def _mover(descriptor: Any) -> Callable[[int], Any]:
    """The same descriptor of memory at another address: each layer's pool has one. Encoding it is the
    launcher's, at every launch: a graph keeps the encoded one among the kernel's arguments."""

    @lru_cache(MAX_CLASSES)
    def at(address: int) -> Any:
        moved = copy(descriptor)
        moved.base = _At(address)
        return moved

    return at


class _Address(NamedTuple):
    """Of the operation's tensor number `idx`, `offset` bytes behind its first element."""

    idx: int
    offset: int


def _arguments(launch: Launch, tensors: tuple[Tensor, ...]) -> list[Any] | None:
    """All of the kernel's, in order, addresses in the place of tensors. None: one is of another kind."""
    values = [_place(argument, tensors) for argument in launch.args]
    names = launch.kernel.arg_names[len(values) :]
    return None if None in values else [*values, *(launch.constants[name] for name in names)]


def _place(argument: Any, tensors: tuple[Tensor, ...]) -> Any:
    """What stands for it between two launches; None: nothing does."""
    if isinstance(argument, Tensor):
        return _address(argument, tensors)
    if isinstance(argument, _triton_descriptor()):
        found = _address(argument.base, tensors)
        return _Descriptor(found.idx, argument) if found is not None and not found.offset else None
    return argument if isinstance(argument, int | float) else None


def _repeat(num_programs: int, compiled: Any, arguments: Sequence[Any], num_tensors: int) -> Repeat:
    """All that is done each time is to index (addresses of tensors, values, those of views, descriptors)."""
    places = (_Address, _Descriptor)
    values = tuple(None if isinstance(argument, places) else argument for argument in arguments)
    views = [argument for argument in arguments if isinstance(argument, _Address) and argument.offset]
    described = [argument for argument in arguments if isinstance(argument, _Descriptor)]
    movers = [(argument.idx, _mover(argument.descriptor)) for argument in described]

    def place(number: int, argument: Any) -> int:
        if isinstance(argument, _Descriptor):
            return num_tensors + len(values) + len(views) + described.index(argument)
        if not isinstance(argument, _Address):
            return num_tensors + number
        return num_tensors + len(values) + views.index(argument) if argument.offset else argument.idx

    pick = itemgetter(*(place(number, argument) for number, argument in enumerate(arguments)))
    run, metadata = compiled.run, compiled.packed_metadata

    def repeat(stream: int, addresses: tuple[int, ...]) -> None:
        pool = addresses + values
        if views:
            pool += tuple([addresses[idx] + offset for idx, offset in views])
        if movers:
            pool += tuple([at(addresses[idx]) for idx, at in movers])
        # Not a copy of the function's handle: Triton unloads it with the last reference to the kernel.
        run(num_programs, 1, 1, stream, compiled.function, metadata, None, None, None, *pick(pool))

    return repeat


def _address(argument: Tensor, tensors: tuple[Tensor, ...]) -> _Address | None:
    """Where `argument` comes from: one of `tensors`, or the only one that it lies in. None: unclear."""
    for idx, tensor in enumerate(tensors):
        if argument is tensor:
            return _Address(idx, 0)
    offsets = [argument.data_ptr() - tensor.data_ptr() for tensor in tensors]
    inside = [
        _Address(idx, offset) for idx, offset in enumerate(offsets) if 0 <= offset < _num_bytes(tensors[idx])
    ]
    return inside[0] if len(inside) == 1 else None


def _num_bytes(tensor: Tensor) -> int:
    """From its first element to behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() if tensor.numel() else 0


@cache
def _triton() -> tuple[Any, Any]:
    """Triton's driver, and its settings of launches. Not imported where nothing is launched."""
    from triton import knobs
    from triton.runtime import driver

    return driver, knobs.runtime


@cache
def _triton_descriptor() -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor


@cache
def _triton_version() -> tuple[int, ...]:
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])
