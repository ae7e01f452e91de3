"""A source and an operator for tests of the dashboard: items come when the test says so, acts are written
down, and time goes by only when it is told to."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

from semipd_top.sources.contract import Gone, Item, Operator
from support.top_state import CHANGE, NOW_S, NUM_UNITS, POSSIBLE, SLO, partition_document

from semipd.core.errors import SemipdError
from semipd.core.state.partition import ChangeAnswer, PartitionDocument, SloAnswer
from semipd.core.state.requests import RequestRow


class RecordingOperator:
    """Answers as a daemon does. `calls`: what was asked, oldest first. `refusals`: by method, what to raise.
    `gate`: when set to an unset Event, deeds (no dry runs) wait for it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refusals: dict[str, SemipdError] = {}
        self.records: dict[str, list[RequestRow]] = {}
        self.document: PartitionDocument = partition_document()
        self.gate: asyncio.Event | None = None

    @property
    def deeds(self) -> list[tuple[str, dict[str, Any]]]:
        """Calls that change something."""
        return [
            (name, fields)
            for name, fields in self.calls
            if name not in ("partition", "requests") and not fields.get("dry_run")
        ]

    async def partition(self) -> PartitionDocument:
        await self._note("partition")
        return self.document

    async def set_partition(self, **fields: Any) -> ChangeAnswer:
        await self._note("set_partition", fields)
        return _answer(fields)

    async def clear_partition(self, **fields: Any) -> ChangeAnswer:
        await self._note("clear_partition", fields)
        return _answer({"mode": "auto"})

    async def set_slo(self, **fields: Any) -> SloAnswer:
        await self._note("set_slo", fields)
        targets, name = SLO["targets"], fields.get("service_class")
        changed = {key: value for key, value in fields.items() if key in targets}
        if name is not None:
            none = {"ttft_ms": 0.0, "ttft_ms_per_1k_tokens": 0.0, "tpot_ms": 0.0, "itl_ms": 0.0}
            return cast(SloAnswer, {**SLO, "classes": {name: {"targets": none | changed}}})
        return cast(SloAnswer, {**SLO, "targets": {**targets, **changed}})

    async def requests(
        self, *, state: str | None = None, limit: int | None = None, request_id: str | None = None
    ) -> list[RequestRow]:
        await self._note("requests", {"state": state, "limit": limit, "request_id": request_id})
        return self.records.get(request_id or "", [])

    async def cancel_request(self, request_id: str) -> str:
        await self._note("cancel_request", {"request_id": request_id})
        return "cancelled"

    async def _note(self, name: str, fields: Mapping[str, Any] | None = None) -> None:
        given = dict(fields or {})
        self.calls.append((name, given))
        if self.gate is not None and not given.get("dry_run"):
            await self.gate.wait()
        if name in self.refusals:
            raise self.refusals[name]


def _answer(wish: Mapping[str, Any]) -> ChangeAnswer:
    """Of partition.set: the nearest possible split, and what is predicted for it."""
    mode, units = wish.get("mode", "fixed"), wish.get("prefill_units")
    granted = None if units is None else min(POSSIBLE, key=lambda split: abs(split[0] - units))
    if units is not None and not 0 < units < NUM_UNITS:
        hint = f"Possible splits (prefill+decode SMs): {', '.join(f'{p}+{d}' for p, d in POSSIBLE)}."
        message = f"{units} of {NUM_UNITS} SMs for prefill leaves one lane without any."
        raise SemipdError("impossible_split", message, hint, param="prefill_units")
    expires_s = wish.get("expires_s")
    return {
        **CHANGE,
        "at_s": NOW_S,
        "mode": mode,
        "granted": granted,
        "rounding": "" if granted is None or granted[0] == units else f"{units} SMs asked for",
        "expires_at_s": None if expires_s is None else NOW_S + expires_s,
        "dry_run": wish.get("dry_run", False),
        "takes_effect": "with the next step",
        "forecast": {"split": granted or [], "ttft_ms": 210.5, "tpot_ms": 47.9},
    }


class ScriptedSource:
    """Items come by `say`; `now_s` is what the test sets. An exception is raised where it stands."""

    title = "scripted"
    interval_s = 0.5

    def __init__(self, *items: Item | Exception, why_read_only: str = "") -> None:
        self.why_read_only = why_read_only
        self.at_s = NOW_S
        self.connected = True
        self.person = RecordingOperator()
        self.num_told = 0
        self._queue: asyncio.Queue[Item | Exception] = asyncio.Queue()
        for item in items:
            self.say(item)

    def say(self, item: Item | Exception) -> None:
        self._queue.put_nowait(item)

    @property
    def operator(self) -> Operator:
        if not self.connected:
            raise SemipdError(
                "not_connected", "There is no connection to a daemon.", "Wait until it is there."
            )
        return self.person

    def now_s(self) -> float:
        return self.at_s

    async def items(self) -> AsyncGenerator[Item, None]:
        while True:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            yield item
            self.num_told += 1


class ScriptedPlayback(ScriptedSource):
    """A recording as far as the dashboard can tell."""

    speed = 1.0
    paused = False
    num_steps = 0

    def __init__(self, *items: Item | Exception) -> None:
        super().__init__(*items, why_read_only="this is a recording")

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def step(self) -> None:
        self.num_steps += 1
        self.paused = True

    def skip(self, seconds: float) -> None:
        self.at_s += seconds


def gone(retry_s: float | None = NOW_S + 3, code: str = "daemon_not_running") -> Gone:
    return Gone(NOW_S, code, "No daemon listens at /run/d.sock.", "Start one.", retry_s)
