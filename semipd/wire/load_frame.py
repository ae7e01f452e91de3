"""A frame that answers `record`."""

from dataclasses import dataclass, field
from typing import Any

from semipd.core.state.load import LoadFacts, RecordedRefusal, RecordedRequest
from semipd.wire.client_protocol import RequestId


@dataclass(frozen=True, slots=True)
class LoadFrame:
    """What has ended since the frame before. `facts`: in the first frame. `lost`: requests that were dropped,
    as the reader was too slow. The last frame has nothing but why it `ended`."""

    facts: LoadFacts | None = None
    requests: list[RecordedRequest] = field(default_factory=list)
    refusals: list[RecordedRefusal] = field(default_factory=list)
    lost: int = 0
    ended: str | None = None

    def to_wire(self, request_id: RequestId) -> dict[str, Any]:
        frame: dict[str, Any] = {"id": request_id}
        named = {
            "facts": self.facts,
            "requests": self.requests,
            "refusals": self.refusals,
            "lost": self.lost,
            "ended": self.ended,
        }
        return frame | {name: value for name, value in named.items() if value}

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> "LoadFrame":
        return cls(
            data.get("facts"),
            data.get("requests", []),
            data.get("refusals", []),
            data.get("lost", 0),
            data.get("ended"),
        )
