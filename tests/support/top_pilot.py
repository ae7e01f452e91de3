"""The whole dashboard over a scripted source, in a terminal that is only pretended."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from semipd_top.screen.app import TopApp
from semipd_top.screen.dialogs.base import Dialog
from semipd_top.screen.dialogs.override import OverrideDialog
from semipd_top.screen.dialogs.slo import SloDialog
from semipd_top.screen.panes import EventsPane, RequestsPane
from support.eventually import eventually
from support.top_source import ScriptedSource
from support.top_state import event, finished, request, seen, state
from textual.pilot import Pilot
from textual.widgets import Button, Input

ROWS = [
    request(4, ttft_ms=300.0),
    request(3, ttft_ms=900.0, key="evaluation"),
    finished(2, ttft_ms=100.0),
    finished(1, ttft_ms=200.0, finish_reason="error", error_code="engine_failed"),
]
EVENTS = [event("arrived"), event("preempted"), event("refused"), event("slow_step")]


@dataclass
class Board:
    """What a person sees and does."""

    app: TopApp
    pilot: Pilot[int]
    source: ScriptedSource

    @property
    def person(self) -> Any:
        return self.source.person

    @property
    def requests(self) -> RequestsPane:
        return self.app.query_one(RequestsPane)

    @property
    def events(self) -> EventsPane:
        return self.app.query_one(EventsPane)

    @property
    def dialog(self) -> Dialog | None:
        return self.app.screen if isinstance(self.app.screen, Dialog) else None

    @property
    def view(self) -> str:
        return str(self.app.query_one("ContentSwitcher").current)  # type: ignore[attr-defined]

    @property
    def text(self) -> str:
        """The screen on top, as characters."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in strips)

    @property
    def notices(self) -> list[str]:
        """Newest last, with their titles."""
        return [f"{notice.title} {notice.message}".strip() for notice in self.app._notifications]

    @property
    def focused(self) -> str:
        """The id of the widget that has the focus."""
        return str(self.app.screen.focused.id) if self.app.screen.focused is not None else ""

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def say(self, *items: Any) -> None:
        """Items that are on the screen when this returns."""
        wanted = self.source.num_told + len(items)
        for item in items:
            self.source.say(item)
        await eventually(lambda: self.source.num_told >= wanted, "the items are taken")
        await self.drawn()

    async def drawn(self) -> None:
        self.app._draw_if_due()
        await self.pilot.pause()

    async def sees(self, what: str) -> None:
        await eventually(lambda: what in self.text, f"{what!r} on the screen")

    async def told(self, what: str) -> None:
        await eventually(lambda: any(what in notice for notice in self.notices), f"told: {what!r}")

    async def opens(self, kind: type[Dialog], *keys: str) -> Any:
        await self.press(*keys)
        await eventually(lambda: isinstance(self.app.screen, kind), kind.__name__)
        await self.pilot.pause()
        return self.app.screen

    async def override(self, key: str = "o") -> OverrideDialog:
        """Open, with its preview there."""
        dialog: OverrideDialog = await self.opens(OverrideDialog, key)
        await self.sees("granted")
        return dialog

    async def slo(self) -> SloDialog:
        dialog: SloDialog = await self.opens(SloDialog, "s")
        return dialog

    async def type(self, field: str, text: str) -> None:
        self.app.screen.query_one(f"#{field}", Input).value = text
        await self.pilot.pause()

    async def apply(self) -> None:
        self.app.screen.query_one("#apply", Button).press()
        await self.pilot.pause()

    async def closed(self) -> None:
        await eventually(lambda: self.dialog is None, "the dialog is closed")
        await self.pilot.pause()

    async def click(self, words: str) -> None:
        """Where these words stand."""
        for y, line in enumerate(self.text.split("\n")):
            if words in line:
                await self.pilot.click(offset=(line.index(words) + len(words) // 2, y))
                await self.pilot.pause()
                return
        raise AssertionError(f"no {words!r} in\n{self.text}")


@asynccontextmanager
async def dashboard(
    *items: Any,
    size: tuple[int, int] = (130, 40),
    make: Callable[..., ScriptedSource] = ScriptedSource,
    **options: Any,
) -> AsyncIterator[Board]:
    """`items`: what has come when it is entered; a busy daemon unless given."""
    first = items or (seen(state(), ROWS, EVENTS),)
    source = make(*first)
    app = TopApp(source, **options)
    async with app.run_test(size=size) as pilot:
        told = [item for item in first if not isinstance(item, Exception)]
        await eventually(lambda: source.num_told >= len(told), "the first items are taken")
        app.draw()
        await pilot.pause()
        yield Board(app, pilot, source)
