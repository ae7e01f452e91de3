"""The protocol, operations and reliability documents and the Grafana dashboard say what the code does."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from aiohttp.hdrs import METH_DELETE
from prometheus_client.parser import text_string_to_metric_families
from support.daemon import running

from semipd.config.config import Config, default_engine_settings
from semipd.config.sections import LimitsConfig
from semipd.core.events import EventKind
from semipd.daemon.history import journal as events
from semipd.daemon.history import load
from semipd.daemon.history.metric_names import DEFINITIONS
from semipd.daemon.history.records import MAX_RECENT, STATES
from semipd.daemon.history.usage import Timing
from semipd.daemon.requests import schema
from semipd.daemon.servers import frame_stream, socket_connection, socket_session, subscription
from semipd.daemon.servers.socket_operations import TABLE
from semipd.daemon.web import streaming
from semipd.engine import slow_steps
from semipd.wire import client_protocol, frames
from semipd.wire.client_protocol import HELLO_LIMIT_S, check_hello

ROOT = Path(__file__).parents[2]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
OPERATING = (ROOT / "docs" / "operations.md").read_text()
DASHBOARD = json.loads((ROOT / "configs" / "grafana-dashboard.json").read_text())


def section(document: str, heading: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    level = heading.split(" ")[0]
    _, found, rest = document.partition(f"\n{heading}\n")
    assert found, f"no {heading}"
    return re.split(rf"\n#{{1,{len(level)}}} ", rest)[0]


def first_column(text: str) -> list[str]:
    """The code words in the first cell of each row of a table."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def test_the_protocol_lists_the_operations() -> None:
    assert tuple(re.findall(r"^### `([\w.]+)`$", PROTOCOL, re.MULTILINE)) == tuple(TABLE)


@pytest.mark.parametrize("operation", TABLE)
def test_every_field_of_a_request_is_documented(operation: str) -> None:
    text = section(PROTOCOL, f"### `{operation}`")
    fields = set(TABLE[operation].body.model_fields) - {"id", "op"}
    assert {name for name in fields if f"`{name}`" not in text} == set()
    if not fields:
        assert "No fields." in text


def test_the_bytes_of_the_example() -> None:
    example = re.search(r"`(\{[^`]+\})` is, in hex:\n\n```\n([0-9a-f \n]+)\n```", PROTOCOL)
    assert example is not None
    message = json.loads(example[1])
    assert frames.encode_frame(message) == bytes.fromhex(example[2])
    assert frames.FrameReader().feed(bytes.fromhex(example[2])) == [message]


def test_the_hello_of_the_document_is_accepted() -> None:
    hello = re.search(r'^\{"op": "hello".*\}$', PROTOCOL, re.MULTILINE)
    assert hello is not None
    check_hello(json.loads(hello[0]))


def test_limits_are_those_in_force() -> None:
    rows = [line.strip("| ").split(" | ") for line in section(PROTOCOL, "## Limits").splitlines()[3:]]
    said = {name: int(value) for name, value in rows}
    assert said == {
        "bytes of a frame, either way": frames.MAX_FRAME_BYTES,
        "bytes of unfinished frames, all connections together": frame_stream.MAX_ARRIVING_BYTES,
        "entries of an array in a frame to the daemon, unless `limits.max_body_values` says otherwise": (
            frames.longest_array(LimitsConfig().max_body_values)
        ),
        "entries of an array in an answer": frames.MAX_CONTAINER_LEN,
        "entries of a map, or `limits.max_body_values` if that is less": frames.MAX_MAP_LEN,
        "characters of `agent`": client_protocol.MAX_AGENT_CHARS,
        "of these, with the engine at once for `status`, `partition.*`, `slo.*`": socket_session.MAX_ASKED,
        "values in a frame to the daemon, unless `limits.max_body_values` says otherwise": (
            LimitsConfig().max_body_values
        ),
        "characters of a request's id": schema.MAX_ID_CHARS,
        "requests in flight on a connection": socket_connection.MAX_IN_FLIGHT,
        "seconds until the hello must have come": HELLO_LIMIT_S,
        "seconds until a frame that has begun must have come": frame_stream.FRAME_LIMIT_S,
        "seconds a reader of `generate` may take nothing": streaming.WRITE_LIMIT_S,
        "seconds a reader of `subscribe` or `record` may take nothing": subscription.READER_LIMIT_S,
    }
    assert f"at most {subscription.MAX_EVENTS} in one frame" in PROTOCOL
    assert f"At most {load.MAX_FRAME_REQUESTS} are in one frame" in PROTOCOL
    assert f"{load.MAX_UNREAD_REQUESTS:,} of them with {load.MAX_UNREAD_TOKENS:,} prompt tokens" in PROTOCOL
    assert f"each block of {load.BLOCK_TOKENS} tokens" in OPERATING
    assert f"{events.DEFAULT_CAPACITY:,} events" in OPERATING
    assert f"{MAX_RECENT:,} finished ones" in OPERATING


