"""Change the service level targets."""

from collections.abc import Callable, Iterable
from typing import cast

from textual import on
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Button, Input, Label

from semipd.core.errors import SemipdError
from semipd_top.operator_input import parse_number, slo_preview
from semipd_top.picture.picture import Picture
from semipd_top.screen.dialogs.base import Dialog, error_line
from semipd_top.screen.widgets import LinesWidget
from semipd_top.sources.contract import Operator

FIELDS = (
    ("ttft_ms", "TTFT ms"),
    ("tpot_ms", "TPOT ms"),
    ("percentile", "percentile"),
    ("window_s", "window s"),
)


class SloDialog(Dialog):
    """`newest` gives the picture of the moment: its finished requests are tried on the targets typed."""

    heading = "Service level targets"
    apply_label = "Change"

    def __init__(self, operator: Operator, newest: Callable[[], Picture]) -> None:
        super().__init__()
        self._operator = operator
        self._newest = newest
        state = newest().state
        assert state is not None, "targets are asked for before any are known"
        self._targets = cast(dict[str, float], state["slo"]["targets"])

    def content(self) -> Iterable[Widget]:
        for name, label in FIELDS:
            with Horizontal(classes="field"):
                yield Label(label)
                yield Input(f"{self._targets[name]:g}", id=name, compact=True)
        with Horizontal(classes="field"):
            yield Label("reason")
            yield Input(id="reason", max_length=200, placeholder="for the history", compact=True)
        yield LinesWidget(id="preview")

    def on_mount(self) -> None:
        super().on_mount()
        self._changed()

    @on(Input.Submitted)
    def _to_the_button(self) -> None:
        self.query_one("#apply", Button).focus()

    @on(Input.Changed)
    def _changed(self) -> None:
        preview, picture = self.query_one("#preview", LinesWidget), self._newest()
        try:
            typed = self._typed()
        except SemipdError as error:
            preview.show([error_line(error)])
            return
        tried = slo_preview(
            picture.requests, typed["ttft_ms"], typed["tpot_ms"], picture.now_s, typed["window_s"]
        )
        preview.show([tried])

    def _typed(self) -> dict[str, float]:
        """Raises SemipdError(`invalid_value`)."""
        return {name: parse_number(label, self.query_one(f"#{name}", Input).value) for name, label in FIELDS}

    async def apply(self) -> str:
        changed: dict[str, float] = {
            name: value for name, value in self._typed().items() if value != self._targets[name]
        }
        if not changed:
            raise SemipdError("invalid_value", "Nothing is changed.", "Type another target, or keep them.")
        answer = await self._operator.set_slo(**changed, reason=self.query_one("#reason", Input).value)
        targets = answer["targets"]
        return f"Targets: TTFT {targets['ttft_ms']:g} ms, TPOT {targets['tpot_ms']:g} ms, from now on."
