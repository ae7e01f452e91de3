"""What the words for styles look like. The colours of data are the same in every theme: Okabe and Ito's,
which people with any colour vision can tell apart. Each also has a character or a word of its own, so that a
terminal without colours says the same. Terminals with 16 colours have a palette of their own.
"""

from functools import lru_cache
from typing import Any

from rich.segment import Segment
from rich.style import Style as RichStyle

from semipd_top.text.lines import Line, Style

Colours = dict[Style, str]

DARK: Colours = {
    "prefill": "#56b4e9",
    "decode": "#e69f00",
    "merged": "#cc79a7",
    "ok": "#2fbf8f",
    "warn": "#f0e442",
    "bad": "#ff6b3d",
    "dim": "#8f98a3",
    "title": "#ffffff",
    "key": "#7fdbff",
}

LIGHT: Colours = {
    "prefill": "#0072b2",
    "decode": "#c27c00",
    "merged": "#a64d79",
    "ok": "#00785a",
    "warn": "#8a6d00",
    "bad": "#c43c00",
    "dim": "#6a737d",
    "title": "#000000",
    "key": "#005f87",
}

SIXTEEN: Colours = {
    "prefill": "bright_blue",
    "decode": "yellow",
    "merged": "magenta",
    "ok": "green",
    "warn": "bright_yellow",
    "bad": "bright_red",
    "dim": "bright_black",
    "title": "default",
    "key": "cyan",
}

GREY_DARK: Colours = {**DARK, "prefill": "#ffffff", "decode": "#7a7a7a", "merged": "#b0b0b0"}
GREY_LIGHT: Colours = {**LIGHT, "prefill": "#000000", "decode": "#8a8a8a", "merged": "#555555"}
"""Where colours are not wanted (NO_COLOR): these three, as greys, would be one and the same."""

_BOLD: frozenset[Style] = frozenset({"strong", "title", "bad", "key"})


class Palette:
    """Turns spans into what a terminal shows."""

    def __init__(self, colours: Colours) -> None:
        self._colours = colours
        self.style = lru_cache(maxsize=256)(self._style)

    def _style(self, style: Style, under: Style = "", action: str = "") -> RichStyle:
        meta: dict[str, Any] | None = {"@click": action} if action else None
        return RichStyle(
            color=self._colours.get(style),
            bgcolor=self._colours.get(under),
            bold=style in _BOLD or None,
            meta=meta,
        )

    def segments(self, spans: Line, base: RichStyle) -> list[Segment]:
        return [Segment(text, base + self.style(*look)) for text, *look in spans]


_DARK, _LIGHT, _SIXTEEN = Palette(DARK), Palette(LIGHT), Palette(SIXTEEN)
_GREY_DARK, _GREY_LIGHT = Palette(GREY_DARK), Palette(GREY_LIGHT)


def palette_for(*, dark: bool, ansi: bool, grey: bool = False) -> Palette:
    """Of a theme. `ansi`: it leaves colours to the terminal; `grey`: colours are not wanted."""
    if grey:
        return _GREY_DARK if dark else _GREY_LIGHT
    return _SIXTEEN if ansi else _DARK if dark else _LIGHT
