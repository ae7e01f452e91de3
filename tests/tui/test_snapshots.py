"""Every view and state of the dashboard, drawn from the demo at a moment of its script, looks as kept in
tests/data/top: the characters, and below them the style of each. To draw them anew, and then to look at every
difference:

    SEMIPD_UPDATE_SNAPSHOTS=1 pytest tests/tui/test_snapshots.py
"""

import os
from importlib.metadata import version
from pathlib import Path

import pytest
from top_gallery import GALLERY, REPOSITORY
from top_gallery import SIZE as GALLERY_SIZE
from toplib.cells import cells
from toplib.moments import BY_NAME, still
from toplib.still import in_utc, screenshot

KEPT = Path(__file__).parents[1] / "data" / "top"
SMALL, LARGE = (80, 24), (200, 50)
OF_ANOTHER_LAYOUT = ("overview", "requests", "events", "inspect", "override", "help")
"""These are laid out anew in a large terminal, and so kept in both sizes."""

DRAWN = [(name, SMALL) for name in BY_NAME] + [(name, LARGE) for name in OF_ANOTHER_LAYOUT]
THEMES = ("textual-light", "ansi-dark")
ACTUAL = "actual.txt"


def file_name(name: str, size: tuple[int, int]) -> str:
    return f"{name}-{size[0]}x{size[1]}"


@pytest.mark.parametrize(("name", "size"), DRAWN, ids=[file_name(*drawn) for drawn in DRAWN])
async def test_view_looks_as_kept(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    moment = BY_NAME[name]
    with in_utc():
        picture = await screenshot(still(moment), size, *moment.keys, draw=cells)
    compare(file_name(name, size), picture, tmp_path)


@pytest.mark.parametrize("theme", THEMES)
async def test_overview_in_another_theme(theme: str, tmp_path: Path) -> None:
    with in_utc():
        picture = await screenshot(still(BY_NAME["overview"]), SMALL, theme=theme, draw=cells)
    compare(f"overview-{theme}", picture, tmp_path)


@pytest.mark.parametrize("name", GALLERY)
async def test_the_gallery_shows_it_as_it_is(name: str) -> None:
    """Else run `python scripts/top_gallery.py`."""
    moment = BY_NAME[name]
    with in_utc():
        picture = await screenshot(still(moment), GALLERY_SIZE, *moment.keys)
    assert picture == (REPOSITORY / f"docs/images/top/{name}.svg").read_text()


def test_nothing_is_kept_that_no_test_draws() -> None:
    drawn = {file_name(*drawn) for drawn in DRAWN}
    assert {path.stem for path in KEPT.iterdir()} == drawn | {f"overview-{theme}" for theme in THEMES}


def compare(name: str, picture: str, tmp_path: Path) -> None:
    kept = KEPT / f"{name}.txt"
    if os.environ.get("SEMIPD_UPDATE_SNAPSHOTS"):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(picture)
        return
    actual = tmp_path / ACTUAL
    actual.write_text(picture)
    assert kept.exists(), f"no picture {kept} is kept; drawn: {actual}"
    assert picture == kept.read_text(), (
        f"{name} does not look like {kept} any more; drawn: {actual} (textual {version('textual')}, "
        f"rich {version('rich')}; the pictures are of the versions that pyproject's dev extra names)"
    )
