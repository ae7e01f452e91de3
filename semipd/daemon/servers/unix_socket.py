"""The Unix socket's server: many connections, many requests in flight on each."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from semipd.core.errors import SemipdError
from semipd.daemon.access import peers
from semipd.daemon.access.addresses import DEFAULT_BACKLOG
from semipd.daemon.servers.frame_stream import (
    CLOSE_LIMIT_S,
    Arriving,
    FrameStream,
)
from semipd.daemon.servers.socket_connection import SocketConnection
from semipd.daemon.servers.socket_session import Session
from semipd.daemon.state.services import Services

RESERVED_CONNECTIONS = 16
"""Of limits.max_connections, and at most an eighth of them: not for guests."""

MAX_PATIENT_REFUSALS = 256
"""So many may read at once why they are refused; others find it where they are closed."""

HASTY_LIMIT_S = 0.1


@asynccontextmanager
async def serve_unix_socket(
    services: Services, listener: socket.socket, backlog: int = DEFAULT_BACKLOG
) -> AsyncIterator[None]:
    """Serve on `listener`. At the end each connection may say its last words, within a limit."""
    connections = _Connections(services)
    server = await asyncio.start_unix_server(connections.accept, sock=listener, backlog=backlog)
    try:
        yield
    finally:
        server.close()
        await connections.shut_down()
        await server.wait_closed()


class _Connections:
    """All that are open."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._arriving = Arriving()
        self._open: set[SocketConnection] = set()
        self._being_refused: set[FrameStream] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        max_values = self._services.config.limits.max_body_values
        stream = FrameStream(reader, writer, self._arriving, max_values)
        room = self._room_for(writer)
        if len(self._open) >= room:
            await self._refuse(stream, room)
        else:
            await self._serve(stream)

    async def shut_down(self) -> None:
        await asyncio.gather(*(connection.shut_down() for connection in self._open))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_LIMIT_S)

    async def _serve(self, stream: FrameStream) -> None:
        connection = SocketConnection(Session(self._services, stream))
        self._open.add(connection)
        try:
            why = await connection.run()
        finally:
            self._open.remove(connection)
            stream.forget()
        await stream.close(why, connection.close_limit_s)

    def _room_for(self, writer: asyncio.StreamWriter) -> int:
        """Connections of all that may be open when this one comes. Guests leave some to operators."""
        limit = self._services.connection_room.max_connections
        try:
            is_ours = peers.peer_of(writer.get_extra_info("socket")).uid in (os.getuid(), 0)
        except OSError:  # it has gone
            is_ours = True
        return limit if is_ours else limit - min(RESERVED_CONNECTIONS, limit // 8)

    async def _refuse(self, stream: FrameStream, room: int) -> None:
        whole = self._services.connection_room
        error = SemipdError(
            "too_many_connections",
            f"{whole.cause} are open."
            if room == whole.max_connections
            else f"{len(self._open)} connections are open; of {whole.cause} the last "
            f"{whole.max_connections - room} are for operators.",
            whole.next_step,
            retry_after_s=1,
        )
        # half of those passing: connections that were served are being closed too
        num_patient = min(MAX_PATIENT_REFUSALS, whole.num_passing // 2)
        is_patient = len(self._being_refused) < num_patient
        limit_s = CLOSE_LIMIT_S if is_patient else HASTY_LIMIT_S
        if len(self._tasks) > whole.max_connections + whole.num_passing:
            limit_s = 0.0
        self._being_refused.add(stream)
        try:
            await stream.close(error, limit_s)
        finally:
            self._being_refused.remove(stream)
