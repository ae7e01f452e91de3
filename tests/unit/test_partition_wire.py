"""Partition messages survive the link between daemon and engine."""

import pytest

from semipd.core.errors import Refusal
from semipd.core.messages import GetPartition, Inbound, SetPartition, SetSlo, Status
from semipd.wire.engine_link import inbound_from_wire, inbound_to_wire, outbound_from_wire, outbound_to_wire
from semipd.wire.frames import HEADER, decode_body, encode_frame


@pytest.mark.parametrize(
    "message",
    [
        GetPartition(3),
        SetPartition(4, "fixed", "ann", "why", 12, None, 1.5, True),
        SetPartition(5, "auto", ""),
        SetSlo(6, {"ttft_ms": 5.0}, "bob", "x"),
    ],
)
def test_questions(message: Inbound) -> None:
    assert inbound_from_wire(decode_body(encode_frame(inbound_to_wire(message))[HEADER.size :])) == message


@pytest.mark.parametrize("refused", [None, {"code": "c", "message": "m", "hint": "", "param": None}])
def test_answers(refused: Refusal | None) -> None:
    answer = Status(7, {"granted": [1, 2], "deep": {"at_ns": 5}}, refused)
    assert outbound_from_wire(decode_body(encode_frame(outbound_to_wire(answer))[HEADER.size :])) == answer
