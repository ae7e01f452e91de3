"""How a piece of work gets onto a stream. In tests another `Submit` delays and reorders it as far as streams
and events allow, and writes down what it touched."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

from semipd.devices.cuda.driver.interface import Driver, Stream


class Touched(NamedTuple):
    """What a piece of work reads and writes, by names that mean something within one device."""

    reads: frozenset[Hashable] = frozenset()
    writes: frozenset[Hashable] = frozenset()


Submit = Callable[[Stream, str, Callable[[], None], Callable[[], Touched]], None]
"""(stream, label, body, touched): whatever `body` launches goes to the stream. `touched` is asked only by
those who record."""


def submit_to(driver: Driver) -> Submit:
    def submit(stream: Stream, label: str, body: Callable[[], None], touched: Callable[[], Touched]) -> None:
        with driver.on(stream):
            body()

    return submit
