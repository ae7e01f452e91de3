"""Framing: a 4-byte big-endian length, then one msgpack map. Sans-IO, so every room can use it."""

import struct
from typing import Any

import msgpack

from semipd.core.errors import ProtocolError, SemipdError

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 4 * 2**20
MAX_CONTAINER_LEN = 1_048_576
MAX_MAP_LEN = 65_536
MAX_LENGTH = 2**32 - 1
"""What the header can say."""


def encode_frame(message: dict[str, Any], max_bytes: int = MAX_LENGTH) -> bytes:
    """Raises SemipdError(`cannot_be_sent`) when the message has no msgpack form, or a larger one."""
    try:
        body: bytes = msgpack.packb(message, use_bin_type=True)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise SemipdError(
            "cannot_be_sent",
            f"The message holds what msgpack cannot write: {error!s:.200}.",
            "Whole numbers have at most 64 bits, and texts no lone surrogates.",
        ) from error
    if len(body) > max_bytes:
        raise SemipdError(
            "cannot_be_sent",
            f"The message takes {len(body)} bytes; a frame holds at most {max_bytes}.",
            "Send less at once.",
        )
    return HEADER.pack(len(body)) + body


MAX_SKIPPED = 64
"""Entries of a malformed map among which its id is looked for."""

LIST_COST = 12
MAP_COST = 24
NAMED_COST = 7
"""What they count, in numbers of a list; see daemon.web.body_cost."""


class _Counter:
    """Sees each list and map of a frame when it is complete. Raises ValueError beyond `limit` values."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0

    def list(self, found: list[Any]) -> list[Any]:
        self._add(LIST_COST + len(found))
        return found

    def map(self, found: dict[Any, Any]) -> dict[Any, Any]:
        self._add(MAP_COST + NAMED_COST * len(found))
        return found

    def _add(self, count: int) -> None:
        self._count += count
        if self._count > self._limit:
            counted = f"a list counting {LIST_COST}, a map {MAP_COST}, a named value {NAMED_COST}"
            raise ValueError(f"it holds more than limits.max_body_values={self._limit} values, {counted}")


class MalformedBodyError(ProtocolError):
    """The length of a frame was right and its content is not: the next frame can be read. `request_id`: what
    stands there as its id, if that can be told."""

    def __init__(self, message: str, hint: str = "", request_id: object = None) -> None:
        super().__init__("malformed_frame", message, hint)
        self.request_id = request_id


def decode_body(
    body: bytes | memoryview, max_array_len: int = MAX_CONTAINER_LEN, max_values: int | None = None
) -> dict[str, Any]:
    """One frame's body to a map. Raises MalformedBodyError on anything else, or on more than `max_values`."""
    counter = None if max_values is None else _Counter(max_values)
    longest = longest_array(max_values, max_array_len)
    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_array_len=longest,
            max_map_len=longest_map(longest),
            list_hook=counter and counter.list,
            object_hook=counter and counter.map,
        )
    except Exception as error:  # msgpack raises a zoo: ValueError, ExtraData, UnicodeDecodeError, ...
        raise MalformedBodyError(
            f"A frame of {len(body)} bytes is not what is read here: {error!s:.200}.",
            _hint(max_values),
            _id_of(body),
        ) from error
    if not isinstance(message, dict):
        raise MalformedBodyError(f"A frame holds {type(message).__name__}, not a map.", _hint(max_values))
    return message


def longest_array(max_values: int | None, max_array_len: int = MAX_CONTAINER_LEN) -> int:
    """In a frame that may hold `max_values`."""
    return max_array_len if max_values is None else min(max_values, max_array_len)


def longest_map(max_values: int | None) -> int:
    return MAX_MAP_LEN if max_values is None else min(max_values, MAX_MAP_LEN)


def _hint(max_values: int | None) -> str:
    most = "" if max_values is None else f", with at most {max_values} values (limits.max_body_values)"
    return f"Send one msgpack map per frame, its keys and those of maps in it texts{most}."


def _id_of(body: bytes | memoryview) -> object:
    """Of a map that cannot be read as a whole. Nothing but its id is built; what stands before is skipped."""
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=False,
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
        max_buffer_size=len(body) or 1,
    )
    unpacker.feed(body)
    try:
        for _ in range(min(unpacker.read_map_header(), MAX_SKIPPED)):
            if unpacker.unpack() == "id":
                return unpacker.unpack()
            unpacker.skip()
    except Exception:  # as above
        return None
    return None


class FrameReader:
    """Bytes in, messages out. `max_bytes` bounds one frame's body, and with it the length of its lists;
    `max_values` what it holds; None: our own processes speak."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES, max_values: int | None = None) -> None:
        self._buffer = bytearray()
        self._max_values = max_values
        self._max_bytes = max_bytes
        # what a client may send is bounded twice; what we send ourselves, by its size
        self._max_array_len = MAX_CONTAINER_LEN if max_bytes <= MAX_FRAME_BYTES else max_bytes

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Every message completed by `data`. Raises ProtocolError; the stream is then unusable."""
        return [self.decode(body) for body in self.bodies(data)]

    def bodies(self, data: bytes) -> list[bytes]:
        """Every frame completed by `data`, not decoded. Raises ProtocolError; the stream is then unusable."""
        self._buffer += data
        found: list[bytes] = []
        offset = 0
        while len(self._buffer) - offset >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, offset)
            if length > self._max_bytes:
                raise ProtocolError(
                    "frame_too_large", f"A frame announces {length} bytes; the limit is {self._max_bytes}."
                )
            end = offset + HEADER.size + length
            if len(self._buffer) < end:
                break
            found.append(bytes(self._buffer[offset + HEADER.size : end]))
            offset = end
        del self._buffer[:offset]
        return found

    def decode(self, body: bytes) -> dict[str, Any]:
        """Raises MalformedBodyError: the next frame may be right."""
        return decode_body(body, self._max_array_len, self._max_values)

    @property
    def pending_bytes(self) -> int:
        return len(self._buffer)
