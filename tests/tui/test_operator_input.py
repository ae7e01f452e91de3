"""What a person types, and what the daemon answers."""

import random
from typing import Any, cast

import pytest
from semipd_top.operator_input import (
    merged_bar,
    parse_expiry,
    parse_number,
    preview_lines,
    slo_preview,
    split_bar,
    stepped,
)
from semipd_top.text.lines import plain, width_of
from support.seeds import each_seed
from support.top_state import CHANGE, NOW_S, finished, request

from semipd.core.errors import SemipdError
from semipd.core.state.partition import ChangeAnswer, SloTargets, TargetsDocument
from semipd.core.state.requests import RequestRow


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("30s", 30),
        ("10m", 600),
        ("10 min", 600),
        (" 2H ", 7200),
        ("1d", 86400),
        ("1.5h", 5400),
        ("never", None),
        ("", None),
        ("  ", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_expiry(text) == seconds


@pytest.mark.parametrize("text", ["0", "0m", "-5m", "10x", "m", "1e3", "5 m s", "ten", "1.h", "nan", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(SemipdError, match="is no duration") as refused:
        parse_expiry(text)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "expires_s")


def test_numbers() -> None:
    assert parse_number("TTFT ms", "300") == 300
    assert parse_number("TTFT ms", " 0.5 ") == 0.5


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "three", "1,5"])
def test_what_is_no_number_above_zero(text: str) -> None:
    with pytest.raises(SemipdError, match=r"TTFT ms: .* is no number above 0") as refused:
        parse_number("TTFT ms", text)
    assert refused.value.code == "invalid_value"


@pytest.mark.parametrize(
    ("units", "step", "wanted"),
    [(8, 1, 12), (8, -1, 4), (4, -1, 4), (12, 1, 12), (9, 1, 12), (9, -1, 8), (0, 1, 4), (99, -1, 12)],
)
def test_steps_go_along_the_table_and_stay_at_its_ends(units: int, step: int, wanted: int) -> None:
    table = [[12, 4], [8, 8], [4, 12]]
    assert stepped(units, table, step) == wanted


@pytest.mark.parametrize("units", [0, 1, 68, 131, 132, 500])
def test_bars_of_a_wish(units: int) -> None:
    shown = split_bar(units, 132, 60)
    assert width_of(shown) == 60
    assert plain(shown).startswith(f"prefill {units:>3} ")
    assert plain(shown).endswith(f" {max(132 - units, 0):<3} decode")
    assert plain(merged_bar(10)) == "▞" * 10


def answer(**changes: Any) -> ChangeAnswer:
    forecast = {"split": [72, 60], "ttft_ms": 210.5, "tpot_ms": 55.0, "late_prompts": 3}
    base = {"granted": [72, 60], "rounding": "", "takes_effect": "with the next step", "forecast": forecast}
    return cast(ChangeAnswer, {**CHANGE, "dry_run": True, **base, **changes})


TARGETS = SloTargets(
    ttft_ms=500.0,
    ttft_ms_per_1k_tokens=0.0,
    tpot_ms=50.0,
    itl_ms=0.0,
    itl_percentile=99.0,
    percentile=90.0,
    window_s=60.0,
)


def test_a_preview_stands_beside_what_the_policy_would_do() -> None:
    auto = answer(forecast={"split": [68, 64], "ttft_ms": None, "tpot_ms": 42.0, "reason": "why"})
    shown = preview_lines(answer(rounding="70 asked for"), auto, TARGETS)
    assert [plain(spans) for spans in shown] == [
        "granted 72+60 (prefill+decode)",
        "takes effect with the next step",
        "70 asked for",
        "this TTFT   210 ms (≤ 500)  TPOT  55.0 ms (≤ 50)  3 prompts late",
        "auto TTFT not in question  TPOT  42.0 ms (≤ 50)  ",
    ]
    styles = {span.text.split()[0]: span.style for span in shown[3] if span.text.startswith(("TTFT", "TPOT"))}
    assert styles == {"TTFT": "ok", "TPOT": "bad"}


def test_a_preview_without_predictions_says_so() -> None:
    shown = preview_lines(answer(granted=None, forecast=None), answer(forecast=None), TARGETS)
    assert plain(shown[0]) == "merged steps, no split"
    assert all("no prediction yet" in plain(spans) for spans in shown[-2:])


def slow_preview(
    rows: list[RequestRow], ttft_ms: float, tpot_ms: float, itl_ms: float, window_s: float
) -> tuple[int, int]:
    met = judged = 0
    for row in rows:
        if row["state"] != "finished" or row["finish_reason"] == "cancelled":
            continue
        if NOW_S - (row["arrived_at_s"] + row["age_ms"] / 1000) > window_s:
            continue
        judged += 1
        if row["error_code"] is None and row["ttft_ms"] is not None and row["ttft_ms"] <= ttft_ms:
            is_slow = itl_ms and row["itl_ms"] is not None and row["itl_ms"] > itl_ms
            met += (row["tpot_ms"] is None or row["tpot_ms"] <= tpot_ms) and not is_slow
    return met, judged


@each_seed(range(200))
def test_targets_are_tried_on_the_requests_at_hand(seed: int) -> None:
    rng = random.Random(seed)
    rows = []
    for seq in range(rng.randrange(30)):
        reason = rng.choice(("stop", "length", "cancelled", "error"))
        rows.append(
            finished(
                seq,
                finish_reason=reason,
                error_code="overloaded" if reason == "error" else None,
                arrived_at_s=NOW_S - rng.random() * 100,
                age_ms=rng.random() * 5000,
                ttft_ms=rng.choice((None, 100.0, 300.0, rng.random() * 600)),
                tpot_ms=rng.choice((None, 30.0, 50.0, rng.random() * 80)),
                itl_ms=rng.choice((None, 70.0, rng.random() * 200)),
            )
            if rng.random() < 0.8
            else request(seq)
        )
    itl_ms = rng.choice((0.0, 70.0))
    met, judged = slow_preview(rows, 300.0, 50.0, itl_ms, 60.0)
    targets: TargetsDocument = {
        "ttft_ms": 300.0,
        "ttft_ms_per_1k_tokens": 0.0,
        "tpot_ms": 50.0,
        "itl_ms": itl_ms,
    }
    shown = plain(slo_preview(rows, targets, NOW_S, 60.0))
    if judged:
        assert shown.startswith(f"{met} of {judged} finished requests at hand, of the last 60 s")
    else:
        assert shown == "No finished request at hand to try these targets on."
