"""One connection of a client, without input and output: request ids, frames, unread answers, and why the
connection has ended. The clients move bytes and wait."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Generic, TypeVar

from semipd.core.errors import SemipdError
from semipd.wire.client_protocol import StateFrame, check_hello, error_from_wire, request_frame
from semipd.wire.client_results import Greeting
from semipd.wire.frames import FrameReader

T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])


class Answer(dict[str, Any]):
    """A frame that answers a request. A key that is missing is the daemon's fault, not ours."""

    def __missing__(self, key: str) -> Any:
        raise SemipdError("malformed_answer", f"The daemon's answer has no {key}.", "Is this semipd?")


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """What is asked of the daemon. `read`: the result in an answer; raises SemipdError where it is none."""

    op: str
    fields: Mapping[str, Any]
    read: Callable[[Answer], T]


class ClientCore:
    """`gone`: why the connection has ended; then every request is refused with it."""

    def __init__(self) -> None:
        self.gone: SemipdError | None = None
        self._greeting: Greeting | None = None
        self._frames = FrameReader()
        self._said: SemipdError | None = None
        self._inboxes: dict[int, deque[dict[str, Any]]] = {}
        self._last_id = 0

    @property
    def is_greeted(self) -> bool:
        """The daemon's hello has come; nothing is asked before."""
        return self._greeting is not None

    @property
    def greeting(self) -> Greeting:
        assert self._greeting is not None, "the daemon has not said hello yet"
        return self._greeting

    def request(self, op: str, fields: Mapping[str, Any]) -> tuple[int, bytes]:
        """Its id, and the frame to send. Raises SemipdError: `gone`, and what `request_frame` raises."""
        if self.gone is not None:
            raise self.gone
        self._last_id = request_id = self._last_id + 1
        frame = request_frame(request_id, op, fields, self.greeting.limits)
        self._inboxes[request_id] = deque()
        return request_id, frame

    def feed(self, data: bytes) -> list[int]:
        """What has been read; empty at the end of the connection. Returns the ids of the requests that have
        answers now. Raises SemipdError when the connection has ended: `gone`."""
        if not data:
            raise self.ended()
        try:
            return [request_id for message in self._frames.feed(data) for request_id in self._sort(message)]
        except SemipdError as error:
            self.gone = error
            raise

    def ended(self, message: str = "") -> SemipdError:
        """The connection is over; `message` says why where the daemon has not. Returns `gone`."""
        if self.gone is None:
            cut = f" {self._frames.pending_bytes} bytes into a frame" if self._frames.pending_bytes else ""
            hint = "" if message else "Connect again."
            message = message or f"The daemon closed the connection{cut}."
            self.gone = self._said or SemipdError("connection_lost", message, hint)
        return self.gone

    def answer(self, request_id: int) -> Answer | None:
        """The next one, if it has come. Raises SemipdError: the error that the request was answered with, or,
        when all has been read, `gone`."""
        inbox = self._inboxes[request_id]
        if not inbox:
            if self.gone is not None:
                raise self.gone
            return None
        message = inbox.popleft()
        if "error" in message:
            raise error_from_wire(message["error"])
        return Answer(message)

    def has_answer(self, request_id: int) -> bool:
        """The next one has come, and is no error."""
        inbox = self._inboxes[request_id]
        return bool(inbox) and "error" not in inbox[0]

    def forget(self, request_id: int) -> None:
        """Frames that still come for this request are dropped."""
        self._inboxes.pop(request_id, None)

    def _sort(self, message: dict[str, Any]) -> list[int]:
        """An error for nobody is what the daemon says before it closes; one that names a `duplicate` is about
        a frame of ours, and the request of that id goes on."""
        if self._greeting is None:
            check_hello(message)
            self._greeting = Greeting.from_wire(message)
            return []
        request_id = message.get("id")
        if request_id is None and "error" in message and "duplicate" not in message:
            self._said = error_from_wire(message["error"])
        inbox = self._inboxes.get(request_id) if isinstance(request_id, int) else None
        if inbox is None:
            return []
        _put(inbox, message)
        return [message["id"]]


def _put(inbox: deque[dict[str, Any]], message: dict[str, Any]) -> None:
    """Unread state frames become one, so that a slow consumer leaves no backlog."""
    if "state" in message and "ended" not in message and inbox and "state" in inbox[-1]:
        merged = StateFrame.from_wire(inbox[-1]).then(StateFrame.from_wire(message))
        inbox[-1] = merged.to_wire(message["id"])
    else:
        inbox.append(message)


def as_method(method: M, question: Callable[..., Any]) -> M:
    """`method` of a client, named and described as the function whose question it asks."""
    described = signature(question)
    parameters = [Parameter("self", Parameter.POSITIONAL_ONLY), *described.parameters.values()]
    named: Any = method
    named.__name__, named.__doc__ = question.__name__, question.__doc__
    named.__signature__ = described.replace(parameters=parameters, return_annotation=Parameter.empty)
    return method
