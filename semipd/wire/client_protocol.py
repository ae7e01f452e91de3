"""What clients and daemon say over the Unix socket, beside the framing (DESIGN section 7).

First frame each way: {op: hello, protocol, agent}. Then requests {id, op, ...}; every answer carries the
request's id. `generate` is answered by items, the last with a finish_reason; `subscribe` by state frames
until one with `ended`; other operations by one frame. A failed request is answered by
{id, error: {code, message, hint, param}}; id None: the connection. docs/protocol.md has it all.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from semipd import __version__
from semipd.core.brief import brief
from semipd.core.errors import ProtocolError, SemipdError
from semipd.core.events import EventRow
from semipd.core.state.daemon import StateDocument
from semipd.wire import PROTOCOL_VERSION
from semipd.wire.client_results import Logprobs
from semipd.wire.frames import HEADER, MAX_FRAME_BYTES, MalformedBodyError, decode_body, encode_frame

HELLO_LIMIT_S = 5.0
MAX_AGENT_CHARS = 256

MIN_INTERVAL_MS = 100
MAX_INTERVAL_MS = 60_000
"""Of a subscription's state frames."""

MAX_UNREAD_EVENTS = 4096
"""A client keeps that many for a consumer that is slower than the frames come."""

RequestId = int | str


@dataclass(frozen=True, slots=True)
class GenerateItem:
    """One stream item of one choice, `index` of them with n. The finish reason (stop, length or cancelled)
    is in a choice's last item, `usage` (OpenAI's object) in the last of all. What was not asked for is None;
    texts and lists of a choice's items, joined, are the whole."""

    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    index: int = 0
    stop_reason: str | int | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    prompt_token_ids: list[int] | None = None

    @property
    def is_last(self) -> bool:
        """Of the whole request."""
        return self.usage is not None

    def to_wire(self, request_id: RequestId) -> dict[str, Any]:
        item: dict[str, Any] = {"id": request_id, "text": self.text, "token_ids": self.token_ids}
        if self.index:
            item["index"] = self.index
        if self.logprobs is not None:
            item["logprobs"] = asdict(self.logprobs)
        further = {
            "prompt_logprobs": self.prompt_logprobs,
            "prompt_token_ids": self.prompt_token_ids,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "usage": self.usage,
        }
        return item | given(further)

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> "GenerateItem":
        """Raises KeyError or TypeError for what is no item."""
        if type(data["text"]) is not str or type(data["token_ids"]) is not list:
            raise TypeError("an item without text and token ids")
        logprobs = data.get("logprobs")
        return cls(
            data["text"],
            data["token_ids"],
            data.get("finish_reason"),
            data.get("usage"),
            data.get("index", 0),
            data.get("stop_reason"),
            Logprobs(**logprobs) if logprobs else None,
            data.get("prompt_logprobs"),
            data.get("prompt_token_ids"),
        )


def no_state() -> StateDocument:
    """Of the frame that ends a subscription."""
    return cast(StateDocument, {})


