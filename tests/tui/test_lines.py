"""Lines have exactly the width they were asked for, whatever stands in them."""

import random

from rich.cells import cell_len
from semipd_top.text.lines import EMPTY, Line, Span, Style, beside, fit, line, plain, spread, width_of
from support.seeds import each_seed

PIECES = ("a", "long word ", "▒", "漢字", "ＡＢ", "e\u0301", "é", "🚀", "", "-", "…", "ば", "\u0301")
STYLES: tuple[Style, ...] = ("", "dim", "bad", "prefill")
SEEDS = range(300)


def some_line(rng: random.Random) -> Line:
    texts = ["".join(rng.choices(PIECES, k=rng.randrange(4))) for _ in range(rng.randrange(6))]
    return tuple(Span(text, rng.choice(STYLES)) for text in texts)


def test_empty_text_is_left_out_and_plain_text_has_no_style() -> None:
    assert line("a", "", Span("b", "bad"), [Span("c"), Span("")]) == (Span("a"), Span("b", "bad"), Span("c"))
    assert plain(line("a", Span("b", "bad"))) == "ab"


@each_seed(SEEDS)
def test_fit_is_exact_and_changes_nothing_that_fits(seed: int) -> None:
    rng = random.Random(seed)
    spans = some_line(rng)
    for width in (0, 1, 2, 3, rng.randrange(40), width_of(spans)):
        fitted = fit(spans, width)
        assert width_of(fitted) == width
        if width_of(spans) <= width:
            assert fitted[: len(spans)] == spans
            assert plain(fitted).rstrip(" ") == plain(spans).rstrip(" ")
        elif width:
            assert plain(fitted).endswith("…")
            kept = plain(fitted)[:-1].rstrip(" ")
            assert plain(spans).startswith(kept), "only the end is cut"
            assert cell_len(kept) >= min(width - 1, width_of(spans)) - 10


def test_a_wide_character_at_the_cut_gives_way_to_a_blank() -> None:
    assert plain(fit((Span("a漢字"),), 3)) == "a …"
    assert plain(fit((Span("漢"), Span("字")), 3)) == "漢…"


def test_the_ellipsis_looks_like_what_it_cuts() -> None:
    assert fit((Span("ab", "ok"), Span("cdef", "bad", action="act")), 4) == (
        Span("ab", "ok"),
        Span("c…", "bad", action="act"),
    )


def test_negative_widths_are_empty() -> None:
    assert fit(line("abc"), -1) == ()
    assert width_of(spread(line("abc"), line("de"), 0)) == 0


@each_seed(SEEDS)
def test_spread_is_exact_and_keeps_the_right_end(seed: int) -> None:
    rng = random.Random(seed)
    left, right = some_line(rng), some_line(rng)
    width = rng.randrange(50)
    both = spread(left, right, width)
    assert width_of(both) == width
    if width_of(right) < width:
        assert plain(both).endswith(plain(right))
    if width_of(left) + width_of(right) <= width:
        assert plain(both).startswith(plain(left))


@each_seed(SEEDS)
def test_beside_puts_each_column_at_its_place(seed: int) -> None:
    rng = random.Random(seed)
    widths = [rng.randrange(1, 20) for _ in range(rng.randrange(1, 5))]
    gap = rng.randrange(4)
    columns = [([some_line(rng) for _ in range(rng.randrange(5))], width) for width in widths]
    rows = beside(columns, gap)
    assert len(rows) == max(len(lines) for lines, _ in columns)
    for y, row in enumerate(rows):
        assert width_of(row) == sum(widths) + gap * (len(widths) - 1)
        wanted = [fit(lines[y] if y < len(lines) else EMPTY, width) for lines, width in columns]
        assert plain(row) == (" " * gap).join(map(plain, wanted))


def test_nothing_beside_nothing() -> None:
    assert beside([]) == []
