"""What stands on the dashboard's screen, as text that can be read and compared line by line."""

import io
import string
from typing import Any

from rich.console import Console
from rich.segment import Segment
from textual.app import App

LETTERS = "." + string.ascii_letters + string.digits
"""One for each style, the most common ones first."""


def cells(app: App[Any]) -> str:
    """The lines, then a letter for the style of each character, then what the letters mean. Styles of blanks
    are those of their background."""
    lines = [[(char, _look(segment)) for segment in line for char in segment.text] for line in _lines(app)]
    looks = [look for line in lines for _, look in line]
    letters = dict(
        zip(sorted(set(looks), key=lambda look: (-looks.count(look), look)), LETTERS, strict=False)
    )
    parts = [
        "\n".join("".join(char for char, _ in line).rstrip() for line in lines),
        "\n".join("".join(letters[look] for _, look in line) for line in lines),
        "\n".join(f"{letter} {look}" for look, letter in letters.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _lines(app: App[Any]) -> list[list[Segment]]:
    """As `App.export_screenshot` has them."""
    width, height = app.size
    console = Console(
        width=width,
        height=height,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        safe_box=False,
    )
    update = app.screen._compositor.render_update(full=True, screen_stack=app._background_screens)
    assert update is not None
    return list(Segment.split_lines(Segment.filter_control(console.render(update))))


def _look(segment: Segment) -> str:
    style = segment.style
    if style is None:
        return "plain"
    shown = style.without_color + style.from_color(style.color, style.bgcolor)
    if not segment.text.strip():
        shown = style.from_color(None, style.bgcolor)
    return str(shown.update_link(None).clear_meta_and_links())
