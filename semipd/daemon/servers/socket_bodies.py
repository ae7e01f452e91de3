"""Requests of the Unix socket. What they share with HTTP's bodies stands in openai.bodies."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from semipd.core.errors import SemipdError
from semipd.core.events import EventKind
from semipd.daemon.history.records import MAX_RECENT
from semipd.daemon.openai.bodies import CompletionOptions, TemplateFields, TokenizeFields
from semipd.daemon.requests.messages import Messages
from semipd.daemon.requests.schema import WHOLE, SocketId, SocketRequest, TokenIds
from semipd.wire.client_protocol import MAX_INTERVAL_MS, MIN_INTERVAL_MS

MAX_KINDS = 64
"""Entries of `kinds`, repetitions included."""

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_OF_MESSAGES = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")


class GenerateRequest(CompletionOptions, TemplateFields, SocketRequest):
    """`request_id`: the public id, for logs and listings; without it the daemon chooses one."""

    model_config = _STRICT

    request_id: Annotated[str, Field(pattern=r"^[!-~]{1,128}$")] | None = None
    model: str | None = None
    prompt: str | TokenIds | None = None
    messages: Messages | None = None

    def check(self) -> None:
        """Raises SemipdError when fields contradict each other."""
        if (self.prompt is None) == (self.messages is None):
            raise SemipdError("invalid_value", "Send either prompt or messages.", param="prompt")
        check_template_belongs(self, is_conversation=self.messages is not None)
        if self.echo and self.messages is not None:
            message = "echo repeats a prompt; a conversation has none."
            raise SemipdError("unsupported_value", message, "Leave echo out, or send prompt.", param="echo")
        self.check_prompt_only()


class SocketTokenize(TokenizeFields, SocketRequest):
    model_config = _STRICT

    def check(self) -> None:
        """Raises SemipdError when fields contradict each other."""
        self.check_source()
        check_template_belongs(self, is_conversation=self.messages is not None)


class SocketDetokenize(SocketRequest):
    tokens: TokenIds


class CancelRequest(SocketRequest):
    """Either `target`, the id of a generate request on the same connection, or `request_id`, the public id
    of any request."""

    target: SocketId | None = None
    request_id: str | None = None


class RequestsRequest(SocketRequest):
    """Live and recent requests; with `request_id` that one only, and its events."""

    state: Literal["waiting", "prefilling", "decoding", "finished", "live"] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_RECENT), WHOLE] = 100
    request_id: str | None = None


class SubscribeRequest(SocketRequest):
    """State frames every `interval_ms`, and with `events` also what has happened since `after`, an event's
    id; without it from now on. `kinds`: only these events; None: all."""

    interval_ms: Annotated[int, Field(ge=MIN_INTERVAL_MS, le=MAX_INTERVAL_MS), WHOLE] = 1000
    events: bool = False
    after: str | None = None
    kinds: Annotated[list[EventKind], Field(min_length=1, max_length=MAX_KINDS, fail_fast=True)] | None = None


class UnsubscribeRequest(SocketRequest):
    """`target` is the id of a subscribe or record request on the same connection."""

    target: SocketId


def check_template_belongs(request: TemplateFields, *, is_conversation: bool) -> None:
    """Raises SemipdError where options of the chat template would have no effect, or exclude each other."""
    for name in _OF_MESSAGES:
        if not is_conversation and getattr(request, name) is not None:
            message = f"{name} says how messages are written, and there are none."
            raise SemipdError("invalid_value", message, f"Leave {name} out.", param=name)
    request.check_template()
