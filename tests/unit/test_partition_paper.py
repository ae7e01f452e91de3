"""The policy `paper`: Algorithm 1 on cases worked by hand."""

import math

import pytest
from support.partition import snapshot

from semipd.core.slo import Slo
from semipd.core.split import Split
from semipd.partition.interface import ClosedWindow
from semipd.partition.policies.paper import PUBLISHED_TPOT, PUBLISHED_TTFT, PaperPolicy

POLICY = PaperPolicy()
SLO = Slo(300.0, 60.0, 90.0, 60.0)


def window(prefill_units: int, ttft_ms: float, tpot_ms: float, load: float = 0.2) -> ClosedWindow:
    """`load` is lambda of Eq. 3: 2 arrivals per second, each `load` / 2 s of prefill on the whole device."""
    return ClosedWindow(Split(prefill_units, 16 - prefill_units), ttft_ms, tpot_ms, 2.0, load / 2)


def decide(current: int, *windows: ClosedWindow) -> tuple[int, str]:
    decision = POLICY.decide(snapshot(current=Split(current, 16 - current), windows=windows), SLO)
    return decision.split.prefill_units, decision.reason


def test_without_a_window_nothing_changes() -> None:
    assert decide(8)[0] == 8


def test_both_met_and_both_missed_leave_the_split() -> None:
    assert decide(8, window(8, 200, 50)) == (8, "TTFT 200 of 300 ms, TPOT 50.0 of 60 ms: both targets met")
    assert decide(8, window(8, 900, 90)) == (8, "TTFT 900 of 300 ms, TPOT 90.0 of 60 ms: both targets missed")


def test_one_point_scales_the_published_curve() -> None:
    """TTFT 330 at x = 8/16, lambda 0.2. The curve 0.6809 / (x - 0.2) + 0.022 is 2.2917 there, so it is scaled
    by 144; at 9/16 it gives 144 x (0.6809 / 0.3625 + 0.022) = 273.7 <= 300: one step."""
    split, reason = decide(8, window(8, 330, 40))
    assert split == 9
    assert reason.endswith("prefill 8 -> 9 units")
    decision = POLICY.decide(snapshot(current=Split(8, 8), windows=(window(8, 330, 40),)), SLO)
    scale = 330 / (PUBLISHED_TTFT[0] / 0.3 + PUBLISHED_TTFT[1])
    expected = scale * (PUBLISHED_TTFT[0] / 0.3625 + PUBLISHED_TTFT[1])
    assert decision.predicted_ttft_ms == pytest.approx(expected)
    scale = 40 / (PUBLISHED_TPOT[0] * 2 + PUBLISHED_TPOT[1])
    expected = scale * (PUBLISHED_TPOT[0] * 16 / 7 + PUBLISHED_TPOT[1])
    assert decision.predicted_tpot_ms == pytest.approx(expected)


def test_two_points_determine_eq_4() -> None:
    """TTFT = 30 / (x - 0.2) + 220: 320 at 8/16 and 280 at 11.2/16 (not in the table). With points at 8 (320)
    and 6 (391.4), the fit is exact; 300 is met from x = 0.575 = 9.2/16 on: two steps, to 10."""
    first = window(6, 30 / (6 / 16 - 0.2) + 220, 50)
    second = window(8, 30 / (8 / 16 - 0.2) + 220, 50)
    decision = POLICY.decide(snapshot(current=Split(8, 8), windows=(first, second)), SLO)
    assert decision.split == Split(10, 6)
    assert decision.predicted_ttft_ms == pytest.approx(30 / (10 / 16 - 0.2) + 220, rel=1e-4)


def test_decode_rises_when_tpot_is_missed() -> None:
    """TPOT = 20 / y + 30: 70 at 8/16, 62 at 10/16 (59.1 at 11/16): three steps."""
    windows = (window(10, 100, 20 / (6 / 16) + 30), window(8, 100, 70))
    assert decide(8, *windows)[0] == 5


def test_at_most_three_steps_and_never_beyond_the_table() -> None:
    steep = (window(8, 9000, 40),)
    assert decide(8, *steep)[0] == 11
    assert decide(14, window(14, 9000, 40))[0] == 15
    assert decide(2, window(2, 100, 900))[0] == 1


def test_an_unstable_share_is_never_enough() -> None:
    """lambda 0.6: at 8/16 the queue grows without bound; 10/16 is the first stable share."""
    decision = POLICY.decide(snapshot(current=Split(8, 8), windows=(window(8, 5000, 40, load=0.6),)), SLO)
    assert decision.split == Split(11, 5)
    assert decision.predicted_ttft_ms is None
    heavier = POLICY.decide(snapshot(current=Split(5, 11), windows=(window(5, 5000, 40, load=0.9),)), SLO)
    assert heavier.split == Split(8, 8)
    assert heavier.predicted_ttft_ms is None


def test_equal_points_do_not_break_the_fit() -> None:
    twice = (window(8, 330, 40), window(8, 330, 40), window(8, 330 * (1 + 1e-12), 40, load=0.2 + 1e-12))
    decision = POLICY.decide(snapshot(current=Split(8, 8), windows=twice), SLO)
    assert decision.split.prefill_units > 8
    assert math.isfinite(decision.predicted_tpot_ms or math.inf)
