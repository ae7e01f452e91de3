"""Wishes become splits, or are refused with the table."""

import pytest
from support.partition import TABLE

from semipd.core.errors import SemipdError
from semipd.core.messages import SetPartition
from semipd.core.split import Split
from semipd.partition.overrides import plan_change
from semipd.partition.table import SplitTable

H200 = SplitTable(tuple(Split(132 - n, n) for n in range(8, 128, 8)), Split(132, 0), Split(0, 132), 132, "SM")


@pytest.mark.parametrize("wish", range(1, 132))
def test_the_nearest_split_is_granted(wish: int) -> None:
    granted = H200.nearest(prefill_units=wish)
    assert granted in H200.splits
    assert abs(granted.prefill_units - wish) == min(abs(split.prefill_units - wish) for split in H200.splits)
    assert H200.nearest(decode_units=132 - wish) == granted
    assert H200.nearest(prefill_units=wish, decode_units=132 - wish) == granted


def test_a_tie_goes_to_prefill() -> None:
    assert H200.nearest(prefill_units=64) == Split(68, 64)


def test_half_is_the_most_even() -> None:
    assert TABLE.half() == Split(8, 8)
    assert H200.half() == Split(68, 64)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"prefill_units": 0}, "0 of 132 SMs for prefill leaves one lane without any"),
        ({"prefill_units": 132}, "leaves one lane without any"),
        ({"decode_units": 200}, "leaves one lane without any"),
        ({"prefill_units": 60, "decode_units": 60}, "60 + 60 SMs are asked for; the device has 132"),
        ({}, "needs prefill_units or decode_units"),
    ],
)
def test_impossible_wishes_are_refused_with_the_table(wish: dict[str, int], words: str) -> None:
    with pytest.raises(SemipdError, match="Possible splits") as refused:
        H200.nearest(**wish)
    assert refused.value.code == "impossible_split"
    assert words in refused.value.message
    assert "124+8, 116+16" in refused.value.hint


def test_an_undivided_device_says_so() -> None:
    whole = SplitTable((), Split(1, 0), Split(0, 1), 1, "core")
    with pytest.raises(SemipdError, match="cannot be divided"):
        whole.nearest(prefill_units=1)
    with pytest.raises(SemipdError, match="cannot be divided"):
        plan_change(SetPartition(1, "auto", "op"), whole, "chunked", 0)


def test_rounding_is_stated() -> None:
    change = plan_change(SetPartition(1, "fixed", "op", prefill_units=70), H200, "semipd", 0)
    assert (change.requested, change.granted) == ({"prefill_units": 70}, Split(68, 64))
    assert change.rounding == (
        "70 SMs for prefill asked for; 68+64 (prefill+decode) granted, the nearest split this device offers"
    )
    assert not plan_change(SetPartition(1, "fixed", "op", decode_units=64), H200, "semipd", 0).rounding


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        (SetPartition(1, "auto", "op", prefill_units=64), "invalid_value"),
        (SetPartition(1, "off", "op", decode_units=64), "invalid_value"),
        (SetPartition(1, "auto", "op", expires_s=5), "invalid_value"),
        (SetPartition(1, "fixed", "op", prefill_units=64, expires_s=0), "invalid_value"),
        (SetPartition(1, "off", "op", expires_s=1e9), "invalid_value"),
    ],
)
def test_contradictions_are_refused(wish: SetPartition, code: str) -> None:
    with pytest.raises(SemipdError) as refused:
        plan_change(wish, H200, "semipd", 0)
    assert refused.value.code == code


def test_a_scheduler_with_one_lane_is_not_split() -> None:
    with pytest.raises(SemipdError) as refused:
        plan_change(SetPartition(1, "fixed", "op", prefill_units=64), H200, "chunked", 0)
    assert refused.value.code == "scheduler_has_one_lane"
