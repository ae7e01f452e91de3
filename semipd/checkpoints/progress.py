"""What start-up says while a checkpoint is read. No torch here."""

import time
from collections.abc import Callable

Report = Callable[[str, float], None]
"""Called with the name of a start-up phase and the seconds it may stand still; again when it moves on."""

_STALL_LIMIT_S = 60.0
_REPORT_EVERY_S = 1.0


def loading(report: Report) -> Callable[[int, int], None]:
    """Takes (bytes done, bytes in all) and reports it now and then. Slow disks are no error as long as
    tensors keep coming: every report renews the limit."""
    reported_s = 0.0

    def progress(done_bytes: int, total_bytes: int) -> None:
        nonlocal reported_s
        now_s = time.monotonic()
        if now_s - reported_s >= _REPORT_EVERY_S:
            reported_s = now_s
            report(f"loading weights: {100 * done_bytes // total_bytes} %", _STALL_LIMIT_S)

    report("loading weights", _STALL_LIMIT_S)
    return progress
