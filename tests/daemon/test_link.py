"""The daemon's end of the engine's socket."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.eventually import eventually

from semipd.core.errors import ProtocolError
from semipd.daemon.engine.link import Link
from semipd.wire.engine_link import LINK_FRAME_BYTES
from semipd.wire.frames import FrameReader, encode_frame

LARGE = "x" * 500_000


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, socket.socket]]:
    """A link and its peer, which blocks nobody."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    link = Link(ours)
    with theirs:
        try:
            yield link, theirs
        finally:
            link.close()
            link.close()


async def test_what_the_socket_does_not_take_follows_in_order() -> None:
    async with linked() as (link, peer):
        for number in range(20):
            link.send({"number": number, "text": LARGE})
        waiting = link.unsent_bytes
        assert waiting > 5_000_000
        reader, received = FrameReader(LINK_FRAME_BYTES), list[int]()
        while len(received) < 20:
            data = await asyncio.get_running_loop().sock_recv(peer, 2**18)
            received += [frame["number"] for frame in reader.feed(data)]
        assert received == list(range(20))
        assert link.unsent_bytes == 0
        link.send({"number": 20})
        await eventually(lambda: link.unsent_bytes == 0, "a link goes on after it was full")


async def test_last_words_are_read_though_nobody_reads_ours() -> None:
    """The peer dies with unread messages in its socket: our writes fail, its words are there."""
    async with linked() as (link, peer):
        link.send({"unread": 0})
        peer.sendall(encode_frame({"word": 1}) + encode_frame({"word": 2}))
        peer.close()
        for _ in range(3):
            link.send({"to nobody": LARGE})
        assert link.unsent_bytes == 0, "what nobody will read is not kept"
        assert [(await link.receive())["word"] for _ in "ab"] == [1, 2]
        with pytest.raises(EOFError):
            await link.receive()
        with pytest.raises(EOFError):
            await link.receive()


async def test_a_peer_that_dies_while_ours_waits_to_be_sent() -> None:
    async with linked() as (link, peer):
        for _ in range(20):
            link.send({"text": LARGE})
        assert link.unsent_bytes
        peer.sendall(encode_frame({"word": 1}))
        peer.close()
        assert await link.receive() == {"word": 1}
        await eventually(lambda: not link.unsent_bytes, "the rest is dropped")


async def test_others_run_between_two_reads() -> None:
    """However much the engine sends."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with linked() as (link, peer):
        loop = asyncio.get_running_loop()
        flood = encode_frame({"text": LARGE}) * 20
        sending = asyncio.create_task(loop.sock_sendall(peer, flood))
        running = asyncio.create_task(others())
        for _ in range(20):
            await link.receive()
        await sending
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert turns > 20


async def test_nonsense() -> None:
    async with linked() as (link, peer):
        peer.sendall(b"\x00\x00\x00\x01\xc1")
        with pytest.raises(ProtocolError):
            await link.receive()