def test_bounds_of_reliability_are_those_in_force() -> None:
    rows = [line.strip("| ").split(" | ") for line in section(RELIABILITY, "## Bounds").splitlines()]
    bounds = {row[2].strip("`"): float(row[1]) for row in rows if len(row) == 4 and row[2].startswith("`")}
    assert len(bounds) > 40
    assert bounds == {where: _value_of(where) for where in bounds}


def _value_of(where: str) -> float:
    """Of a setting by default, or of a module's constant."""
    owner, _, name = where.rpartition(".")
    home = import_module(owner) if owner.startswith("semipd.") else getattr(Config(), owner)
    return float(getattr(home, name))


def test_states_can_be_asked_for() -> None:
    for text in (section(PROTOCOL, "### `requests`"), section(OPERATING, "## Requests")):
        assert {state for state in STATES if f"`{state}`" not in text} == set()


async def test_state_frames_records_and_errors_have_the_documented_fields(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        await daemon.complete(prompt=[97], max_tokens=2)
        state = await daemon.services.state(max_age_s=0)
        [record] = daemon.services.history.records()
        wire = daemon.services.history.to_wire(record)
    table = section(PROTOCOL, "### `subscribe`")
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == set(state)
    assert set(first_column(section(OPERATING, "## Requests"))) == set(wire)


def test_event_kinds_and_timing() -> None:
    kinds = set(first_column(section(OPERATING, "## Events")))
    assert kinds == set(get_args(EventKind))
    assert set(first_column(section(OPERATING, "## Timing of one request"))) == set(Timing.__annotations__)


def test_the_bounds_of_slow_steps_are_those_in_force() -> None:
    [row] = [line for line in OPERATING.splitlines() if line.startswith("| `slow_step`")]
    assert f"{slow_steps.SLOW_FACTOR:g} times" in row
    assert f"{slow_steps.SLOW_FLOOR_NS // 1_000_000} ms" in row
    assert f"At most {slow_steps.MAX_EVENTS_PER_S} in a second" in row


def test_metrics_are_documented() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section(OPERATING, "## Metrics").splitlines()
        if line.startswith("| `")
    ]
    said = {re.split(r"[`{]", name)[1]: (kind, text) for name, kind, text in rows}
    suffixes = {"counter": "_total", "gauge": "", "histogram": ""}
    defined = {d.name + suffixes[d.kind]: (d.kind, d.help) for d in DEFINITIONS.values()}
    assert said == defined


def queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


async def test_the_dashboard_asks_only_for_metrics_that_exist(tmp_path: Path) -> None:
    async with running(tmp_path, fake=default_engine_settings(device="fake")) as daemon:
        await daemon.complete(prompt=[1, 2], max_tokens=3, ignore_eos=True, zzz=1)
        await daemon.post({"prompt": None})
        async with daemon.http.get(f"{daemon.url}/metrics") as response:
            families = list(text_string_to_metric_families(await response.text()))
    exposed: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            exposed.setdefault(sample.name, set()).update(sample.labels)
    asked = [
        (name, query)
        for query in queries()
        for name in re.findall(r"\b(?:vllm|semipd|process)[:_]\w+", query)
    ]
    assert len(asked) > 40
    assert {name for name, _ in asked} <= set(exposed)
    for name, query in asked:
        selector = re.search(re.escape(name) + r"\{([^}]*)\}", query)
        labels = set(re.findall(r"(\w+)=", selector[1])) if selector else set()
        assert labels - {"instance"} <= exposed[name], f"{name} has no such label: {query}"
    for query in queries():
        for grouping in re.findall(r"by \(([^)]*)\)", query):
            names = re.findall(r"\b(?:vllm|semipd)[:_]\w+", query)
            assert set(grouping.split(", ")) <= exposed[names[0]], query


def test_dashboard_panels_are_well_formed() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["targets"]
    for name in DEFINITIONS:
        assert any(name in query for query in queries()), f"{name} is on no panel"


def test_the_documents_name_the_routes() -> None:
    for route in ("GET /metrics", "GET /v1/requests", f"{METH_DELETE} /v1/requests/{{id}}", "GET /v1/events"):
        assert f"`{route}`" in OPERATING
    for route in ("GET /v1/partition", "PUT /v1/partition", f"{METH_DELETE} /v1/partition", "GET /v1/slo"):
        assert f"`{route}`" in OPERATING
