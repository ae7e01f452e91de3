"""What our document and the types promise of every answer, and that a daemon keeps it."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from support.daemon import running
from support.openai_schema import check_answer, check_type

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core import events
from semipd.core.events import EventKind, EventRow, Kind
from semipd.core.state.daemon import StateDocument, Status
from semipd.core.state.requests import RequestRow
from semipd.daemon.servers.routes import ROUTES
from semipd.daemon.web.answer_schemas import AnswerSchemas
from semipd.daemon.web.openapi import document

FAKE = default_engine_settings(device="fake")
KINDS: dict[str, Kind[Any]] = {kind.name: kind for kind in vars(events).values() if isinstance(kind, Kind)}
SAYS = {"type", "anyOf", "$ref", "enum", "const"}
FREE = {"OpenApi", "tokenizerInfo"}
"""Answers that hold JSON of somebody else's making."""


def within(schema: Any, definitions: Any) -> Iterator[tuple[str, Any]]:
    """Every schema that this one is made of, with the name of the definition it stands in."""
    met: set[str] = set()
    waiting = [("", schema)]
    while waiting:
        where, part = waiting.pop()
        yield where, part
        if "$ref" in part:
            where = part["$ref"].rsplit("/", 1)[1]
            if where not in met:
                met.add(where)
                waiting.append((where, definitions[where]))
        inner = [*part.get("anyOf", ()), *part.get("properties", {}).values()]
        inner += [part[name] for name in ("items", "additionalProperties") if name in part]
        waiting += [(where, one) for one in inner]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_no_operation_answers_just_anything(route: Any) -> None:
    shown = document(ROUTES, "0")
    operation: Any = shown["paths"][route.path][route.method.lower()]
    content = operation["responses"]["200"].get("content", {})
    assert (content == {}) == (route.answer is None)
    for media in content.values():
        for where, part in within(media["schema"], shown["components"]["schemas"]):
            assert {where, route.name} & FREE or part.keys() & SAYS, where


def test_a_type_that_says_nothing_has_no_schema() -> None:
    for kind in (Any, list[Any], dict[str, Any]):
        with pytest.raises(TypeError):
            AnswerSchemas("{name}").of(kind)
    with pytest.raises(jsonschema.ValidationError):
        check_type(
            EventRow, {"id": "1-1", "at_s": 0.0, "kind": "queued", "request_id": None, "data": {"x": 1}}
        )


async def test_answers_of_a_daemon_are_as_described(tmp_path: Path) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:

        async def asked(method: str, path: str, body: dict[str, Any] | None = None, route: str = "") -> Any:
            address = daemon.url + path
            async with daemon.http.request(method, address, json=body) as response:
                assert response.status == 200, await response.text()
                answer = await response.json()
            check_answer(method.lower(), route or path, answer)
            return answer

        working = asyncio.create_task(daemon.complete(prompt=[1] * 40, max_tokens=1900, ignore_eos=True))
        await daemon.engine_says(lambda status: bool(status["requests"]["decoding"]))
        for path in ("/health", "/ready", "/version", "/load", "/v1/models", "/tokenizer_info"):
            await asked("GET", path)
        await asked("PUT", "/v1/partition", {"prefill_units": 7, "expires_s": 60, "reason": "why not"})
        await asked("PUT", "/v1/partition", {"mode": "auto", "dry_run": True})
        await asked("PATCH", "/v1/slo", {"ttft_ms": 300})
        for path in ("/v1/status", "/v1/partition", "/v1/slo", "/v1/drain", "/openapi.json"):
            await asked("GET", path)
        await asked("DELETE", "/v1/partition", {})
        [row] = (await asked("GET", "/v1/requests"))["data"]
        await asked("GET", f"/v1/requests/{row['id']}", route="/v1/requests/{id}")
        await asked("DELETE", f"/v1/requests/{row['id']}", {}, route="/v1/requests/{id}")
        await asked("POST", "/v1/drain", {"limit_s": 1, "reason": "why not"})
        await asked("DELETE", "/v1/drain", {})
        with suppress(AssertionError):  # it was cancelled, unless it was quick
            await working
        journal = daemon.services.history.journal
        happened = [journal.to_wire(entry) for entry in journal.read(0, 4096).entries]
    assert {"arrived", "admitted", "partition_changed", "slo_changed", "drain_changed"} <= {
        event["kind"] for event in happened
    }
    for event in happened:
        check_type(EventRow, event)
        check_type(KINDS[event["kind"]].data, event["data"])


async def test_answers_on_the_socket_are_of_their_types(tmp_path: Path) -> None:
    async with running(tmp_path, start=False) as daemon:
        check_type(Status, await daemon.services.status())
        check_type(StateDocument, await daemon.services.state(max_age_s=0))
    async with (
        running(tmp_path, fake=FAKE) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
        client.generate([1] * 50, max_tokens=1900, ignore_eos=True) as stream,
    ):
        await anext(stream)
        async with client.subscribe(interval_ms=100) as states:
            check_type(StateDocument, (await anext(states)).state)
        check_type(Status, await client.status())
        [row] = await client.requests()
        [detailed] = await client.requests(request_id=row["id"])
    for shown in (row, detailed):
        check_type(RequestRow, shown)
    assert json.dumps(detailed["events"])


def test_every_kind_of_event_has_a_type() -> None:
    assert set(KINDS) == set(get_args(EventKind))
