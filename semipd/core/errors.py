"""The one exception type for everything a user, a file or a device can cause."""


class SemipdError(Exception):
    """An answer, not a bug: stable `code`, a sentence with the numbers, and the next step.

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
        super().__init__(f"{message} {hint}".strip())
        self.code = code
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after_s = retry_after_s


class ProtocolError(SemipdError):
    """The peer sent something that is not our protocol; the connection cannot go on."""