@dataclass(frozen=True, slots=True)
class StateFrame:
    """One frame of a subscription. `events` are those since the frame before, oldest first; `lost` of them
    were overwritten before they could be sent. The last frame has no state and says why it `ended`."""

    state: StateDocument = field(default_factory=no_state)
    events: list[EventRow] = field(default_factory=list)
    lost: int = 0
    ended: str | None = None

    def to_wire(self, request_id: RequestId) -> dict[str, Any]:
        if self.ended is not None:
            return {"id": request_id, "ended": self.ended}
        frame: dict[str, Any] = {"id": request_id, "state": self.state}
        if self.events:
            frame["events"] = self.events
        if self.lost:
            frame["lost"] = self.lost
        return frame

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> "StateFrame":
        return cls(
            data.get("state", no_state()), data.get("events", []), data.get("lost", 0), data.get("ended")
        )

    def then(self, later: "StateFrame") -> "StateFrame":
        """Both frames as one: the later state, the events of both, as many as a reader may leave unread."""
        events = self.events + later.events
        dropped = max(len(events) - MAX_UNREAD_EVENTS, 0)
        lost = self.lost + later.lost + dropped
        return StateFrame(later.state or self.state, events[dropped:], lost, later.ended)


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that are None: requests name only what they mean."""
    return {name: value for name, value in fields.items() if value is not None}


def request_frame(
    request_id: RequestId, op: str, fields: Mapping[str, Any], limits: Mapping[str, float]
) -> bytes:
    """`limits`: of the daemon's hello. Raises SemipdError: `cannot_be_sent`, what the daemon would not read;
    `invalid_value`, a field with the name of one of ours."""
    for name in ("id", "op"):
        if name in fields:
            message = f"{name} is no option: the client sets it."
            raise SemipdError("invalid_value", message, f"Leave {name} out.", param=name)
    frame = encode_frame({"id": request_id, "op": op, **_with_text_keys(fields)}, MAX_FRAME_BYTES)
    max_values = limits.get("values")
    try:
        decode_body(frame[HEADER.size :], max_values=None if max_values is None else int(max_values))
    except MalformedBodyError as error:
        raise SemipdError("cannot_be_sent", error.message, error.hint) from error
    return frame


def _with_text_keys(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Token ids as keys of logit_bias are texts on the wire."""
    bias = fields.get("logit_bias")
    if not isinstance(bias, Mapping):
        return fields
    return {**fields, "logit_bias": {str(key) if type(key) is int else key: bias[key] for key in bias}}


def hello(agent: str) -> dict[str, Any]:
    return {"op": "hello", "protocol": PROTOCOL_VERSION, "agent": f"{agent} {__version__}"}


def check_hello(message: dict[str, Any]) -> None:
    """Raises ProtocolError: the peer's own error, `hello_expected` or `protocol_version`."""
    if "error" in message:
        refused = error_from_wire(message["error"])
        raise ProtocolError(refused.code, refused.message, refused.hint, retry_after_s=refused.retry_after_s)
    if message.get("op") != "hello":
        raise ProtocolError("hello_expected", "The first frame is not a hello.", "Is this a semipd socket?")
    agent, protocol = message.get("agent", ""), message.get("protocol")
    if type(agent) is not str or len(agent) > MAX_AGENT_CHARS:
        text = (
            f"The agent of the hello, {brief(agent, 64)}, is no text of at most {MAX_AGENT_CHARS} characters."
        )
        raise ProtocolError("hello_expected", text, "Name the program and its version.")
    if type(protocol) is not int or protocol != PROTOCOL_VERSION:
        raise ProtocolError(
            "protocol_version",
            f"The peer ({brief(agent or 'unnamed', 64)}) speaks protocol {brief(protocol, 32)}, this side "
            f"{PROTOCOL_VERSION}, a whole number.",
            "Install the same version of semipd on both sides.",
        )


def error_frame(request_id: RequestId | None, error: SemipdError, *, closing: bool = False) -> dict[str, Any]:
    """`closing`: the connection ends because of it."""
    details: dict[str, Any] = dict(error.details)
    if error.retry_after_s is not None:
        details["retry_after_s"] = error.retry_after_s
    return {"id": request_id, "error": details} | ({"closing": True} if closing else {})


def error_from_wire(details: Any) -> SemipdError:
    """The peer's error; `malformed_answer` if it has not the form of one."""
    if not isinstance(details, dict) or not all(type(details.get(n)) is str for n in ("code", "message")):
        return ProtocolError(
            "malformed_answer",
            f"The peer's error is not understood: {details!r:.100}.",
            "Is it a semipd daemon, of this version?",
        )
    hint, param = details.get("hint"), details.get("param")
    return SemipdError(
        details["code"],
        details["message"],
        hint if isinstance(hint, str) else "",
        param=param if isinstance(param, str) else None,
        retry_after_s=details.get("retry_after_s"),
    )
