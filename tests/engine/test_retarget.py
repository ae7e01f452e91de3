"""Operators change the targets of a class: requests under way follow, those that brought their own do not."""

from dataclasses import replace

import msgpack
import pytest
from support.fake_engine import Run, request

from semipd.config.config import default_engine_settings
from semipd.core.events import SLO_CHANGED
from semipd.core.messages import Inbound, SetClass, SetSlo, Status, Submit
from semipd.core.slo import NO_TARGETS, Targets
from semipd.devices.fake import FakeDevice
from semipd.wire.engine_link import inbound_from_wire, inbound_to_wire

BEFORE, AFTER, OWN = Targets(300, 10.0, None, 40), Targets(200), Targets(7)
SETTINGS = default_engine_settings(device="fake", max_num_seqs=1)


def targets_after(change: Inbound, name: str, before: Targets) -> tuple[list[Targets], Run]:
    """Of one that decodes, one that waits, one with targets of its own, and one of another class."""
    run = Run(FakeDevice(), SETTINGS)
    plain = [request(seq, [seq] * 4, arrival_ns=seq, max_tokens=50) for seq in (1, 2, 3, 4)]
    of_class = [replace(one, service_class=name, targets=before) for one in plain[:2]]
    own = replace(plain[2], service_class=name, targets=OWN)
    other = replace(plain[3], service_class="other", targets=before)
    run.tick([Submit(one) for one in (*of_class, own, other)])
    run.tick([change])
    sequences = run.coordinator.scheduler.sequences
    run.coordinator.check_integrity()
    return [sequences[one.seq].request.targets for one in plain], run


@pytest.mark.parametrize("after", [AFTER, NO_TARGETS])
def test_targets_of_a_class(after: Targets) -> None:
    change = SetClass(9, "chat", BEFORE, after, "ann", "evening")
    found, run = targets_after(change, "chat", BEFORE)
    assert found == [after, after, OWN, BEFORE]
    [told] = [SLO_CHANGED.of(event) for event in run.events if event.kind == "slo_changed"]
    assert (told["service_class"], told["ttft_ms"]) == ("chat", after.ttft_ms or 0.0)
    assert run.coordinator.control.slo == SETTINGS.slo, "partition control follows the class default"


def test_targets_of_the_class_default() -> None:
    slo = SETTINGS.slo
    found, run = targets_after(SetSlo(9, {"ttft_ms": 200.0, "itl_ms": 30.0}, "ann"), "default", slo.targets)
    after = replace(slo.targets, ttft_ms=200.0, itl_ms=30.0)
    assert found == [after, after, OWN, slo.targets]
    assert run.coordinator.control.slo.targets == after


def test_how_many_follow_is_answered() -> None:
    run = Run(FakeDevice(), SETTINGS)
    one = replace(request(1, [1], arrival_ns=1, max_tokens=50), service_class="chat", targets=BEFORE)
    run.tick([Submit(one)])
    turn = run.coordinator.tick(run.now_ns, [SetClass(9, "chat", BEFORE, AFTER, "ann")])
    assert [m.data for m in turn.outbox if isinstance(m, Status)] == [{"requests": 1}]


def test_the_order_survives_the_link() -> None:
    change = SetClass(3, "chat", BEFORE, NO_TARGETS, "ann", "why")
    assert inbound_from_wire(msgpack.unpackb(msgpack.packb(inbound_to_wire(change)))) == change
