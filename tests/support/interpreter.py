"""Where Triton's interpreter computes something else than a GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


def multiply_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `tl.dot` multiply bf16 numbers.

    The interpreter of Triton 3.6 to 3.9 multiplies their bits as integers.
    ."""
    import triton.language as tl
    from triton.runtime import interpreter

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar is not tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    original = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, acc: Any, *rest: Any) -> Any:
        return original(self, widened(a), widened(b), acc, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def patch_language_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a launch patch `triton.language` once for each module that its functions stand in.

    The interpreter of Triton 3.6 to 3.9 does it again at every call of a device function: half of its time
    where kernels are made of small ones.
    """
    from triton.runtime import interpreter

    original, patched = interpreter._patch_lang, set[int]()

    class Scope:
        """Of a kernel's launch, whose call patches first and restores at its end; a test may launch another
        kernel within it. Scopes of device functions are never restored."""

        def __init__(self, forgotten: set[int], restore: Callable[[], None]) -> None:
            self.forgotten, self.undo = forgotten, restore

        def restore(self) -> None:
            patched.difference_update(self.forgotten)
            self.undo()

    def patch(fn: Any) -> Scope:
        module, is_outermost = id(fn.__globals__), not patched
        if module in patched:
            return Scope(set(), lambda: None)
        patched.add(module)
        return Scope(patched if is_outermost else {module}, original(fn).restore)

    monkeypatch.setattr(interpreter, "_patch_lang", patch)
