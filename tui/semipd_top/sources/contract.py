"""Where the dashboard's facts come from: a daemon, a recording, or the demo. One contract for all three."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from semipd.core.state.partition import ChangeAnswer, PartitionDocument, SloAnswer
from semipd.core.state.requests import RequestRow
from semipd.wire.client_protocol import StateFrame

REQUEST_ROWS = 200
"""Live and recent requests a source lists at most."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A state frame has come at the Unix time `at_s`. `requests`: live and recent ones, each newest first;
    None: not asked for this time, those seen before still count."""

    at_s: float
    frame: StateFrame
    requests: Sequence[RequestRow] | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no daemon to hear from: what it or the system said. `retry_s`: Unix time of the next try;
    None: nothing more will come."""

    at_s: float
    code: str
    message: str
    hint: str = ""
    retry_s: float | None = None


Item = Seen | Gone


class Operator(Protocol):
    """What a person may ask and change; the methods of semipd.client.AsyncClient. All raise SemipdError."""

    async def partition(self) -> PartitionDocument: ...

    async def set_partition(self, **fields: Any) -> ChangeAnswer: ...

    async def clear_partition(self, **fields: Any) -> ChangeAnswer: ...

    async def set_slo(self, **fields: Any) -> SloAnswer: ...

    async def requests(
        self, *, state: str | None = None, limit: int | None = None, request_id: str | None = None
    ) -> list[RequestRow]: ...

    async def cancel_request(self, request_id: str) -> str: ...


@runtime_checkable
class Playback(Protocol):
    """A source whose time can stand still, or run faster."""

    speed: float

    @property
    def paused(self) -> bool: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def step(self) -> None:
        """The next item now, and then stand still."""

    def skip(self, seconds: float) -> None:
        """Forward: what was recorded meanwhile comes at once."""


class Source(Protocol):
    """`items` is iterated once, from its beginning; closing the iterator releases everything."""

    @property
    def title(self) -> str:
        """For people: which daemon, which file."""

    @property
    def interval_s(self) -> float:
        """Between two frames, as asked for; what a Monitor needs to know."""

    @property
    def why_read_only(self) -> str:
        """Why nothing can be changed through this source; empty: it can."""

    @property
    def operator(self) -> Operator:
        """Raises SemipdError(`not_connected`) while there is none."""

    def items(self) -> AsyncGenerator[Item, None]: ...

    def now_s(self) -> float:
        """Unix time by the source's own clock, in a replay too: a frame's age is `now_s() - Seen.at_s`."""
