"""Framing: a 4-byte big-endian length, then one msgpack map. Sans-IO, so every room can use it."""

import struct
from typing import Any

import msgpack

from semipd.core.errors import ProtocolError, SemipdError

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 4 * 2**20
MAX_CONTAINER_LEN = 1_048_576
MAX_MAP_LEN = 65_536
MAX_CONTAINERS = 65_536
"""In one frame from a client."""

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


def decode_body(
    body: bytes | memoryview, max_array_len: int = MAX_CONTAINER_LEN, max_containers: int | None = None
) -> dict[str, Any]:
    """One frame's body to a map. `max_containers`: arrays and maps within it; to build millions of them takes
    a second. Raises ProtocolError on anything else."""
    hook = None if max_containers is None else _Containers(max_containers).count
    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_array_len=max_array_len,
            max_map_len=MAX_MAP_LEN,
            object_hook=hook,
            list_hook=hook,
        )
    except ProtocolError:
        raise
    except Exception as error:  # msgpack raises a zoo: ValueError, ExtraData, UnicodeDecodeError, ...
        raise ProtocolError(
            "malformed_frame",
            f"A frame of {len(body)} bytes is not valid msgpack ({error}).",
            "Send one msgpack map per frame.",
        ) from error
    if not isinstance(message, dict):
        raise ProtocolError("malformed_frame", f"A frame holds {type(message).__name__}, not a map.")
    return message


class _Containers:
    def __init__(self, most: int) -> None:
        self._num_left = self._most = most

    def count(self, container: Any) -> Any:
        self._num_left -= 1
        if self._num_left < 0:
            message = f"A frame holds more than {self._most} arrays and maps."
            raise ProtocolError("malformed_frame", message, "Send less at a time.")
        return container


class FrameReader:
    """Bytes in, messages out. `max_bytes` bounds one frame's body, and with it the length of its lists;
    `max_containers` its arrays and maps."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES, max_containers: int | None = None) -> None:
        self._buffer = bytearray()
        self._max_containers = max_containers
        self._max_bytes = max_bytes
        # what a client may send is bounded twice; what we send ourselves, by its size
        self._max_array_len = MAX_CONTAINER_LEN if max_bytes <= MAX_FRAME_BYTES else max_bytes

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Every message completed by `data`. Raises ProtocolError; the stream is then unusable."""
        self._buffer += data
        messages: list[dict[str, Any]] = []
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
            messages.append(self._decode(offset + HEADER.size, end))
            offset = end
        del self._buffer[:offset]
        return messages

    def _decode(self, begin: int, end: int) -> dict[str, Any]:
        return decode_body(bytes(self._buffer[begin:end]), self._max_array_len, self._max_containers)

    @property
    def pending_bytes(self) -> int:
        return len(self._buffer)
