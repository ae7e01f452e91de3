"""Where Triton's interpreter computes something else than a GPU."""

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

    class Launch:
        """Of the kernel itself, whose call patches first; restored at its end."""

        def __init__(self, scope: Any) -> None:
            self.scope = scope

        def restore(self) -> None:
            patched.clear()
            self.scope.restore()

    def patch(fn: Any) -> Any:
        module, is_launch = id(fn.__globals__), not patched
        if module in patched:
            return None
        patched.add(module)
        scope = original(fn)
        return Launch(scope) if is_launch else scope

    monkeypatch.setattr(interpreter, "_patch_lang", patch)
