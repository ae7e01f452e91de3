"""The states, requests and events that the dashboard's tests are built on look like those of real daemons."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from support import top_state
from support.daemon import running
from support.top_source import RecordingOperator

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.events import EventKind

FAKE = default_engine_settings(device="fake")
FREE = {"memory", "stats", "totals", "refused", "requested", "observed"}
"""Mappings whose names are data."""


def shape(value: Any) -> Any:
    """Names all the way down; lists by their first entry; what is None matches anything."""
    if isinstance(value, Mapping):
        return {name: {} if name in FREE else shape(part) for name, part in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return [shape(value[0])]
    return None


def agree(made: Any, real: Any) -> bool:
    if isinstance(made, Mapping) and isinstance(real, Mapping):
        return set(made) == set(real) and all(agree(made[name], real[name]) for name in made)
    if isinstance(made, list) and isinstance(real, list):
        return agree(made[0], real[0])
    return made is None or real is None


def test_shapes_that_differ_do_not_agree() -> None:
    made = shape(top_state.state())
    assert agree(made, shape(top_state.state({"kv.holders": []})))
    for path in ("drain", "partition.decision", "lanes.decode"):
        other = top_state.state()
        owner = other
        for name in path.split("."):
            owner = owner[name]
        del owner[next(iter(owner))]
        assert not agree(made, shape(other)), path


async def test_states_requests_and_answers_are_those_of_a_daemon(tmp_path: Path) -> None:
    async with (
        running(tmp_path, fake=FAKE) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        streams = [client.generate([1] * 50, max_tokens=1900, ignore_eos=True) for _ in range(2)]
        for stream in streams:
            await anext(stream)
        async with client.subscribe(interval_ms=100) as states:
            busy = (await anext(states)).state
        rows = await client.requests()
        document, made = await client.partition(), RecordingOperator()
        wish = {"prefill_units": 6, "expires_s": 60.0, "dry_run": True}
        answers = (await client.set_partition(**wish), await made.set_partition(**wish))
        targets = (await client.set_slo(ttft_ms=300.0), await made.set_slo(ttft_ms=300.0))
        for stream in streams:
            await stream.cancel()
    assert agree(shape(top_state.state()), shape(busy))
    assert set(top_state.request(1)) == set(rows[0])
    assert agree(shape(top_state.partition_document()), shape(document))
    assert set(answers[0]) == set(answers[1])
    assert agree(shape(targets[1]), shape(targets[0]))


async def test_states_without_an_engine_are_those_of_a_daemon(tmp_path: Path) -> None:
    async with running(tmp_path, start=False) as daemon:
        client = await AsyncClient.connect(daemon.socket_path)
        async with client, client.subscribe() as states:
            real = (await anext(states)).state
    made = top_state.state_without_engine()
    assert agree(shape(made), shape(real))
    assert {name for name, part in made.items() if part is None} == {
        name for name, part in real.items() if part is None
    }


def test_every_kind_of_event_has_an_example_with_the_documented_data() -> None:
    assert set(top_state.EVENTS) == set(get_args(EventKind))
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*)\|$", text[text.index("\n## Events") :], re.MULTILINE))
    for kind, data in top_state.EVENTS.items():
        documented = set(re.findall(r"`(\w+)`", rows[kind]))
        assert set(data) <= documented, kind


async def test_the_recording_operator_refuses_as_a_daemon_does(tmp_path: Path) -> None:
    codes = []
    async with (
        running(tmp_path, fake=FAKE) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        for operator in (client, RecordingOperator()):
            try:
                await operator.set_partition(prefill_units=0, dry_run=True)
            except SemipdError as error:
                codes.append((error.code, error.message[:5], error.hint.split("(")[0]))
    assert codes[0] == codes[1]
