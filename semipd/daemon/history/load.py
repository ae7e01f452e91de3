"""The load as one recorder sees it: arrivals, lengths, and which prompts begin alike. No text, no token ids.

Without a recorder nothing is kept and nothing is computed. With one, an arrival and an end each cost a
dictionary's entry; prompts are hashed afterwards, a few blocks in a turn of the event loop.
"""

import asyncio
import os
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import NamedTuple

from semipd.core.request import Request, SeqId
from semipd.core.state.load import RecordedRefusal, RecordedRequest
from semipd.daemon.history.record import RequestRecord
from semipd.daemon.history.records import RequestHistory
from semipd.system.clock import SYSTEM_CLOCK, Clock

BLOCK_TOKENS = 64
"""Prompts are compared in blocks of so many tokens: four of the engine's."""

SLICE_BLOCKS = 128
"""Hashed in one turn of the event loop: about half a millisecond."""

MAX_UNREAD_TOKENS = 2**21
"""Of prompts that have ended and wait for the recorder; a prompt alone may be longer."""

MAX_UNREAD_REQUESTS = 4096
MAX_FRAME_REQUESTS = 512
MAX_FRAME_BLOCKS = 2**16

_SALT_BYTES = 16
_DIGEST_BYTES = 16
_ID_BYTES = 6
"""48 bits: whole numbers that every reader of JSON keeps exactly."""


class LoadBatch(NamedTuple):
    """`lost`: requests since the batch before that were dropped, as the recorder was too slow."""

    requests: list[RecordedRequest]
    refusals: list[RecordedRefusal]
    lost: int


class LoadRecording:
    """`wants_refusal`: of this code. The salt of the hashes is made here and never told, so that nobody can
    try out whether a prompt is among those recorded."""

    def __init__(
        self, history: RequestHistory, wants_refusal: Callable[[str], bool], clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._history = history
        self._clock = clock
        self._wants_refusal = wants_refusal
        self._salt = os.urandom(_SALT_BYTES)
        self._live: dict[SeqId, tuple[RequestRecord, Request]] = {}
        self._ended: deque[tuple[RequestRecord, Request]] = deque()
        self._refusals: list[RecordedRefusal] = []
        self._unread_tokens = 0
        self._lost = 0

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Inside, requests that arrive are noted."""
        history = self._history
        history.on_arrived.append(self._arrived)
        history.on_finished.append(self._finished)
        history.on_refused.append(self._refused)
        try:
            yield
        finally:
            history.on_arrived.remove(self._arrived)
            history.on_finished.remove(self._finished)
            history.on_refused.remove(self._refused)

    async def batch(self) -> LoadBatch:
        """What has ended since the batch before, or its first part."""
        requests: list[RecordedRequest] = []
        num_blocks = 0
        while self._ended and len(requests) < MAX_FRAME_REQUESTS and num_blocks < MAX_FRAME_BLOCKS:
            record, request = self._ended.popleft()
            self._unread_tokens -= record.prompt_tokens
            requests.append(await self._recorded(record, request))
            num_blocks += len(requests[-1]["hash_ids"])
            await asyncio.sleep(0)
        refusals, self._refusals = self._refusals, []
        lost, self._lost = self._lost, 0
        return LoadBatch(requests, refusals, lost)

    @property
    def has_more(self) -> bool:
        return bool(self._ended or self._refusals)

    def end(self) -> None:
        """What still runs is told as far as it has come."""
        for record, request in self._live.values():
            self._add(record, request)
        self._live.clear()

    def _arrived(self, record: RequestRecord, request: Request) -> None:
        self._live[record.seq] = (record, request)

    def _finished(self, record: RequestRecord) -> None:
        if (found := self._live.pop(record.seq, None)) is not None:
            self._add(*found)

    def _add(self, record: RequestRecord, request: Request) -> None:
        tokens = self._unread_tokens + record.prompt_tokens
        if len(self._ended) == MAX_UNREAD_REQUESTS or (self._ended and tokens > MAX_UNREAD_TOKENS):
            self._lost += 1
            return
        self._unread_tokens = tokens
        self._ended.append((record, request))

    def _refused(self, code: str, service_class: str) -> None:
        if not self._wants_refusal(code):
            return
        if len(self._refusals) == MAX_UNREAD_REQUESTS:
            self._lost += 1
            return
        self._refusals.append({"at_s": self._clock.time_s(), "refused": code, "service_class": service_class})

    async def _recorded(self, record: RequestRecord, request: Request) -> RecordedRequest:
        return {
            "at_s": self._history.journal.wall_s(record.arrival_ns),
            "input_length": record.prompt_tokens,
            "output_length": record.output_tokens,
            "hash_ids": await self._hash_ids(request),
            "service_class": request.service_class,
            "end": record.finish_reason or "running",
        }

    async def _hash_ids(self, request: Request) -> list[int]:
        """Each from the one before and its block; the first from the root of the prefix index, so that what
        the engine never shares never looks alike."""
        prompt, salt = request.prompt, self._salt
        digest = blake2b(request.namespace.encode(), key=salt, digest_size=_DIGEST_BYTES).digest()
        ids: list[int] = []
        for begin in range(0, len(prompt), BLOCK_TOKENS):
            block = array("Q", prompt[begin : begin + BLOCK_TOKENS]).tobytes()
            digest = blake2b(digest + block, key=salt, digest_size=_DIGEST_BYTES).digest()
            ids.append(int.from_bytes(digest[:_ID_BYTES]))
            if len(ids) % SLICE_BLOCKS == 0:
                await asyncio.sleep(0)
        return ids
