"""The first screen: panels laid out for the room there is. Pure, so that `--once` prints the same."""

from collections.abc import Callable, Sequence

from semipd_top.panels.device import device_panel
from semipd_top.panels.events import events_panel
from semipd_top.panels.header import Frame, header
from semipd_top.panels.kv import kv_panel
from semipd_top.panels.slo import slo_panel
from semipd_top.panels.split import split_panel
from semipd_top.panels.traffic import traffic_panel
from semipd_top.picture.picture import Picture
from semipd_top.text.lines import EMPTY, Line, beside, fit

Panel = Callable[[Picture, int, int], list[Line]]

GAP = 2
WIDE = 140
"""From this width on there are three columns, and events."""


def first_screen(picture: Picture, width: int, height: int) -> list[Line]:
    """Header and panels, without colours: for a terminal that is read once."""
    return [*header(picture, Frame(), width), *overview(picture, width, height - 2)]


def overview(picture: Picture, width: int, height: int) -> list[Line]:
    """Exactly `height` lines of `width` cells."""
    lines = (_wide if width >= WIDE else _narrow)(picture, width, height)
    return [fit(spans, width) for spans in (lines + [EMPTY] * height)[:height]]


def _narrow(picture: Picture, width: int, height: int) -> list[Line]:
    """Two columns below the split: at 80x24 eight, seven and six lines."""
    left = max(width // 2 - GAP // 2, 1)
    right = max(width - GAP - left, 1)
    events = max(height - 36, 0)
    below = max((height - events) // 3 - 1, 6)
    middle = below + 1
    lines = split_panel(picture, width, max(height - events - middle - below, 7))
    lines += _row(picture, [(slo_panel, left), (kv_panel, right)], middle)
    lines += _row(picture, [(traffic_panel, left), (device_panel, right)], below)
    lines += events_panel(picture, width, events) if events else []
    return lines


def _wide(picture: Picture, width: int, height: int) -> list[Line]:
    third = (width - 2 * GAP) // 3
    rest = width - 2 * GAP - 2 * third
    top = max(height * 4 // 10, 8)
    middle = max(height * 4 // 10, 8)
    lines = split_panel(picture, width, top)
    lines += _row(picture, [(slo_panel, third), (kv_panel, third), (traffic_panel, rest)], middle)
    below = height - top - middle
    if below < 2:
        return lines
    device = max(third, 56)
    return lines + _row(picture, [(device_panel, device), (events_panel, width - GAP - device)], below)


def _row(picture: Picture, panels: Sequence[tuple[Panel, int]], height: int) -> list[Line]:
    return beside([(panel(picture, width, height), width) for panel, width in panels], GAP)
