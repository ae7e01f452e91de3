"""The one exception type for everything a user, a file or a device can cause."""

from typing import TypedDict

from semipd.core.brief import sayable

MAX_SAID_CHARS = 2000
"""Of a message, and of a hint: they may hold what a client, a file or a template said."""


class Refusal(TypedDict):
    code: str
    message: str
    hint: str
    param: str | None


class SemipdError(Exception):
    """An answer, not a bug: stable `code`, a sentence with the numbers, and the next step. Its texts can be
    sent to every peer: they are cut at MAX_SAID_CHARS and hold no lone surrogates.

    Attributes:
        code: stable machine-readable word, e.g. ``context_length_exceeded``.
        message: what went wrong, with the numbers and the setting in force.
        hint: what to do next; empty when the message already says it.
        param: the request field or configuration key at fault, if there is one.
        retry_after_s: when the same request may succeed, if that can be told.
    """

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        message, hint = sayable(message, MAX_SAID_CHARS), sayable(hint, MAX_SAID_CHARS)
        super().__init__(f"{message} {hint}".strip())
        self.code = code
        self.message = message
        self.hint = hint
        self.param = None if param is None else sayable(param, MAX_SAID_CHARS)
        self.retry_after_s = retry_after_s

    @property
    def details(self) -> Refusal:
        """As it travels; arguments of another SemipdError."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "param": self.param}


class ProtocolError(SemipdError):
    """The peer sent something that is not our protocol; the connection cannot go on."""
