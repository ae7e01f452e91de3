"""What a JSON body costs to read, told from its punctuation before anything is built of it.

Reading holds the event loop, about 0.1 us per number in a list. A list costs as much as 12 numbers, an object
as much as 24, a named value as much as seven, a number with a point as much as two; a long text costs next to
nothing, whatever it holds. Twenty digits in a row cost as much as three numbers: what has more is no machine
number, and the time to read it grows with the square of its length.
"""

import asyncio
from collections.abc import Iterator

from pydantic_core import from_json

from semipd.core.errors import SemipdError
from semipd.wire.frames import LIST_COST, MAP_COST, NAMED_COST

_COSTS = {b",": 1, b":": NAMED_COST - 1, b"[": LIST_COST, b"{": MAP_COST, b".": 1}
_NO_PUNCTUATION = bytes(value for value in range(256) if bytes([value]) not in _COSTS)
_DIGITS = b"0123456789"
_DIGITS_ALIKE = bytes(ord("0") if value in _DIGITS else ord(" ") for value in range(256))
NUM_DIGITS = 20
DIGITS_COST = 3
_START_BYTES = 2**14
_ROUGH_BYTES = 2**20
_EXACT_BYTES = 2**17
"""Looked at without a pause: about five milliseconds each."""


async def check_cost(body: bytes, limit: int) -> None:
    """Pauses between pieces: the loop goes on. Raises SemipdError: `body_too_large` when the body holds more
    than `limit` values, `malformed_json` when it begins so deep that nobody reads on."""
    if len(body) * MAP_COST <= limit:
        return
    if await _rough_cost(body, limit) > limit and (least := await _exact_cost(body, limit)) > limit:
        _check_depth(body[:_START_BYTES])
        raise SemipdError(
            "body_too_large",
            f"The body holds {least} JSON values or more; limits.max_body_values is {limit} "
            f"(a list counts {LIST_COST}, an object {MAP_COST}, a named value {NAMED_COST}, "
            f"a number with a point 2, {NUM_DIGITS} digits in a row {DIGITS_COST}).",
            "Send fewer values in one request; texts are cheaper than lists.",
        )


def _check_depth(start: bytes) -> None:
    try:
        from_json(start, allow_partial=True)
    except ValueError as error:
        if "recursion" in str(error):
            raise SemipdError("malformed_json", f"The body is not valid JSON: {error}.") from error


async def _rough_cost(body: bytes, limit: int) -> int:
    """Punctuation inside strings counts too."""
    cost = 0
    for start in range(0, len(body), _ROUGH_BYTES):
        cost += _cost(body[start : start + _ROUGH_BYTES])
        if cost > limit:
            break
        await asyncio.sleep(0)
    return cost


async def _exact_cost(body: bytes, limit: int) -> int:
    cost, in_string = 0, False
    for piece in _pieces(body):
        plain = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = plain.split(b'"')
        cost += _cost(b" ".join(parts[in_string::2]))
        in_string ^= len(parts) % 2 == 0
        if cost > limit:
            break
        await asyncio.sleep(0)
    return cost


def _pieces(body: bytes) -> Iterator[bytes]:
    """None of them ends between a backslash and what it escapes."""
    start = 0
    while start < len(body):
        piece = body[start : start + _EXACT_BYTES]
        num_backslashes = len(piece) - len(piece.rstrip(b"\\"))
        if num_backslashes % 2:
            piece = body[start : start + _EXACT_BYTES + 1]
        start += len(piece)
        yield piece


def _cost(text: bytes) -> int:
    marks = text.translate(None, _NO_PUNCTUATION)
    of_digits = text.translate(_DIGITS_ALIKE).count(b"0" * NUM_DIGITS) * DIGITS_COST
    return sum(marks.count(mark) * cost for mark, cost in _COSTS.items()) + of_digits
