"""HTTP/1.1 responses and server-sent events out of bytes, without I/O and with little work per token."""

from semipd.core.errors import SemipdError

MAX_HEAD_BYTES = 65_536


def malformed(why: str) -> SemipdError:
    return SemipdError("malformed_response", f"The server's answer is not HTTP as expected: {why}.")


class ResponseParser:
    """One response: head, then a body that is chunked, of known length, or ends with the connection.

    `status` is 0 until the head is complete. Interim responses (1xx) are skipped.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = False
        self._buffer = bytearray()
        self._left: int | None = None
        """Bytes missing of the body, or of the chunk; None: until the connection ends."""
        self._is_chunked = False

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in `data`. Raises SemipdError(`malformed_response`)."""
        self._buffer += data
        if not self.status and not self._read_head():
            return b""
        return self._read_chunks() if self._is_chunked else self._read_plain()

    def end(self) -> None:
        """The connection has ended. Raises SemipdError(`connection_lost`) when that was too early."""
        if self.status and self._left is None and not self._is_chunked:
            self.is_complete = True
        if not self.is_complete:
            raise SemipdError("connection_lost", "The server closed the connection before its answer ended.")

    def _read_head(self) -> bool:
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].decode("latin-1")
            del self._buffer[: end + 4]
            status_line, *lines = head.split("\r\n")
            version, _, rest = status_line.partition(" ")
            if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
                raise malformed(f"its first line is {status_line!r:.80}")
            if rest[0] == "1":
                continue
            self.headers = {
                name.lower(): value.strip() for name, _, value in (s.partition(":") for s in lines)
            }
            self.status = int(rest[:3])
            self._find_length()
            return True
        if len(self._buffer) > MAX_HEAD_BYTES:
            raise malformed(f"its head is longer than {MAX_HEAD_BYTES} bytes")
        return False

    def _find_length(self) -> None:
        length = self.headers.get("content-length")
        self._is_chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if self._is_chunked or self.status in (204, 304):
            self._left = 0
        elif length is not None:
            if not length.isdigit():
                raise malformed(f"Content-Length is {length!r:.80}")
            self._left = int(length)
        self.is_complete = self._left == 0 and not self._is_chunked

    def _read_plain(self) -> bytes:
        body = bytes(self._buffer if self._left is None else self._buffer[: self._left])
        self._buffer.clear()
        if self._left is not None:
            self._left -= len(body)
            self.is_complete = self._left == 0
        return body

    def _read_chunks(self) -> bytes:
        """`_left` counts the chunk's data and the CRLF behind it."""
        buffer, body, offset = self._buffer, bytearray(), 0
        while not self.is_complete:
            if self._left:
                piece = buffer[offset : offset + self._left]
                if not piece:
                    break
                # the last two bytes of the chunk are its CRLF
                body += piece[: max(0, self._left - 2)]
                offset += len(piece)
                self._left -= len(piece)
                continue
            end = buffer.find(b"\r\n", offset)
            if end < 0:
                break
            size = self._chunk_size(bytes(buffer[offset:end]))
            offset = end + 2
            # trailers may follow; nobody reads them
            self.is_complete = size == 0
            self._left = size + 2
        del buffer[:offset]
        return bytes(body)

    def _chunk_size(self, line: bytes) -> int:
        try:
            return int(line.partition(b";")[0], 16)
        except ValueError as error:
            raise malformed(f"a chunk begins with {line!r:.80}") from error


class EventSplitter:
    """Server-sent events: bytes in, the `data` of every completed event out. Comments are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, body: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + body).split(b"\n")
        events = list[bytes]()
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events
