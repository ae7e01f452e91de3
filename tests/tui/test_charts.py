"""Bars and charts against slow oracles."""

import random
from itertools import product

import pytest
from semipd_top.text.charts import EIGHTHS, bar, column_chart, columns, shares_to_cells, sparkline
from semipd_top.text.lines import Line, Span, plain, width_of
from support.seeds import each_seed

SEEDS = range(300)


def some_shares(rng: random.Random) -> list[float]:
    """Summing to at most 1, many of them small, zero or equal."""
    raw = [rng.choice((0.0, 1e-9, 1e-3, 0.5, 1.0)) * rng.random() for _ in range(rng.randrange(1, 6))]
    total = sum(raw) * rng.choice((1.0, 1.0, 1.3))
    return [share / total for share in raw] if total else raw


def best_cells(shares: list[float], width: int) -> float:
    """Smallest possible worst error, over all ways that give everybody with a share a cell."""
    least = [1 if share > 0 else 0 for share in shares]
    ways = product(*(range(low, width + 1) if low else (0,) for low in least))
    errors = [
        max(abs(num - share * width) for num, share in zip(way, shares, strict=True))
        for way in ways
        if sum(way) <= width
    ]
    return min(errors)


@each_seed(SEEDS)
def test_cells_never_exceed_the_width_and_everybody_has_one(seed: int) -> None:
    rng = random.Random(seed)
    shares, width = some_shares(rng), rng.randrange(0, 100)
    cells = shares_to_cells(shares, width)
    num_with_a_share = sum(share > 0 for share in shares)
    assert 0 <= sum(cells) <= width
    assert min(cells) >= 0
    assert all(num == 0 for num, share in zip(cells, shares, strict=True) if share == 0)
    if width >= num_with_a_share:
        assert all(num >= 1 for num, share in zip(cells, shares, strict=True) if share > 0)
    else:
        assert sum(cells) == width, "all there are are given away"


@each_seed(range(80))
def test_cells_are_as_near_as_they_can_be(seed: int) -> None:
    rng = random.Random(seed)
    shares = some_shares(rng)[:3]
    width = rng.randrange(len(shares), 12)
    cells = shares_to_cells(shares, width)
    error = max(abs(num - share * width) for num, share in zip(cells, shares, strict=True))
    assert error <= best_cells(shares, width) + 1.0, "at most one cell off"


def test_a_small_share_keeps_its_cell_when_others_have_several() -> None:
    assert shares_to_cells([0.001, 0.4995, 0.4995], 10) == [1, 4, 5]


@pytest.mark.parametrize("width", [-3, 0, 1, 5])
def test_shares_of_more_than_everything_do_not_exceed_the_width(width: int) -> None:
    assert sum(shares_to_cells([0.6, 0.6, 0.0], width)) <= max(width, 0)
    assert width_of(bar([(0.6, "a", "ok"), (0.6, "b", "")], width)) == max(width, 0)


@each_seed(SEEDS)
def test_a_bar_is_as_wide_as_asked_for_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    shares, width = some_shares(rng), rng.randrange(0, 60)
    drawn = bar([(share, "abcdef"[idx], "") for idx, share in enumerate(shares)], width)
    text = plain(drawn)
    assert width_of(drawn) == width
    assert text.rstrip(" ") == "".join(sorted(text.rstrip(" ")))
    cells = shares_to_cells(shares, width)
    assert [text.count(mark) for mark in "abcdef"[: len(shares)]] == cells


def test_neighbours_of_one_look_are_one_span() -> None:
    assert bar([(0.5, "x", "ok"), (0.5, "x", "ok")], 10) == (Span("x" * 10, "ok"),)
    assert sparkline([1.0, 1.0, 1.0], 3, "dim") == (Span("███", "dim"),)


def cells_of(spans: Line) -> list[Span]:
    return [span._replace(text=char) for span in spans for char in span.text]


def some_values(rng: random.Random) -> list[float | None]:
    scale = rng.choice((0.0, 1e-6, 1.0, 1e9))
    return [None if rng.random() < 0.2 else rng.random() * scale for _ in range(rng.randrange(30))]


@each_seed(SEEDS)
def test_sparklines_show_the_newest_values_scaled_with_gaps_and_marks(seed: int) -> None:
    rng = random.Random(seed)
    values, width = some_values(rng), rng.randrange(0, 40)
    limit = rng.choice((None, 0.5))
    cells = cells_of(sparkline(values, width, "prefill", limit))
    assert len(cells) == width
    shown = values[len(values) - min(width, len(values)) :]
    top = max([value for value in shown if value is not None], default=0.0)
    assert all(cell.text == " " for cell in cells[: width - len(shown)])
    for cell, value in zip(cells[width - len(shown) :], shown, strict=True):
        if value is None:
            assert cell.text == " "
            continue
        height = EIGHTHS.index(cell.text)
        assert height >= 1, "what is known is visible"
        assert abs(height - (value / top * 8 if top else 1)) <= 0.5 + (value / top * 8 < 1 if top else 0)
        assert cell.style == ("bad" if limit is not None and value > limit else "prefill")


def test_a_given_top_scales_instead_of_the_greatest() -> None:
    assert plain(sparkline([0.5, 0.25], 2)) == "█▄"
    assert plain(sparkline([0.5, 0.25], 2, top=1.0)) == "▄▂"
    assert plain(sparkline([3.0], 1, top=1.0)) == "█", "never above the row"


@each_seed(SEEDS)
def test_the_rows_of_a_column_chart_add_up_to_the_values(seed: int) -> None:
    rng = random.Random(seed)
    values, width, height = some_values(rng), rng.randrange(0, 40), rng.randrange(1, 7)
    limit = rng.choice((None, 0.5))
    rows = column_chart(values, width, height, "decode", limit)
    assert len(rows) == height
    assert all(width_of(row) == width for row in rows)
    grid = [cells_of(row) for row in rows]
    shown = values[len(values) - min(width, len(values)) :]
    top = max([value for value in shown if value is not None], default=0.0)
    for x, value in enumerate(shown, start=width - len(shown)):
        eighths = [EIGHTHS.index(row[x].text) for row in reversed(grid)]
        if value is None:
            assert sum(eighths) == 0
            continue
        assert eighths == sorted(eighths, reverse=True), "from below, without holes"
        assert sum(0 < part < 8 for part in eighths) <= 1
        wanted = max(value / top * height * 8, 1) if top else 1
        assert abs(sum(eighths) - wanted) <= 0.5
        style = "bad" if limit is not None and value > limit else "decode"
        assert {row[x].style for row in grid} == {style}


def test_columns_draw_the_newest_values_at_the_right() -> None:
    drawn = columns([1, 2, 3], 2, lambda value: Span(str(value)))
    assert plain(drawn) == "23"
    assert plain(columns([1, 2, 3], 5, lambda value: Span(str(value)))) == "  123"
    assert columns([1, 2, 3], 0, lambda value: Span(str(value))) == ()
    assert column_chart([1.0, 2.0], 0, 2) == [(), ()]
