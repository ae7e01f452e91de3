"""The body of an error, in OpenAI's shape."""

from typing import NotRequired

# pydantic reads typing's own only from Python 3.12 on
from typing_extensions import TypedDict

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
