"""A dialog: a box in the middle of the screen that Escape closes without effect."""

from collections.abc import Iterable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Label

from semipd.core.errors import SemipdError
from semipd_top.screen.widgets import LinesWidget
from semipd_top.text.lines import Line, Span, line


class Dialog(ModalScreen[bool]):
    """Dismissed with True when what it offers was done."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "keep", "Close")]

    heading = ""
    keep_label = "Keep as it is"
    apply_label = ""
    """Empty: the dialog only shows something."""

    def compose(self) -> ComposeResult:
        with Vertical(id="box"):
            yield Label(self.heading, id="heading")
            yield from self.content()
            with Horizontal(id="buttons"):
                yield Button(self.keep_label, id="keep", compact=True)
                if self.apply_label:
                    yield Button(self.apply_label, id="apply", variant="warning", compact=True)

    def content(self) -> Iterable[Widget]:
        raise NotImplementedError

    def on_mount(self) -> None:
        self.query_one("#keep", Button).focus()

    @on(Button.Pressed, "#keep")
    def action_keep(self) -> None:
        self.dismiss(False)

    @on(Button.Pressed, "#apply")
    def _apply(self) -> None:
        """Once: while it is under way the button does nothing, and closing the dialog does not stop it."""
        self.query_one("#apply", Button).disabled = True
        self.app.run_worker(self._do(), group="deed")

    async def _do(self) -> None:
        button = self.query_one("#apply", Button)
        try:
            words = await self.apply()
        except SemipdError as error:
            button.disabled = False
            self.refused(error)
            return
        self.app.notify(words)
        if self.is_current:
            self.dismiss(True)

    async def apply(self) -> str:
        """Do it; what has been done, in words. Raises SemipdError."""
        raise NotImplementedError

    def refused(self, error: SemipdError) -> None:
        self.app.notify(str(error), title=error.code, severity="error", timeout=10)


class Reading(VerticalScroll, can_focus=True):
    """Lines of any number, to read."""

    def __init__(self, *, id: str = "reading") -> None:
        super().__init__(id=id)
        self._lines = LinesWidget(id=f"{id}-lines")

    def compose(self) -> ComposeResult:
        yield self._lines

    def show(self, lines: list[Line]) -> None:
        self._lines.styles.height = max(len(lines), 1)
        self._lines.show(lines)


def error_line(error: SemipdError) -> Line:
    return line(Span("✘ ", "bad"), Span(str(error), "bad"))
