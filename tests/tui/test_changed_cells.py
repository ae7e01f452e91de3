"""What is redrawn holds everything that differs."""

import random

from rich.cells import cell_len
from semipd_top.screen.widgets import changed_cells
from semipd_top.text.lines import Line, Span, Style, fit, width_of
from support.seeds import each_seed

TEXTS = ("a", "bb", "ccc", "漢", "漢字", "e\u0301", " ", "", "▒▒")
STYLES: tuple[Style, ...] = ("", "bad")


def some_span(rng: random.Random) -> Span:
    return Span(rng.choice(TEXTS), rng.choice(STYLES), rng.choice(STYLES), rng.choice(("", "act")))


def some_pair(rng: random.Random) -> tuple[Line, Line]:
    """Two lines that have much in common."""
    before = [some_span(rng) for _ in range(rng.randrange(7))]
    after = list(before)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(after) + 1)
        after[at : at + rng.randrange(3)] = [some_span(rng) for _ in range(rng.randrange(3))]
    if rng.random() < 0.5:
        width = max(width_of(before), width_of(after))
        return fit(tuple(before), width), fit(tuple(after), width)
    return tuple(before), tuple(after)


def cells(line: Line) -> list[tuple[object, ...]]:
    """One entry for each terminal cell: what stands there, which part of it, and how it looks."""
    found: list[tuple[object, ...]] = []
    for text, *look in line:
        for char in text:
            if not cell_len(char):
                last = found.pop()
                found.append((str(last[0]) + char, *last[1:]))
            found += [(char, part, *look) for part in range(cell_len(char))]
    return found


@each_seed(range(300), soak=range(300, 3000))
def test_all_that_differs_lies_within(seed: int) -> None:
    before, after = some_pair(random.Random(seed))
    old, new = cells(before), cells(after)
    longest = max(len(old), len(new))
    old += [()] * (longest - len(old))
    new += [()] * (longest - len(new))
    differing = [x for x in range(longest) if old[x] != new[x]]
    found = changed_cells(before, after)
    if found is None:
        assert not differing
        return
    assert 0 <= found[0] <= found[1] <= longest
    assert all(found[0] <= x < found[1] for x in differing)


def test_only_what_changes_is_redrawn() -> None:
    before = (Span("head "), Span("12", "ok"), Span(" tail"))
    after = (Span("head "), Span("13", "ok"), Span(" tail"))
    assert changed_cells(before, after) == (5, 7)
    assert changed_cells(before, before) is None
    assert changed_cells((), before) == (0, 12)
    assert changed_cells(before, before[:1]) == (5, 12), "what was longer is cleared"


def test_moved_text_is_redrawn_to_the_end() -> None:
    before, after = (Span("a"), Span("tail", "dim")), (Span("bb"), Span("tail", "dim"))
    assert changed_cells(before, after) == (0, 6)
