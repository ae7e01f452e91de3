"""Lanes over the fake driver: moving between splits keeps each lane's order, and nothing else is ordered."""

import random
from typing import Any

import pytest
from support.fake_cuda import FakeCuda

from semipd.core.errors import SemipdError
from semipd.core.split import LaneName
from semipd.devices.cuda.driver.interface import Event
from semipd.devices.cuda.driver.timing_events import EventPool
from semipd.devices.cuda.split.streams import Lanes


@pytest.fixture
def cuda() -> FakeCuda:
    cuda = FakeCuda()
    cuda.bind_thread()
    return cuda


@pytest.fixture
def lanes(cuda: FakeCuda) -> Lanes:
    return Lanes.open(cuda)


def step(cuda: FakeCuda, lanes: Lanes, lane: LaneName, label: str = "step", **touched: Any) -> None:
    with cuda.on(lanes._current[lane]):
        cuda.launch(label, **touched)


def test_a_lane_keeps_its_order_through_any_moves(cuda: FakeCuda, lanes: Lanes) -> None:
    """Every step of a lane changes the lane's batch, so two unordered steps would be a race."""
    rng = random.Random(1)
    solo = {"prefill": lanes.solo_prefill, "decode": lanes.solo_decode}
    step(cuda, lanes, "prefill", writes=["prefill"])
    step(cuda, lanes, "decode", writes=["decode"])
    for _ in range(500):
        lane: LaneName = rng.choice(["prefill", "decode"])
        if rng.random() < 0.5:
            lanes.move(lane, rng.choice([*lanes.splits, solo[lane]]))
        step(cuda, lanes, lane, reads=[lane], writes=[lane])
    assert min(stats.count for stats in lanes.switches.values()) > 50
    cuda.check_order()


def test_without_its_event_a_move_is_a_race(
    cuda: FakeCuda, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(cuda, lanes, "decode", writes=["batch"])
    monkeypatch.setattr(cuda, "wait_event", lambda stream, event: None)
    lanes.move("decode", lanes.splits[0])
    step(cuda, lanes, "decode", writes=["batch"])
    with pytest.raises(AssertionError, match="race of 'batch'"):
        cuda.check_order()


def test_a_move_goes_to_the_split_asked_for_and_waits_for_nothing(cuda: FakeCuda, lanes: Lanes) -> None:
    for split in (*lanes.splits, lanes.solo_decode, lanes.splits[3]):
        stream = lanes.move("decode", split)
        assert stream == lanes._current["decode"] == lanes.stream("decode", split)
        assert len(cuda.stream_sms(stream)) == lanes.num_sms("decode", split) == split.decode_units
    cuda.trace.clear()
    lanes.move("decode", lanes.splits[2])
    assert [type(op).__name__ for op in cuda.trace] == ["Record", "Wait"]


def test_staying_costs_no_driver_call(cuda: FakeCuda, lanes: Lanes) -> None:
    lanes.move("decode", lanes.splits[1])
    before = len(cuda.trace)
    lanes.move("decode", lanes.splits[1])
    assert len(cuda.trace) == before
    assert lanes.switches["decode"].count == 1
    assert lanes.switches["prefill"].count == 0


def test_switches_are_measured(lanes: Lanes) -> None:
    for split in lanes.splits:
        lanes.move("prefill", split)
    stats = lanes.switches["prefill"]
    assert stats.count == len(lanes.splits)
    assert 0 < stats.last_ns <= stats.max_ns <= stats.total_ns


def test_a_lane_waits_for_what_the_other_had_launched_when_it_was_recorded(
    cuda: FakeCuda, lanes: Lanes
) -> None:
    events = EventPool(cuda)
    prefill, decode = lanes.move("prefill", lanes.splits[0]), lanes.move("decode", lanes.splits[0])
    step(cuda, lanes, "prefill", writes=["block 7"])
    written = events.record(prefill)
    step(cuda, lanes, "prefill", writes=["block 8"])
    cuda.wait_event(decode, written)
    step(cuda, lanes, "decode", reads=["block 7"])
    cuda.check_order()
    step(cuda, lanes, "decode", reads=["block 8"])
    with pytest.raises(AssertionError, match="race of 'block 8'"):
        cuda.check_order()


def test_an_event_given_back_is_used_again_and_old_waits_stay(cuda: FakeCuda, lanes: Lanes) -> None:
    events = EventPool(cuda)
    prefill, decode = lanes.move("prefill", lanes.splits[0]), lanes.move("decode", lanes.splits[0])
    step(cuda, lanes, "prefill", writes=["block 7"])
    written = events.record(prefill)
    cuda.wait_event(decode, written)
    events.give_back(written)
    assert events.record(decode) == written
    step(cuda, lanes, "decode", reads=["block 7"])
    cuda.check_order()


def test_an_event_cannot_be_given_back_twice(cuda: FakeCuda, lanes: Lanes) -> None:
    events = EventPool(cuda)
    event = events.record(lanes.move("decode", lanes.splits[0]))
    events.give_back(event)
    with pytest.raises(AssertionError, match="given back twice"):
        events.give_back(event)


def test_events_are_not_made_over_and_over(cuda: FakeCuda, lanes: Lanes) -> None:
    events, stream = EventPool(cuda), lanes.move("decode", lanes.splits[0])
    held: list[Event] = []
    for _ in range(100):
        held.append(events.record(stream))
        if len(held) > 3:
            events.give_back(held.pop(0))
    assert len([thing for thing in cuda.alive() if thing.startswith("event")]) == 2 + 4


def test_close_waits_for_running_work_and_can_be_repeated(cuda: FakeCuda, lanes: Lanes) -> None:
    lanes.move("decode", lanes.splits[0])
    step(cuda, lanes, "decode", writes=["batch"])
    lanes.close()
    assert cuda.alive() == []
    lanes.close()


def test_close_tries_everything_and_names_every_failure(cuda: FakeCuda, lanes: Lanes) -> None:
    """As after an illegal access: waiting for the streams fails, and the rest still goes."""
    cuda.fail("synchronize_stream", times=1000, status=700)
    with pytest.raises(SemipdError) as caught:
        lanes.close()
    assert caught.value.code == "cuda_release_failed"
    assert caught.value.message.count("(700)") == 2 * len(lanes.splits) + 2
    assert cuda.alive() == []


def test_an_error_while_giving_back_is_told_with_what_led_there(cuda: FakeCuda) -> None:
    cuda.fail("create_green_context", at=6)
    cuda.fail("destroy_green_context", at=2, status=709)  # the first one is of the trial
    with pytest.raises(SemipdError, match=r"\(709\).*After: create_green_context failed"):
        Lanes.open(cuda)
