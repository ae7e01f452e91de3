"""The requests view's rows: which, in which order, in which cells."""

import random
from itertools import combinations, pairwise

import pytest
from rich.cells import cell_len
from semipd_top.panels.listing import BY_NAME, FIELDS, WHICH, Order, chosen_rows, fields_for
from support.seeds import each_seed
from support.top_state import finished, request

ROWS = [
    request(5, ttft_ms=None, tpot_ms=None, state="waiting", queue_ms=None, prefill_ms=None, blocks=0),
    request(4, ttft_ms=300.0, priority="batch", service_class="batch", key="evaluation"),
    finished(3, ttft_ms=100.0),
    finished(2, ttft_ms=None, finish_reason="error", error_code="engine_failed"),
    finished(1, ttft_ms=200.0, finish_reason="length"),
]


def seqs(which: str = "all", words: str = "", order: Order | None = None) -> list[int]:
    return [row["seq"] for row in chosen_rows(ROWS, which, words, order or Order())]  # type: ignore[arg-type]


def test_as_the_daemon_lists_them() -> None:
    assert seqs() == [5, 4, 3, 2, 1]
    assert [seqs(which) for which in WHICH] == [[5, 4, 3, 2, 1], [5, 4], [3, 2, 1]]


@pytest.mark.parametrize(("reverse", "wanted"), [(True, [4, 1, 3, 5, 2]), (False, [3, 1, 4, 5, 2])])
def test_unknown_values_are_last_in_either_order(reverse: bool, wanted: list[int]) -> None:
    assert seqs(order=Order("TTFT", reverse)) == wanted


@pytest.mark.parametrize("field", [field.name for field in FIELDS])
def test_every_column_sorts_any_rows(field: str) -> None:
    rng = random.Random(field)
    rows = ROWS * 3
    rng.shuffle(rows)
    key = BY_NAME[field].key
    for reverse in (False, True):
        found = chosen_rows(rows, "all", "", Order(field, reverse))
        assert sorted(row["seq"] for row in found) == sorted(row["seq"] for row in rows)
        known = [key(row) for row in found if key(row) is not None]
        in_order = [first >= second if reverse else first <= second for first, second in pairwise(known)]
        assert all(in_order)
        assert [key(row) is None for row in found] == sorted(key(row) is None for row in found)


def test_equal_rows_keep_the_daemons_order() -> None:
    assert seqs(order=Order("prompt", reverse=True)) == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("", [5, 4, 3, 2, 1]),
        ("BATCH", [4]),
        ("eval batch", [4]),
        ("eval waiting", []),
        ("engine_failed", [2]),
        ("length", [1]),
        ("req-0003", [3]),
        ("  req  finished ", [3, 2, 1]),
    ],
)
def test_all_words_must_occur(words: str, wanted: list[int]) -> None:
    assert seqs(words=words) == wanted


def test_an_order_turns_round_and_back_to_the_daemons() -> None:
    first = Order().toggled("TTFT")
    assert first == Order("TTFT", reverse=True)
    assert first.toggled("age") == Order("age", reverse=True)
    assert first.toggled("TTFT") == Order("TTFT", reverse=False)
    assert first.toggled("TTFT").toggled("TTFT") == Order()


def test_as_many_columns_are_shown_as_there_is_room_for() -> None:
    needed = {width: sum(field.width + 2 for field in fields_for(width)) for width in range(80, 221)}
    assert all(needs <= width for width, needs in needed.items())
    assert list(needed.values()) == sorted(needed.values())
    assert not any(field.wide for field in fields_for(80))
    assert fields_for(needed[220]) == FIELDS
    assert fields_for(needed[220] - 1) != FIELDS
    assert all(len(field.name) <= field.width for field in FIELDS)


@each_seed(range(100))
def test_numbers_stay_within_their_columns(seed: int) -> None:
    rng = random.Random(seed)
    row = request(
        seed,
        age_ms=rng.random() * 10 ** rng.randrange(10),
        prompt_tokens=rng.randrange(10 ** rng.randrange(1, 8)),
        cached_tokens=rng.randrange(10 ** rng.randrange(1, 8)),
        output_tokens=rng.randrange(10 ** rng.randrange(1, 5)),
        max_tokens=rng.randrange(10 ** rng.randrange(1, 5)),
        blocks=rng.randrange(10**6),
        preemptions=rng.randrange(100),
        **{name: rng.random() * 10 ** rng.randrange(7) for name in ("ttft_ms", "tpot_ms", "queue_ms")},
        prefill_ms=rng.choice((None, 3.0)),
    )
    for field in FIELDS:
        if field.numeric:
            assert cell_len(field.show(row).text) == field.width, field.name


def test_states_differ_in_words_and_looks() -> None:
    shown = [BY_NAME["state"].show(row) for row in ROWS]
    assert [span.text for span in shown] == ["waiting", "decoding", "stop", "engine_failed", "length"]
    assert shown[3].style == "bad"
    styles = [
        BY_NAME["state"].show(request(1, state=name)).style for name in ("waiting", "prefilling", "decoding")
    ]
    assert all(first != second for first, second in combinations(styles, 2))


def test_who_nobody_is() -> None:
    assert BY_NAME["key"].show(ROWS[0]).text == "-"
    assert BY_NAME["key"].show(request(1, key="k" * 30)).text == "k" * 16
