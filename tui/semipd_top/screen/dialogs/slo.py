"""Change the targets of a service class."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from textual import on
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Button, Input, Label

from semipd.core.errors import SemipdError
from semipd.core.slo import DEFAULT_CLASS
from semipd.core.state.partition import SloState, TargetsDocument
from semipd_top.operator_input import parse_number, slo_preview
from semipd_top.picture.picture import Picture
from semipd_top.screen.dialogs.base import Dialog, error_line
from semipd_top.screen.widgets import LinesWidget
from semipd_top.sources.contract import Operator

TARGETS = (
    ("ttft_ms", "TTFT ms"),
    ("ttft_ms_per_1k_tokens", "+ per 1,000"),
    ("tpot_ms", "TPOT ms"),
    ("itl_ms", "ITL ms"),
)
MEASURE = (("percentile", "percentile"), ("window_s", "window s"))
"""One for all classes."""


class SloDialog(Dialog):
    """`newest` gives the picture of the moment: its finished requests are tried on the targets typed. Another
    name of a class brings that one's targets."""

    heading = "Targets of a service class"
    apply_label = "Change"

    def __init__(self, operator: Operator, newest: Callable[[], Picture]) -> None:
        super().__init__()
        self._operator = operator
        self._newest = newest
        self._class = DEFAULT_CLASS
        self._before = self._numbers(DEFAULT_CLASS)

    @property
    def _slo(self) -> SloState:
        state = self._newest().state
        assert state is not None, "targets are asked for before any are known"
        return state["slo"]

    def _numbers(self, name: str) -> dict[str, float]:
        """In force. Raises SemipdError(`unknown_class`)."""
        slo = self._slo
        common = cast(Mapping[str, float], slo["targets"])
        if name == DEFAULT_CLASS:
            targets = common
        elif name in slo.get("classes", {}):
            targets = cast(Mapping[str, float], slo["classes"][name]["targets"])
        else:
            known = ", ".join(slo.get("classes", {DEFAULT_CLASS: None}))
            raise SemipdError("unknown_class", f"There is no class {name!r:.40}; there are {known}.")
        shown = {key: targets.get(key, 0.0) for key, _ in TARGETS}
        return shown | {key: common[key] for key, _ in MEASURE}

    def content(self) -> Iterable[Widget]:
        with Horizontal(classes="field"):
            yield Label("class")
            yield Input(DEFAULT_CLASS, id="service_class", max_length=32, compact=True)
        for name, label in (*TARGETS, *MEASURE):
            with Horizontal(classes="field"):
                yield Label(label)
                yield Input(f"{self._before[name]:g}", id=name, compact=True)
        with Horizontal(classes="field"):
            yield Label("reason")
            yield Input(id="reason", max_length=200, placeholder="for the history", compact=True)
        yield LinesWidget(id="preview")

    def on_mount(self) -> None:
        super().on_mount()
        self._show_preview()

    @on(Input.Submitted)
    def _to_the_button(self) -> None:
        self.query_one("#apply", Button).focus()

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        if event.input.id == "service_class" and event.value != self._class:
            self._enter_class(event.value)
        self._show_preview()

    def _enter_class(self, name: str) -> None:
        """What stands in the fields is that class's, unless there is none of that name."""
        try:
            self._before = self._numbers(name)
        except SemipdError:
            return
        self._class = name
        for key, _ in (*TARGETS, *MEASURE):
            self.query_one(f"#{key}", Input).value = f"{self._before[key]:g}"

    def _show_preview(self) -> None:
        preview, picture = self.query_one("#preview", LinesWidget), self._newest()
        try:
            typed = self._typed()
        except SemipdError as error:
            preview.show([error_line(error)])
            return
        rows = [row for row in picture.requests if row.get("service_class", DEFAULT_CLASS) == self._class]
        targets = cast(TargetsDocument, typed)
        preview.show([slo_preview(rows, targets, picture.now_s, typed["window_s"])])

    def _typed(self) -> dict[str, float]:
        """Raises SemipdError: `invalid_value`, `unknown_class`."""
        name = self.query_one("#service_class", Input).value
        if name != self._class:
            self._numbers(name)
        needed = ("ttft_ms", "tpot_ms") if name == DEFAULT_CLASS else ()
        return {
            key: parse_number(
                label,
                self.query_one(f"#{key}", Input).value,
                or_zero=key not in needed and (key, label) in TARGETS,
            )
            for key, label in (*TARGETS, *MEASURE)
        }

    async def apply(self) -> str:
        changed: dict[str, Any] = {
            name: value for name, value in self._typed().items() if value != self._before[name]
        }
        if not changed:
            raise SemipdError("invalid_value", "Nothing is changed.", "Type another target, or keep them.")
        if self._class != DEFAULT_CLASS:
            changed["service_class"] = self._class
        answer = await self._operator.set_slo(**changed, reason=self.query_one("#reason", Input).value)
        is_default = self._class == DEFAULT_CLASS
        targets: TargetsDocument = (
            answer["targets"] if is_default else answer["classes"][self._class]["targets"]
        )
        whose = "Targets" if is_default else f"Targets of {self._class}"
        return f"{whose}: {_said(targets)}, from now on."


def _said(targets: TargetsDocument) -> str:
    shown = {"TTFT": targets["ttft_ms"], "TPOT": targets["tpot_ms"], "ITL": targets.get("itl_ms", 0.0)}
    return ", ".join(f"{name} {value:g} ms" for name, value in shown.items() if value) or "none"
