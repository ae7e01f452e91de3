"""GET /v1/events: the journal as server-sent events."""

import asyncio

from aiohttp import web

from semipd.core.errors import SemipdError
from semipd.daemon.history.journal import Entry, Journal
from semipd.daemon.state.services import Services
from semipd.daemon.web.streaming import closed_if_unread, event, event_stream, write_all

EVENTS_PER_WRITE = 256
HEARTBEAT_S = 15.0
"""Without an event for so long, a comment keeps proxies from closing the stream."""


async def follow_events(services: Services, request: web.Request) -> web.StreamResponse:
    """`Last-Event-ID` or `?after=` replays what the ring still holds."""
    journal = services.history.journal
    after = _cursor(request, journal)
    response = event_stream()
    with closed_if_unread(request):
        await response.prepare(request)
        await _follow(response, journal, after)
        await response.write_eof()
    return response


async def _follow(response: web.StreamResponse, journal: Journal, after: int) -> None:
    """Until the journal closes or the reader falls behind the ring, which ends the stream with `overflow`:
    its client connects again with the last id it has seen."""
    await write_all(response, [b": semipd events\n\n"])
    has_read = False
    while True:
        entries, lost, cursor = journal.read(after, EVENTS_PER_WRITE)
        if lost:
            oldest = journal.to_wire(entries[0])["id"] if entries else None
            await write_all(response, [event({"lost": lost, "oldest": oldest}, "overflow")])
            if has_read:
                return
        if entries:
            await write_all(response, [b"".join(_entry(journal, entry) for entry in entries)])
            after = cursor
        elif journal.closed:
            return
        else:
            await _wait_or_beat(response, journal, after)
        has_read = True


async def _wait_or_beat(response: web.StreamResponse, journal: Journal, after: int) -> None:
    try:
        async with asyncio.timeout(HEARTBEAT_S):
            await journal.changed(after)
    except TimeoutError:
        await write_all(response, [b": still here\n\n"])


def _entry(journal: Journal, entry: Entry) -> bytes:
    shown = journal.to_wire(entry)
    return event(shown, entry.kind, shown["id"])


def _cursor(request: web.Request, journal: Journal) -> int:
    """The header wins: a browser that reconnects repeats the address, `?after=` included."""
    given = request.headers.get("Last-Event-ID") or request.query.get("after")
    if given is None:
        return journal.last
    after = journal.cursor(given)
    if after is None:
        message = f"{given!r:.80} is no event id."
        raise SemipdError("invalid_value", message, "Send the id of an event, or none.", param="after")
    return after
