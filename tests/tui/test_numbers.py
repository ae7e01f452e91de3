"""Numbers keep the widths that tables rely on, and say nothing false at their boundaries."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semipd_top.text.numbers import clock, count, countdown, duration, gib, millis, percent, rate

AMOUNTS = st.floats(0, 9.9e14) | st.integers(0, 10**14)


@pytest.mark.parametrize("show", [count, rate, millis, percent, duration, gib])
def test_nobody_knows_is_a_dash(show) -> None:  # type: ignore[no-untyped-def]
    assert show(None) == "-"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.4, "0"),
        (999.49, "999"),
        (999.5, "1.0k"),
        (1000, "1.0k"),
        (9_949, "9.9k"),
        (9_950, "10k"),
        (12_345, "12k"),
        (999_499, "999k"),
        (999_500, "1.0M"),
        (1_230_000, "1.2M"),
        (999_500_000, "1.0G"),
        (12e9, "12G"),
        (999.5e9, "1.0T"),
        (12e12, "12T"),
        (-9_500, "-9.5k"),
    ],
)
def test_count(value: float, text: str) -> None:
    assert count(value) == text


@given(AMOUNTS)
def test_counts_fit_five_cells_and_are_near(value: float) -> None:
    text = count(value)
    assert len(text) <= 5
    unit = text[-1] if text[-1].isalpha() else ""
    near = float(text.removesuffix(unit)) * 1000 ** ("kMGT".index(unit) + 1 if unit else 0)
    assert abs(near - value) <= max(0.051 * value, 0.5)


@given(st.floats(-9.9e8, 9.9e14))
def test_rates_fit_five_cells(value: float) -> None:
    assert len(rate(value)) <= 5


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.0"), (2.25, "2.2"), (99.94, "99.9"), (99.95, "100"), (1234, "1.2k")]
)
def test_rate(value: float, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0"),
        (0.04, "0.0"),
        (99.94, "99.9"),
        (99.95, "100"),
        (9_999.4, "9999"),
        (9_999.5, "10s"),
        (123_456, "123s"),
    ],
)
def test_millis(value: float, text: str) -> None:
    assert millis(value) == text


@given(st.floats(0, 100 * 60e3))
def test_times_of_a_request_fit_five_cells(value: float) -> None:
    assert len(millis(value)) <= 5


@pytest.mark.parametrize(
    ("frac", "text"),
    [
        (0, "0 %"),
        (0.0005, "<0.1 %"),
        (0.001, "0.1 %"),
        (0.0994, "9.9 %"),
        (0.0995, "10 %"),
        (0.5, "50 %"),
        (0.989, "99 %"),
        (0.99, "99.0 %"),
        (0.9985, "99.9 %"),
        (0.99999, "99.9 %"),
        (1, "100 %"),
        (1.5, "150 %"),
    ],
)
def test_percent(frac: float, text: str) -> None:
    assert percent(frac) == text


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_some_but_not_all_is_never_shown_as_none_or_all(frac: float) -> None:
    assert percent(frac) not in ("0 %", "0.0 %", "100 %", "100.0 %")
    assert len(percent(frac)) <= 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.95, "10 s"),
        (119.4, "119 s"),
        (119.5, "2 min"),
        (5_969, "99 min"),
        (5_970, "1.7 h"),
        (7_200, "2.0 h"),
        (172_769, "48.0 h"),
        (172_770, "2 d"),
        (864_000, "10 d"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 27 * 365 * 86400))
def test_durations_fit_six_cells(seconds: float) -> None:
    assert len(duration(seconds)) <= 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (0.2, "1 s"),
        (59, "59 s"),
        (59.5, "1:00"),
        (60, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (90_061, "25:01:01"),
    ],
)
def test_countdown(seconds: float, text: str) -> None:
    assert countdown(seconds) == text


def test_gib() -> None:
    assert gib(0) == "0.0"
    assert gib(80 * 2**30) == "80.0"


def test_the_time_of_day_is_the_readers() -> None:
    at_s = 1_795_243_200.0
    now = time.localtime(at_s)
    assert clock(at_s) == f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}"
