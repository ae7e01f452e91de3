"""Without a screen: state frames as JSON lines, or the first screen once, as text."""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

from semipd.command_line.answers import understood
from semipd.core.errors import SemipdError
from semipd_top.picture.picture import Monitor
from semipd_top.sources.contract import Gone, Item, Seen, Source
from semipd_top.sources.recording import Recorder

FRAMES_FOR_RATES = 2
"""Counters of two frames make a rate."""

MAX_COLUMNS, MAX_LINES = 1000, 1000
"""COLUMNS and LINES may say anything."""

END_OF_RECORDING = "recording_over"


def print_frames(source: Source, recorder: Recorder | None, num_frames: int | None) -> None:
    """One JSON object a frame; `num_frames` None: for ever. Raises SemipdError when the source is gone."""
    with understood(source.title):
        asyncio.run(_print_frames(source, recorder, num_frames))


def print_last_frame(source: Source) -> None:
    """Of a source that ends. Raises SemipdError when it has none, or has broken off: then after it."""
    with understood(source.title):
        asyncio.run(_print_last_frame(source))


def print_first_screen(source: Source, recorder: Recorder | None, *, to_the_end: bool) -> None:
    """As large as the terminal, when there are two frames; `to_the_end`: when the source has ended. Raises
    SemipdError as the others do."""
    with understood(source.title):
        asyncio.run(_print_first_screen(source, recorder, to_the_end))


async def _print_frames(source: Source, recorder: Recorder | None, num_frames: int | None) -> None:
    num_seen = 0
    async with aclosing(_items(source, recorder)) as items:
        async for item in items:
            if isinstance(item, Gone):
                continue
            _print_frame(item)
            num_seen += 1
            if num_seen == num_frames:
                return


async def _print_last_frame(source: Source) -> None:
    last: Seen | None = None
    try:
        async with aclosing(_items(source, None)) as items:
            async for item in items:
                last = item if isinstance(item, Seen) else last
    finally:
        if last is not None:
            _print_frame(last)
    _require(last)


async def _print_first_screen(source: Source, recorder: Recorder | None, to_the_end: bool) -> None:
    monitor, num_seen = Monitor(source.interval_s), 0
    try:
        async with aclosing(_items(source, recorder)) as items:
            async for item in items:
                monitor.take(item)
                num_seen += isinstance(item, Seen)
                if num_seen == FRAMES_FOR_RATES and not to_the_end:
                    break
    finally:
        if num_seen and (to_the_end or num_seen == FRAMES_FOR_RATES):
            _print_screen(monitor, source.now_s())
    _require(num_seen)


async def _items(source: Source, recorder: Recorder | None) -> AsyncGenerator[Item, None]:
    """Until a recording is over. What else makes a source go is raised as SemipdError: nobody here waits for
    a daemon."""
    async with aclosing(source.items()) as items:
        async for item in items:
            if recorder is not None:
                _record(recorder, item)
            if isinstance(item, Gone):
                if item.code == END_OF_RECORDING:
                    return
                if item.retry_s is None or not source.why_read_only:
                    raise SemipdError(item.code, item.message, item.hint)
            yield item


def _record(recorder: Recorder, item: Item) -> None:
    was_stopped = recorder.stopped is not None
    recorder.write(item)
    if recorder.stopped is not None and not was_stopped:
        print(f"warning: {recorder.stopped} [{recorder.stopped.code}]", file=sys.stderr)


def _print_frame(seen: Seen) -> None:
    frame = seen.frame
    print(json.dumps({"state": frame.state, "events": frame.events, "lost": frame.lost}), flush=True)


def _print_screen(monitor: Monitor, now_s: float) -> None:
    from semipd_top.panels.overview import first_screen
    from semipd_top.text.lines import plain

    width, height = shutil.get_terminal_size((80, 24))
    for line in first_screen(monitor.picture(now_s), min(width, MAX_COLUMNS), min(height, MAX_LINES)):
        print(plain(line).rstrip())


def _require(found: object) -> None:
    if not found:
        raise SemipdError("no_frames", "The recording holds no state frame.", "Nothing was seen meanwhile.")
