"""/metrics, /v1/requests and /v1/events from outside, over a real engine process on the fake device."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from support.daemon import Running, running
from support.events import told

from semipd.config.config import default_engine_settings
from semipd.core.state.engine import EngineStatus
from semipd.daemon.history.metric_names import DEFINITIONS
from semipd.daemon.operators import events as events_route

FAKE = default_engine_settings(device="fake")
JSON = {"Content-Type": "application/json"}
LABELS = {"model_name": "bytes", "engine": "0"}

Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def get(daemon: Running, path: str, **headers: str) -> tuple[int, Any]:
    async with daemon.http.get(daemon.url + path, headers=headers) as response:
        return response.status, await response.json()


async def delete(daemon: Running, request_id: str) -> tuple[int, Any]:
    async with daemon.http.delete(f"{daemon.url}/v1/requests/{request_id}", headers=JSON) as response:
        return response.status, await response.json()


async def scrape(daemon: Running) -> Metrics:
    async with daemon.http.get(f"{daemon.url}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await response.text()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    shared = LABELS if name.startswith("vllm:") else {}
    return metrics[name, frozenset((shared | labels).items())]


async def generating(daemon: Running, request_id: str, **body: Any) -> asyncio.Task[tuple[int, Any, Any]]:
    """A request that runs until somebody ends it, once it has its first token."""
    asked = {"prompt": [1, 2, 3], "max_tokens": 2000, "ignore_eos": True} | body
    task = asyncio.create_task(daemon.post(asked, **{"X-Request-ID": request_id}))
    for _ in range(2000):
        _status, listed = await get(daemon, "/v1/requests?state=decoding")
        if request_id in [record["id"] for record in listed["data"]]:
            return task
        await asyncio.sleep(0.01)
    raise AssertionError(f"{request_id} does not decode")


# ---- requests --------------------------------------------------------------------------------------


async def test_requests_are_listed_without_their_text(tmp_path: Path) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        await daemon.post({"prompt": "secret", "max_tokens": 4, "ignore_eos": True}, **{"X-Request-ID": "a"})
        await daemon.post(
            {"prompt": "x", "max_tokens": 3, "n": 2, "ignore_eos": True}, **{"X-Request-ID": "b/1"}
        )
        status, listed = await get(daemon, "/v1/requests")
        one = await get(daemon, "/v1/requests/b/1")
        limited = await get(daemon, "/v1/requests?limit=1&state=finished")
        live = await get(daemon, "/v1/requests?state=live")
    assert status == 200
    assert [record["id"] for record in listed["data"]] == ["b/1", "b/1", "a"]
    record = listed["data"][-1]
    assert (record["state"], record["finish_reason"], record["error_code"]) == ("finished", "length", None)
    assert (record["prompt_tokens"], record["output_tokens"], record["max_tokens"]) == (7, 4, 4)
    assert 0 <= record["queue_ms"] <= record["ttft_ms"] <= record["age_ms"]
    assert record["queue_ms"] + record["prefill_ms"] <= record["ttft_ms"]
    assert record["tpot_ms"] >= 0
    assert "secret" not in json.dumps([listed, one])
    assert len(limited[1]["data"]) == 1
    assert live[1]["data"] == []
    assert len(one[1]["sequences"]) == 2
    for sequence in one[1]["sequences"]:
        kinds = [event["kind"] for event in sequence["events"]]
        assert kinds == ["arrived", "queued", "admitted", "first_token", "first_byte", "finished"]
        times = [event["at_s"] for event in sequence["events"]]
        assert times == sorted(times)


@pytest.mark.parametrize(
    "query", ["state=asleep", "limit=0", "limit=x", "limit=99999999999", "limit=-1", "limit=²"]
)
async def test_wrong_filters_are_refused(tmp_path: Path, query: str) -> None:
    async with running(tmp_path) as daemon:
        status, answer = await get(daemon, f"/v1/requests?{query}")
    assert (status, answer["error"]["code"]) == (400, "invalid_value")
    assert answer["error"]["param"] == query.partition("=")[0]


async def test_cancel_says_what_happened(tmp_path: Path) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        task = await generating(daemon, "long", n=2)
        status, answer = await delete(daemon, "long")
        assert (status, answer) == (200, {"id": "long", "result": "cancelled"})
        client_status, told, _ = await task
        assert (client_status, told["error"]["code"]) == (499, "request_cancelled")
        await daemon.engine_says(lambda engine: not engine["requests"]["decoding"])
        assert await delete(daemon, "long") == (200, {"id": "long", "result": "already_finished"})
        status, answer = await delete(daemon, "unheard-of")
        assert (status, answer["result"], answer["error"]["code"]) == (404, "not_found", "not_found")
        _status, listed = await get(daemon, "/v1/requests")
        metrics = await scrape(daemon)
    assert {record["finish_reason"] for record in listed["data"]} == {"cancelled"}
    assert value(metrics, "vllm:request_success_total", finished_reason="abort") == 2
    judged = value(metrics, "semipd:slo_requests_total", service_class="default")
    assert judged == 0, "cancelled ones are left out"


async def test_a_stream_that_is_cancelled_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        body = {"prompt": [1, 2, 3], "max_tokens": 2000, "ignore_eos": True, "stream": True}
        headers = {"X-Request-ID": "stream"}
        async with daemon.http.post(f"{daemon.url}/v1/completions", json=body, headers=headers) as response:
            await response.content.readuntil(b"\n\n")
            assert (await delete(daemon, "stream"))[1]["result"] == "cancelled"
            rest = (await response.read()).decode().split("\n\n")
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "request_cancelled"


async def test_cancel_passes_the_guards_of_state_changing_calls(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        async with daemon.http.delete(f"{daemon.url}/v1/requests/x") as response:
            assert response.status == 415
        headers = JSON | {"Host": "evil.example"}
        async with daemon.http.delete(f"{daemon.url}/v1/requests/x", headers=headers) as response:
            assert response.status == 403


async def test_timing_comes_on_demand_only(tmp_path: Path) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        asked = {"prompt": list(range(40)), "max_tokens": 6, "ignore_eos": True}
        plain = await daemon.complete(**asked)
        whole = await daemon.complete(**asked, include_timing=True)
        events = await daemon.stream(**asked, include_timing=True)
    assert "timing" not in plain["usage"]
    assert events[-1]["choices"] == [], "the usage chunk, though stream_options did not ask for it"
    for timing in (whole["usage"]["timing"], events[-1]["usage"]["timing"]):
        assert set(timing) == {
            "queue_ms",
            "prefill_ms",
            "ttft_ms",
            "tpot_ms",
            "total_ms",
            "preemptions",
            "cached_tokens",
        }
        assert timing["queue_ms"] + timing["prefill_ms"] <= timing["ttft_ms"] <= timing["total_ms"]
        assert timing["tpot_ms"] * 5 <= timing["total_ms"]
        assert (timing["preemptions"], timing["cached_tokens"]) == (0, 32)


async def test_preemptions_are_seen(tmp_path: Path) -> None:
    small = default_engine_settings(device="fake", max_num_blocks=12)
    async with running(tmp_path, fake=small) as daemon:
        bodies = [{"prompt": [n] * 40, "max_tokens": 100, "ignore_eos": True} for n in range(4)]
        await asyncio.gather(*(daemon.complete(**body) for body in bodies))
        _status, listed = await get(daemon, "/v1/requests")
        metrics = await scrape(daemon)
        engine = await daemon.engine()
    assert engine["preemptions"] > 0
    assert sum(record["preemptions"] for record in listed["data"]) == engine["preemptions"]
    assert value(metrics, "vllm:num_preemptions_total") == engine["preemptions"]


# ---- metrics ---------------------------------------------------------------------------------------


async def test_metrics_after_some_work(tmp_path: Path) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        for _ in range(2):
            await daemon.complete(prompt=list(range(40)), max_tokens=5, ignore_eos=True, zzz=1)
        await daemon.post({"prompt": [5000], "max_tokens": 1})
        await daemon.post(b"no json")
        metrics = await scrape(daemon)
        engine = await daemon.engine()
    assert value(metrics, "semipd:engine_up") == 1
    assert value(metrics, "vllm:prompt_tokens_total") == 80
    assert value(metrics, "vllm:generation_tokens_total") == 10
    assert value(metrics, "vllm:request_success_total", finished_reason="length") == 2
    assert value(metrics, "vllm:prefix_cache_queries_total") == 80
    assert value(metrics, "vllm:prefix_cache_hits_total") == 32
    assert value(metrics, "vllm:num_requests_running") == 0
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert value(metrics, f"vllm:{name}_seconds_count") == 2
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 8
    assert value(metrics, "vllm:request_time_per_output_token_seconds_count") == 2
    assert value(metrics, "vllm:inter_token_latency_seconds_bucket", le="+Inf") == 8
    assert value(metrics, "semipd:requests_refused_total", code="invalid_value") == 1
    assert value(metrics, "semipd:requests_refused_total", code="malformed_json") == 1
    assert value(metrics, "semipd:ignored_fields_total") == 2
    judged = value(metrics, "semipd:slo_requests_total", service_class="default")
    assert judged == 2, "clients' own mistakes are no misses"
    for lane in ("prefill", "decode"):
        assert value(metrics, "semipd:lane_steps_total", lane=lane) == engine["lanes"][lane]["steps"]
        assert value(metrics, "semipd:lane_busy_seconds_total", lane=lane) > 0
    assert value(metrics, "semipd:kv_blocks", state="free") == engine["kv"]["free_blocks"]
    assert value(metrics, "process_open_fds") > 0


async def test_metrics_without_an_engine(tmp_path: Path) -> None:
    async with running(tmp_path, start=False) as daemon:
        starting = await scrape(daemon)
    async with running(tmp_path, silent=True) as daemon:
        await daemon.complete(prompt=[97], max_tokens=2)
        silent = await scrape(daemon)
    for metrics in (starting, silent):
        assert value(metrics, "semipd:engine_up") == 0
        assert not any(name.startswith("vllm:num_requests") for name, _ in metrics), "no stale numbers"
    assert value(silent, "vllm:request_success_total", finished_reason="length") == 1


async def test_every_definition_is_exposed_and_openmetrics_parses(tmp_path: Path) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        async with daemon.http.get(f"{daemon.url}/metrics", headers=accept) as response:
            assert response.headers["Content-Type"].startswith("application/openmetrics-text")
            families = {family.name for family in parse_openmetrics(await response.text())}
    assert set(DEFINITIONS) <= families


async def test_scrapes_share_one_question_to_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as daemon:
        asked: list[float] = []
        status = daemon.services.supervisor.status

        async def counted(limit_s: float) -> EngineStatus:
            asked.append(limit_s)
            return await status(limit_s)

        monkeypatch.setattr(daemon.services.supervisor, "status", counted)
        await asyncio.gather(*(scrape(daemon) for _ in range(8)))
    assert len(asked) == 1


async def test_overload_is_a_miss_of_the_service_level(tmp_path: Path) -> None:
    once = {"supervision.max_deaths": 1}
    async with running(tmp_path, settings=once, garble_on=40) as daemon:
        cut_down = asyncio.create_task(daemon.post({"prompt": [40], "max_tokens": 50}))
        daemon.services.table.close(await daemon.services.supervisor.failed())
        assert (await cut_down)[0] == 503
        await daemon.post({"prompt": [41], "max_tokens": 50})
        state = await daemon.services.state(max_age_s=0)
        metrics = await scrape(daemon)
    assert (state["slo"]["requests"], state["slo"]["attainment"]) == (2, 0)
    assert state["kv"] is None
    assert not state["lamps"]["process"]["ok"]
    assert value(metrics, "vllm:request_success_total", finished_reason="error") == 1
    refused = [count for (name, _code), count in metrics.items() if name == "semipd:requests_refused_total"]
    assert refused == [1], "the one that was cut down has a record; the next one was refused"


# ---- events ----------------------------------------------------------------------------------------


class Events:
    """A reader of /v1/events."""

    def __init__(self, response: ClientResponse) -> None:
        self.response = response

    @classmethod
    @asynccontextmanager
    async def of(cls, daemon: Running, query: str = "", **headers: str) -> AsyncIterator["Events"]:
        async with daemon.http.get(f"{daemon.url}/v1/events{query}", headers=headers) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            events = cls(response)
            assert await events.block() == [": semipd events"]
            yield events

    async def block(self) -> list[str]:
        async with asyncio.timeout(20):
            raw = await self.response.content.readuntil(b"\n\n")
        return raw.decode().rstrip("\n").split("\n")

    async def next(self) -> dict[str, Any]:
        """The next event that is no comment, its three parts checked."""
        lines = await self.block()
        while lines[0].startswith(":"):
            lines = await self.block()
        fields = dict(line.split(": ", 1) for line in lines)
        data: dict[str, Any] = json.loads(fields["data"])
        if fields["event"] != "overflow":
            assert fields["id"] == data["id"]
            assert fields["event"] == data["kind"]
        return data | {"kind": fields["event"]}

    async def until(self, kind: str) -> list[dict[str, Any]]:
        found = [await self.next()]
        while found[-1]["kind"] != kind:
            found.append(await self.next())
        return found


async def test_events_live_and_replayed(tmp_path: Path) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        async with Events.of(daemon) as live:
            await daemon.post({"prompt": [1], "max_tokens": 2, "ignore_eos": True}, **{"X-Request-ID": "a"})
            first = await live.until("finished")
            await daemon.post({"prompt": [1], "max_tokens": 2, "ignore_eos": True}, **{"X-Request-ID": "b"})
            second = await live.until("finished")
        async with Events.of(daemon, **{"Last-Event-ID": first[-1]["id"]}) as again:
            assert await again.until("finished") == second
        async with Events.of(daemon, f"?after={first[1]['id']}") as middle:
            assert await middle.until("finished") == first[2:]
        async with Events.of(daemon, "?after=1-7") as other_life:
            assert (await other_life.next())["request_id"] == "a", "another daemon's id: from the beginning"
        status, answer = await get(daemon, "/v1/events?after=7")
    assert (status, answer["error"]["param"]) == (400, "after")
    kinds = [event["kind"] for event in first if event["request_id"] == "a"]
    assert kinds == ["arrived", "queued", "admitted", "first_token", "first_byte", "finished"]
    assert first[-1]["data"]["reason"] == "length"
    assert "split_changed" in [event["kind"] for event in first]


async def test_refusals_are_events(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, Events.of(daemon) as events:
        await daemon.post({"prompt": "a", "max_tokens": 9999}, **{"X-Request-ID": "greedy"})
        event = await events.next()
    assert (event["kind"], event["request_id"]) == ("refused", "greedy")
    assert event["data"] == {"code": "context_length_exceeded"}


async def test_silence_has_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_route, "HEARTBEAT_S", 0.01)
    async with running(tmp_path) as daemon, Events.of(daemon) as events:
        assert await events.block() == [": still here"]


async def test_what_the_ring_has_lost_is_said(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        journal = daemon.services.history.journal
        for number in range(5000):
            journal.add(number, told("noise"))
        async with Events.of(daemon, f"?after={journal.epoch}-100") as events:
            lost = await events.next()
            first = await events.next()
    assert (lost["kind"], lost["lost"]) == ("overflow", 5000 - 4096 - 100)
    assert first["id"] == lost["oldest"] == f"{journal.epoch}-{5000 - 4096 + 1}"


async def test_a_reader_that_falls_behind_is_dropped_with_a_word(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        host, port = daemon.url.removeprefix("http://").split(":")
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**14)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b": semipd events\n\n")
        journal = daemon.services.history.journal
        padding = "x" * 200
        for batch in range(300):
            for number in range(200):
                journal.add(batch * 200 + number, told("noise", padding=padding))
            await asyncio.sleep(0)
        await daemon.complete(prompt=[97], max_tokens=1)  # nobody else is delayed
        async with asyncio.timeout(60):
            text = (await reader.read()).decode() if reader.at_eof() else await _read_to_end(reader)
        writer.close()
    assert text.count("event: noise") < 60_000
    assert text.count("event: overflow") == 1
    assert "event: noise" not in text.partition("event: overflow")[2], "and nothing after it"


async def _read_to_end(reader: asyncio.StreamReader) -> str:
    """Until the chunked answer's end: the connection itself stays open."""
    pieces = [b""]
    while not pieces[-1].endswith(b"0\r\n\r\n"):
        pieces.append(await reader.read(2**16))
        assert pieces[-1], "closed without an end"
    return b"".join(pieces).decode()


async def test_open_event_streams_do_not_delay_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        response = await daemon.http.get(f"{daemon.url}/v1/events")
        await response.content.readuntil(b"\n\n")
        daemon.services.history.close()
        async with asyncio.timeout(20):
            assert await response.content.read() == b""
