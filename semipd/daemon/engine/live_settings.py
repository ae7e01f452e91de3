"""Live settings: what operators have changed in the engine, repeated to the one that replaces it."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from semipd.core.messages import EngineQuestion, SetPartition, SetSlo

UNASKED = 0
"""The nonce of a repeated order: nobody waits for the answer."""

AGAIN = "repeated after the engine was replaced"


class LiveSettings:
    """The last override of partition control, and every target of the service levels that was changed."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._partition: tuple[SetPartition, float] | None = None
        self._slo: SetSlo | None = None

    def granted(self, order: EngineQuestion[Any]) -> None:
        """The engine has done as it was told; messages that change nothing may be told too."""
        match order:
            case SetPartition(dry_run=False):
                self._partition = order, self._clock_s()
            case SetSlo(targets=targets) if targets:
                before = self._slo.targets if self._slo is not None else {}
                self._slo = replace(order, targets=before | targets)

    def to_repeat(self) -> list[SetPartition | SetSlo]:
        """For a new engine, before anything else. An override has the time that is left of it; if none is,
        its end is repeated: the engine may be configured to begin otherwise."""
        orders: list[SetPartition | SetSlo] = []
        if self._partition is not None:
            order, since_s = self._partition
            left_s = None if order.expires_s is None else order.expires_s - (self._clock_s() - since_s)
            if left_s is not None and left_s <= 0:
                order = SetPartition(UNASKED, "auto", order.actor)
            else:
                order = replace(order, nonce=UNASKED, expires_s=left_s)
            orders.append(replace(order, reason=_again(order.reason)))
        if self._slo is not None:
            orders.append(replace(self._slo, nonce=UNASKED, reason=_again(self._slo.reason)))
        return orders


def _again(reason: str) -> str:
    return f"{reason}; {AGAIN}" if reason else AGAIN
