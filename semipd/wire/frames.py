"""Framing: a 4-byte big-endian length, then one msgpack map. Sans-IO, so every room can use it."""

import struct
from typing import Any

import msgpack

from semipd.core.errors import ProtocolError

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 4 * 2**20
MAX_CONTAINER_LEN = 1_048_576


def encode_frame(message: dict[str, Any]) -> bytes:
    body: bytes = msgpack.packb(message, use_bin_type=True)
    return HEADER.pack(len(body)) + body


def decode_body(body: bytes | memoryview) -> dict[str, Any]:
    """One frame's body to a map. Raises ProtocolError on anything else."""
    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_CONTAINER_LEN,
            max_map_len=65_536,
        )
    except Exception as error:  # msgpack raises a zoo: ValueError, ExtraData, UnicodeDecodeError, ...
        raise ProtocolError(
            "malformed_frame",
            f"A frame of {len(body)} bytes is not valid msgpack ({error}).",
            "Send one msgpack map per frame.",
        ) from error
    if not isinstance(message, dict):
        raise ProtocolError("malformed_frame", f"A frame holds {type(message).__name__}, not a map.")
    return message


class FrameReader:
    """Bytes in, messages out. `max_bytes` bounds one frame's body."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes

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
            messages.append(decode_body(bytes(self._buffer[offset + HEADER.size : end])))
            offset = end
        del self._buffer[:offset]
        return messages

    @property
    def pending_bytes(self) -> int:
        return len(self._buffer)
