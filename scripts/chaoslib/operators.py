"""What operators, watchers and clients with strange wishes do to the daemon."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

from chaoslib.clients import REFUSALS, connected
from chaoslib.http import HttpExchange, ask
from semipd.core.errors import SemipdError
from semipd.wire.client_protocol import hello
from semipd.wire.frames import FrameReader, encode_frame

CHANGES_PER_S = 100
NUM_CHANGES = 300
NUM_PATIENT_LOOKS = 900
FRAME_BYTES = 2**26

POISON: list[dict[str, Any]] = [
    {"repetition_penalty": 1e-300},
    {"repetition_penalty": 1e300},
    {"repetition_penalty": 5e-324},
    {"top_k": 1e30},
    {"top_k": 2**63},
    {"top_k": -(2**70)},
    {"top_p": 5e-324},
    {"min_p": 1.0000001},
    {"temperature": 1e-300},
    {"temperature": 1e300},
    {"presence_penalty": 1e300},
    {"frequency_penalty": -1e300},
    {"logit_bias": {"5": 1e300, " 5": 1e300, "05": 1e300}},
    {"logit_bias": {"5": -1e300}},
    {"seed": 2**70},
    {"max_tokens": 2**70},
    {"max_tokens": 1e30},
    {"n": 10**9},
    {"best_of": 10**9},
    {"logprobs": 10**9},
    {"min_tokens": 10**12},
    {"stop": ["x" * 10**5] * 100},
    {"timeout_ms": 1e300},
    {"priority": 10**30},
]
"""One parameter each, at or beyond the edge of its range."""


async def change_everything(rng: random.Random, socket_path: Path, counts: Counter[str]) -> None:
    """Splits and targets, a hundred times a second; then they are as they were. Counts as garbage.throw."""
    client = await connected(str(socket_path))
    try:
        before = await _targets(client)
        asked = []
        for _ in range(NUM_CHANGES):
            asked.append(asyncio.create_task(_change(rng, client, counts), name="change"))
            await asyncio.sleep(1 / CHANGES_PER_S)
        await asyncio.gather(*asked)
        await _restored(client, before)
    except SemipdError as error:
        counts[_kind(error.code)] += 1
    finally:
        await client.close()


async def _targets(client: Any) -> dict[str, Any]:
    """As they are, once an engine is there. Raises SemipdError."""
    for _ in range(NUM_PATIENT_LOOKS):
        try:
            found: dict[str, Any] = await client.slo()
            return found
        except SemipdError as error:
            if error.code not in REFUSALS:
                raise
        await asyncio.sleep(0.2)
    raise SemipdError("daemon_silent", "No engine was there to be changed.")


async def _change(rng: random.Random, client: Any, counts: Counter[str]) -> None:
    try:
        if rng.random() < 0.5:
            await client.set_slo(ttft_ms=float(rng.randint(1, 5000)), tpot_ms=float(rng.randint(1, 500)))
        elif rng.random() < 0.2:
            await client.set_partition(mode="auto")
        else:
            prefill = rng.randint(1, 8)
            await client.set_partition(mode="fixed", prefill_units=prefill, expires_s=rng.uniform(1, 60))
        counts["answered"] += 1
    except SemipdError as error:
        counts[_kind(error.code)] += 1


async def _restored(client: Any, before: dict[str, Any]) -> None:
    slo = before.get("slo", before)
    await client.clear_partition()
    await client.set_slo(**{name: slo[name] for name in ("ttft_ms", "tpot_ms") if name in slo})


def _kind(code: str) -> str:
    if code in ("daemon_silent", "connection_lost"):
        return "no answer"
    return "server error" if code in ("internal_error", "engine_bug") else "answered"


async def poison(url: str, wishes: dict[str, Any], counts: Counter[str]) -> None:
    """A request that must be refused or served, and hurts nobody in either case. Counts as garbage.throw."""
    body = {"prompt": [1, 2, 3], "max_tokens": 4} | wishes
    try:
        exchange = await HttpExchange.open(url, "POST", "/v1/completions", body)
        try:
            status, answer = await exchange.json()
        finally:
            exchange.hang_up()
    except (OSError, ValueError, SemipdError):
        counts["no answer"] += 1
        return
    code = (answer.get("error") or {}).get("code") if isinstance(answer, dict) else None
    counts["server error" if status >= 500 and code not in REFUSALS else "answered"] += 1


async def drain(url: str) -> int:
    """Begin one; the status of the answer."""
    return (await ask(url, "POST", "/v1/drain"))[0]


async def undo_drain(url: str) -> int:
    return (await ask(url, "DELETE", "/v1/drain"))[0]


class Sleeper:
    """A subscriber that reads nothing until it is asked what it sees."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def asleep(cls, socket_path: Path) -> "Sleeper":
        reader, writer = await asyncio.open_unix_connection(str(socket_path), limit=4096)
        writer.write(encode_frame(hello("chaos")))
        writer.write(encode_frame({"id": 1, "op": "subscribe", "interval_ms": 100, "events": True}))
        return cls(reader, writer)

    async def sees_a_ready_engine(self) -> None:
        """Wake up and read until a frame says so. Raises EOFError when the daemon has hung up."""
        frames = FrameReader(FRAME_BYTES)
        while data := await self._reader.read(2**16):
            for frame in frames.feed(data):
                state = frame.get("state") or {}
                if (state.get("engine") or {}).get("state") == "ready":
                    return
        raise EOFError

    def close(self) -> None:
        self._writer.transport.abort()
