"""When an engine is taken for hung, how long the next one waits, and when there is no next one."""

from copy import deepcopy
from typing import Any

import pytest
from support.scripted_engine import NUMBERS

from semipd.config.sections import SupervisionConfig
from semipd.core.messages import GetStatus, SetPartition, SetSlo
from semipd.core.state.engine import EngineStatus
from semipd.daemon.engine.backoff import Restarts
from semipd.daemon.engine.live_settings import AGAIN, LiveSettings
from semipd.daemon.engine.liveness import Watch
from semipd.system.process_usage import ProcessUsage

INTERVAL_S = 1.0


def watch() -> Watch:
    return Watch(INTERVAL_S, answer_limit_s=10, step_limit_s=20)


def status(
    prefill: tuple[int, int] = (0, 0), decode: tuple[int, int] = (0, 0), requests: int = 0
) -> EngineStatus:
    """(steps, steps in flight) of each lane."""
    found = deepcopy(NUMBERS)
    for lane, (steps, in_flight) in zip(found["lanes"].values(), (prefill, decode), strict=True):
        lane["steps"], lane["steps_in_flight"] = steps, in_flight
    found["requests"]["waiting"] = requests
    return found


def turns_until_accused(watch: Watch, answers: Any, most: int = 200) -> tuple[int, str]:
    for turn in range(1, most + 1):
        if why := watch.turned(INTERVAL_S, answers(turn)):
            return turn, why
    raise AssertionError("never accused")


def test_silence() -> None:
    turn, why = turns_until_accused(watch(), lambda turn: None)
    assert (turn, "supervision.answer_limit_s=10 s" in why) == (10, True)


def test_an_answer_in_time_is_enough() -> None:
    w = watch()
    for turn in range(100):
        assert w.turned(INTERVAL_S, status() if turn % 9 == 0 else None) is None


def test_a_lane_that_stands_is_found_beside_one_that_runs() -> None:
    turn, why = turns_until_accused(watch(), lambda turn: status(prefill=(5, 1), decode=(turn, 1)))
    assert turn == 21, "the first answer is where counting begins"
    assert why.startswith("prefill had work and finished no step within supervision.step_limit_s=20 s")


def test_slow_steps_are_progress() -> None:
    w = watch()
    for turn in range(300):
        assert w.turned(INTERVAL_S, status(prefill=(turn // 19, 1), requests=1)) is None


def test_work_that_no_lane_begins_is_a_hang_too() -> None:
    turn, why = turns_until_accused(watch(), lambda turn: status(requests=3))
    assert (turn, why.split(" had")[0]) == (21, "any lane")


def test_an_idle_engine_may_stand_for_ever() -> None:
    w = watch()
    assert not any(w.turned(INTERVAL_S, status(prefill=(7, 0), decode=(9, 0))) for _ in range(500))


def test_a_machine_that_slept_accuses_nobody() -> None:
    w = watch()
    w.turned(INTERVAL_S, status(decode=(5, 1), requests=1))
    assert w.turned(86_400, None) is None
    assert w.turned(86_400, status(decode=(5, 1), requests=1)) is None
    assert w.turned(INTERVAL_S, status(decode=(6, 1), requests=1)) is None


def test_a_crowded_machine_accuses_nobody_but_a_hung_engine_is_found() -> None:
    w, waiting = watch(), ProcessUsage(withheld_s=0.8 * INTERVAL_S)
    for turn in range(49):
        assert w.turned(INTERVAL_S, None, waiting) is None, turn
    for turn in range(99):
        assert w.turned(INTERVAL_S, status(decode=(5, 1)), waiting) is None, turn
    starved = ProcessUsage(withheld_s=60.0)
    why = next(filter(None, (w.turned(INTERVAL_S, None, starved) for _ in range(10_000))))
    assert "did not answer" in why


CONFIG = SupervisionConfig(max_deaths=4, window_s=100, backoff_s=1, backoff_max_s=5)


def test_backoff_doubles_up_to_its_limit() -> None:
    restarts = Restarts(CONFIG)
    waits = [restarts.died(1.0, fruitful=True) for _ in range(6)]
    assert waits == [1, 2, 4, 5, 5, 5]


def test_deaths_with_nothing_achieved_between_them_end_it() -> None:
    restarts = Restarts(CONFIG)
    assert [restarts.died(1.0, fruitful=False) is None for _ in range(4)] == [False, False, False, True]
    assert restarts.num_fruitless == 4


def test_progress_begins_a_new_row() -> None:
    restarts = Restarts(CONFIG)
    fruits = [False, False, False, True, False, False, False]
    waits = [restarts.died(1.0, fruitful=fruit) for fruit in fruits]
    assert [wait is None for wait in waits] == [False] * 6 + [True]


@pytest.mark.parametrize(("served_s", "ends"), [(20.0, True), (60.0, False)])
def test_deaths_far_apart_are_forgotten(served_s: float, ends: bool) -> None:
    restarts = Restarts(CONFIG)
    waits = [restarts.died(served_s, fruitful=False) for _ in range(30)]
    assert (None in waits) == ends
    if not ends:
        assert set(waits[1:]) == {2.0}


def test_starts_that_take_long_and_fail_are_not_tried_for_ever() -> None:
    """They serve no time at all, however long each takes."""
    restarts = Restarts(CONFIG)
    assert None in [restarts.died(0.0, fruitful=False) for _ in range(4)]


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_orders_stand_until_the_next_one_and_with_the_time_left() -> None:
    clock = Clock()
    orders = LiveSettings(clock)
    assert orders.to_repeat() == []
    orders.granted(SetPartition(1, "off", "ann"))
    orders.granted(SetPartition(2, "fixed", "bob", "night", prefill_units=4, expires_s=60))
    orders.granted(SetPartition(3, "off", "eve", dry_run=True))
    orders.granted(GetStatus(4))
    clock.now_s += 20
    night = SetPartition(0, "fixed", "bob", f"night; {AGAIN}", prefill_units=4, expires_s=40)
    assert orders.to_repeat() == [night]
    clock.now_s += 50
    assert orders.to_repeat() == [SetPartition(0, "auto", "bob", AGAIN)]


def test_changed_targets_add_up() -> None:
    orders = LiveSettings()
    orders.granted(SetSlo(1, {"ttft_ms": 100.0, "tpot_ms": 9.0}, "ann"))
    orders.granted(SetSlo(2, {}, ""))
    orders.granted(SetSlo(3, {"ttft_ms": 200.0}, "bob"))
    assert orders.to_repeat() == [SetSlo(0, {"ttft_ms": 200.0, "tpot_ms": 9.0}, "bob", AGAIN)]
