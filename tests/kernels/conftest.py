"""The operations' tests run Triton's interpreter on CPU tensors, beside tests that must not notice.

Triton reads TRITON_INTERPRET when a function meets `triton.jit`, its own library (`tl.sum` and the like)
included, and `semipd_kernels.dispatch` reads it when it is imported. So the variable is set while tests are
collected, and during each test of this folder; what was imported without it is imported again. Between these
tests it is unset: other tests start processes that inherit the environment and would compute on the
interpreter. Ahead-of-time compilation needs real compiled functions, hence a process of its own.
"""

import importlib
import os
import sys
from types import ModuleType

import pytest
from support.interpreter import patch_language_once

VARIABLE = "TRITON_INTERPRET"
ARITHMETIC = "(invalid value|divide by zero|overflow|underflow) encountered in"


def _jit_kinds(module: ModuleType) -> set[str]:
    return {type(value).__name__ for value in vars(module).values()}


def _forget(names: list[str]) -> None:
    for name in names:
        del sys.modules[name]
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            vars(sys.modules[parent]).pop(child, None)


def _forget_compiled_functions() -> None:
    """Drop modules of triton's and ours that were imported without the variable. The extension stays: it can
    be loaded once per process."""
    triton_names = [name for name in sys.modules if name.split(".")[0] == "triton"]
    if "JITFunction" not in _jit_kinds(sys.modules.get("triton.language.standard", ModuleType("absent"))):
        return
    _forget([name for name in triton_names if not name.startswith("triton._C")])
    ours = [name for name in sys.modules if name.startswith("semipd_kernels.")]
    _forget([name for name in ours if "JITFunction" in _jit_kinds(sys.modules[name])])


os.environ[VARIABLE] = "1"
_forget_compiled_functions()
try:
    importlib.import_module("triton")
    NO_TRITON = ""
except ImportError as error:
    NO_TRITON = f"Triton cannot be imported here ({error}); it exists for Linux only"


def pytest_configure(config: pytest.Config) -> None:
    # The interpreter computes masked-out lanes too, as the GPU does; numpy warns about what becomes of them.
    config.addinivalue_line(
        "filterwarnings", f"ignore:{ARITHMETIC}:RuntimeWarning:triton.runtime.interpreter"
    )
    # Triton 3.6 makes loop bounds of arrays with one element.
    config.addinivalue_line(
        "filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning:triton"
    )


def pytest_collection_finish() -> None:
    os.environ.pop(VARIABLE, None)
    if dispatch := sys.modules.get("semipd_kernels.dispatch"):
        vars(dispatch)["INTERPRETED"] = False


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if NO_TRITON:
        pytest.skip(NO_TRITON)
    from semipd_kernels import dispatch

    patch_language_once(monkeypatch)
    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
