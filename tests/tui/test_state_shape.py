"""The states, requests and events that the dashboard's tests are built on look like those of real daemons."""

import re
from pathlib import Path
from typing import get_args

from support import top_state
from support.daemon import running
from support.openai_schema import check_type
from support.top_source import RecordingOperator

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.events import EventKind, EventRow
from semipd.core.state.daemon import StateDocument
from semipd.core.state.partition import PartitionDocument
from semipd.core.state.requests import RequestRow

FAKE = default_engine_settings(device="fake")


def test_what_the_tests_are_built_on_has_the_types_that_daemons_keep_to() -> None:
    """tests/daemon/test_answer_schemas.py holds real answers against the same types."""
    check_type(StateDocument, top_state.state())
    check_type(StateDocument, top_state.state_without_engine())
    check_type(RequestRow, top_state.finished(1))
    check_type(PartitionDocument, top_state.partition_document())
    for kind in top_state.EVENTS:
        check_type(EventRow, top_state.event(kind))


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
