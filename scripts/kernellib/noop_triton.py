"""Triton without a GPU and without a compiler: launches go all the way to a launcher that does nothing.

What is left is what a launch costs the host, and what would reach a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple
from unittest.mock import patch

from semipd_kernels import dispatch
from semipd_kernels.launches import Launch, forget_launches
from torch import Tensor

STREAM = 7


class Launched(NamedTuple):
    """What reached a launcher. `args`: as passed, tensors as their addresses."""

    kernel: str
    specialization: str
    grid: tuple[int, int, int]
    stream: int
    args: tuple[Any, ...]


class NoopDriver:
    """See triton.runtime.driver: what a launch asks of it, for one device of compute capability `arch`.

    Attributes:
        launched: what reached launchers, while `records`.
        compiled: names of the kernels that would have been compiled.
    """

    def __init__(self, arch: int = 90) -> None:
        self._arch = arch
        self._numbers = count(1)
        self.records = True
        self.launched: list[Launched] = []
        self.compiled: list[str] = []

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return STREAM

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._arch, 32)

    def compile(self, function: Any, key: str, device: int) -> Any:
        """In the place of JITFunction._do_compile."""
        from triton.compiler import CompiledKernel

        self.compiled.append(function.fn.__name__)
        kernel = CompiledKernel.__new__(CompiledKernel)
        number = next(self._numbers)
        # A `module` makes Triton believe that the binary is loaded, and no process id that it is not ours.
        vars(kernel).update(src=None, name="", hash="", module=number, _module_pid=None, function=number)
        vars(kernel).update(packed_metadata=(4, 1, 0), _run=self._launcher(function.fn.__name__, key))
        function.device_caches[device][0][key] = kernel
        return kernel

    def _launcher(self, name: str, key: str) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: Any, packed: Any, *rest: Any) -> None:
            if self.records:
                args = tuple(map(_seen, rest[3:]))
                self.launched.append(Launched(name, key, (x, y, z), stream, args))

        return launch


def _seen(argument: Any) -> Any:
    """Tensors and descriptors by their addresses."""
    if hasattr(argument, "block_shape"):
        return argument.base.data_ptr(), *argument.shape, *argument.strides, *argument.block_shape
    return argument.data_ptr() if isinstance(argument, Tensor) else argument


@contextmanager
def noop_triton(arch: int = 90) -> Iterator[NoopDriver]:
    """Inside, operations on CPU tensors launch Triton kernels, which do nothing."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    fake, previous = NoopDriver(arch), driver._active

    def compile_nothing(function: Any, key: str, signature: Any, device: int, *rest: Any) -> Any:
        return fake.compile(function, key, device)

    functions: dict[Any, Any] = {}

    def run(launch: Launch) -> Any:
        source = launch.kernel.fn
        if source not in functions:
            functions[source] = _compilable(launch.kernel)
        return functions[source][(launch.num_programs,)](*launch.args, **launch.constants)

    with (
        patch.object(JITFunction, "_do_compile", compile_nothing),
        patch.object(Launch, "run", run),
        patch.object(dispatch, "INTERPRETED", True),
    ):
        forget_launches()
        driver.set_active(fake)
        try:
            yield fake
        finally:
            driver._active = previous
            forget_launches()


def _compilable(kernel: Any) -> Any:
    """The kernel as `triton.jit` makes it when it is not to be interpreted, with nothing compiled yet."""
    from triton.runtime.jit import JITFunction

    if not isinstance(kernel, JITFunction):
        return JITFunction(kernel.fn, **kernel.kwargs)
    names = ("do_not_specialize", "do_not_specialize_on_alignment")
    return JITFunction(kernel.fn, **{name: getattr(kernel, name) for name in names})
