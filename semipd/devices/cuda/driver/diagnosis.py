"""What a failure of the device means, and the state it was in: the engine's last word."""

from collections.abc import Callable

from semipd.core.errors import SemipdError
from semipd.devices.contract import LaneFailed
from semipd.devices.cuda.driver.interface import CudaError

_STATUSES = {
    2: "device_out_of_memory",
    214: "device_broken",
    700: "device_fault",
    701: "launch_failed",
    710: "device_fault",
    716: "device_fault",
    719: "device_fault",
}
"""CUresult to our code; others are `cuda_error`."""

_KINDS = (
    ("out of memory", "device_out_of_memory", "Lower kv.fraction, or stop what else uses the GPU."),
    ("illegal memory access", "device_fault", "Report it with the log; dmesg may show an Xid."),
    ("misaligned address", "device_fault", "Report it with the log; dmesg may show an Xid."),
    ("device-side assert", "device_fault", "Report it with the log; dmesg may show an Xid."),
    ("launch failure", "device_fault", "Report it with the log; dmesg may show an Xid."),
    ("launch out of resources", "launch_failed", "Report it with the GPU's name and the model."),
    ("unspecified launch", "device_fault", "Report it with the log; dmesg may show an Xid."),
    ("ecc", "device_broken", "The GPU's memory has an error that cannot be corrected: reset or replace it."),
    ("cuda", "cuda_error", "Look at dmesg for Xid messages."),
)


def diagnose(error: BaseException, state: Callable[[], str]) -> LaneFailed:
    """`state`: the lanes' situation in a sentence. A bug of ours is named as one."""
    where = _safely(state)
    if isinstance(error, CudaError):
        return LaneFailed(_STATUSES.get(error.status, "cuda_error"), f"{error.message} {where}", error.hint)
    if isinstance(error, SemipdError):
        return LaneFailed(error.code, f"{error.message} {where}", error.hint)
    code, hint = _kind(error)
    return LaneFailed(code, f"{_words(error)} {where}", hint)


def _kind(error: BaseException) -> tuple[str, str]:
    text = str(error).lower()
    for words, code, hint in _KINDS:
        if words in text:
            return code, hint
    return "engine_bug", "Please report it."


def _words(error: BaseException) -> str:
    """torch appends advice about its debug variables; the first line says what happened."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"The device failed: {type(error).__name__}: {first}."


def _safely(state: Callable[[], str]) -> str:
    """A sick device must not hide what made it sick."""
    try:
        return state()
    except Exception as error:
        return f"(Its state cannot be told: {error!r}.)"
