"""What operators' requests share: who acts and why, and how a body is read."""

import pwd
from typing import Annotated, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from semipd.daemon.requests.schema import check_names, refusal
from semipd.daemon.web.errors import CALLER

MAX_NOTE_CHARS = 200
"""Of an actor or a reason: they are kept in the history and shown on screens."""

B = TypeVar("B", bound=BaseModel)


def _visible(text: str) -> str:
    """No control sequence reaches the terminals and logs where it is shown."""
    return "".join(char if char.isprintable() else " " for char in text)


Note = Annotated[str, Field(max_length=MAX_NOTE_CHARS), AfterValidator(_visible)]


class OperatorAction(BaseModel):
    """`actor`: who does it, in their own words; the peer's name when left out."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    actor: Note | None = None
    reason: Note = ""


def parsed_body(schema: type[B], body: bytes) -> B:
    """Raises SemipdError: the first problem."""
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError:
        given = None
    check_names(schema, given)
    try:
        return schema.model_validate_json(body)  # whose reader says best what is wrong
    except ValidationError as error:
        raise refusal(error) from error


def http_peer(request: web.Request) -> str:
    """For the history: the key's name, or the address."""
    return f"http {request[CALLER].name or request.remote or 'client'}"


def socket_peer(pid: int, uid: int) -> str:
    """For the history: the user's name, and the process."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"user {uid}"
    return f"{name} (pid {pid})"
