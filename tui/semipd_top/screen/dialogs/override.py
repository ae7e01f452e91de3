"""Override the split: what is asked for, what the daemon predicts for it, and only then the deed."""

import asyncio
from collections.abc import Iterable
from textwrap import wrap
from typing import Any, ClassVar

from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Button, Checkbox, Input, Label

from semipd.core.errors import SemipdError
from semipd.core.state.partition import PartitionDocument
from semipd_top.operator_input import merged_bar, parse_expiry, preview_lines, split_bar, stepped
from semipd_top.screen.dialogs.base import Dialog, error_line
from semipd_top.screen.widgets import LinesWidget
from semipd_top.sources.contract import Operator
from semipd_top.text.lines import Line, Span, line
from semipd_top.text.numbers import duration

SETTLE_S = 0.25
"""After the last key, before the daemon is asked for a preview."""

PREVIEW_EVERY_S = 2.0
"""The work at hand changes, and step times become known."""

DEFAULT_EXPIRY = "10m"


class Tick(Checkbox):
    """A checkbox that also without colours looks empty while it is."""

    BUTTON_INNER = " "

    def watch_value(self) -> None:
        self.BUTTON_INNER = "X" if self.value else " "
        super().watch_value()


class UnitsInput(Input):
    """Takes digits, so that + and - are free to step in it too."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus", "screen.step(1)", show=False, priority=True),
        Binding("minus", "screen.step(-1)", show=False, priority=True),
    ]

    def __init__(self, value: str) -> None:
        super().__init__(value, id="units", restrict=r"\d*", max_length=5, compact=True)


class OverrideDialog(Dialog):
    """`partition` is the daemon's answer to partition.get; `step`: granules from the split in force that the
    dialog begins with."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,plus", "step(1)", "Prefill +", key_display="↑ +"),
        Binding("down,minus", "step(-1)", "Prefill -", key_display="↓ -"),
    ]

    heading = "Override the split"
    apply_label = "Override"

    def __init__(self, operator: Operator, partition: PartitionDocument, step: int = 0) -> None:
        super().__init__()
        self._operator = operator
        self._partition = partition
        begin = partition["shared"]["split"][0]
        self._begin = stepped(begin, partition["possible"], step) if step else begin

    def content(self) -> Iterable[Widget]:
        unit = self._partition["unit"]
        yield LinesWidget(id="asked")
        with Horizontal(classes="field"):
            yield Label(f"prefill {unit}s")
            yield UnitsInput(str(self._begin))
            yield Tick("no split: merged steps", id="off", compact=True)
        with Horizontal(classes="field"):
            yield Label("ends after")
            yield Input(DEFAULT_EXPIRY, id="expiry", placeholder="never", compact=True)
        with Horizontal(classes="field"):
            yield Label("reason")
            yield Input(id="reason", max_length=200, placeholder="for the history", compact=True)
        yield LinesWidget(id="preview")

    def on_mount(self) -> None:
        super().on_mount()
        self._changed()
        self.set_interval(PREVIEW_EVERY_S, self._preview)

    def action_step(self, step: int) -> None:
        units = self.query_one("#units", Input)
        units.value = str(stepped(int(units.value or 0), self._partition["possible"], step))

    def on_resize(self) -> None:
        self._draw_bar()

    @on(Input.Submitted)
    def _to_the_button(self) -> None:
        """Enter in a field does nothing yet: the next one, on the button, does."""
        self.query_one("#apply", Button).focus()

    @on(Input.Changed)
    @on(Checkbox.Changed)
    def _changed(self) -> None:
        self.query_one("#units", Input).disabled = self._off
        self._draw_bar()
        self._preview()

    @property
    def _off(self) -> bool:
        return self.query_one("#off", Checkbox).value

    def _draw_bar(self) -> None:
        asked = self.query_one("#asked", LinesWidget)
        units, width = int(self.query_one("#units", Input).value or 0), asked.size.width
        asked.show(
            [merged_bar(width) if self._off else split_bar(units, self._partition["num_units"], width)]
        )

    def _asked(self) -> dict[str, Any]:
        """Raises SemipdError(`invalid_value`)."""
        asked: dict[str, Any] = {"mode": "off"} if self._off else {"prefill_units": self._units()}
        expires_s = parse_expiry(self.query_one("#expiry", Input).value)
        if expires_s is not None:
            asked["expires_s"] = expires_s
        return asked | {"reason": self.query_one("#reason", Input).value}

    def _units(self) -> int:
        text = self.query_one("#units", Input).value
        if not text:
            raise SemipdError("invalid_value", "How many units for prefill?", param="prefill_units")
        return int(text)

    @work(exclusive=True, group="preview")
    async def _preview(self) -> None:
        await asyncio.sleep(SETTLE_S)
        if not self.is_current:
            # closed meanwhile: its fields are gone
            return
        preview = self.query_one("#preview", LinesWidget)
        try:
            answer = await self._operator.set_partition(**self._asked(), dry_run=True)
            auto = await self._operator.set_partition(mode="auto", dry_run=True)
        except SemipdError as error:
            preview.show(_wrapped(error, preview.size.width))
            return
        targets = self._partition["slo"]["targets"]
        preview.show(preview_lines(answer, auto, targets))

    async def apply(self) -> str:
        answer = await self._operator.set_partition(**self._asked())
        granted, at_s, expires_at_s = answer["granted"], answer["at_s"], answer["expires_at_s"]
        way = f"split {granted[0]}+{granted[1]}" if granted else "merged steps"
        limit = "" if at_s is None or expires_at_s is None else f" for {duration(expires_at_s - at_s)}"
        return f"Override: {way}{limit}, {answer['takes_effect']}. {answer['rounding']}".strip()


def _wrapped(error: SemipdError, width: int) -> list[Line]:
    return [line(Span(part, "bad")) for part in wrap(str(error), max(width, 20))] or [error_line(error)]
