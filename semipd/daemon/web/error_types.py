"""The body of an error, in OpenAI's shape."""

from typing import NotRequired, TypedDict

from semipd.daemon.history.usage import Usage


class ErrorDetails(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class PartialChoice(TypedDict):
    index: int
    text: str
    token_ids: list[int]


class Partial(TypedDict):
    """What had been generated of an answer when it failed."""

    choices: list[PartialChoice]
    usage: Usage


class ErrorAnswer(TypedDict):
    error: ErrorDetails
    partial: NotRequired[Partial]
