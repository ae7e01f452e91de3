"""One request, its events as a timeline; kept up to date while it lives."""

from collections.abc import Iterable

from textual import work
from textual.widget import Widget

from semipd.core.errors import SemipdError
from semipd.core.state.requests import RequestRow
from semipd_top.panels.timeline import request_lines
from semipd_top.screen.dialogs.base import Dialog, Reading, error_line
from semipd_top.sources.contract import Operator
from semipd_top.text.lines import EMPTY, Line

REFRESH_S = 1.0


class InspectDialog(Dialog):
    """A request of several choices shows them one below the other."""

    heading = "Request"
    keep_label = "Close"

    def __init__(self, operator: Operator, request_id: str) -> None:
        super().__init__()
        self._operator = operator
        self._request_id = request_id
        self._records: list[RequestRow] = []

    def content(self) -> Iterable[Widget]:
        yield Reading()

    def on_mount(self) -> None:
        super().on_mount()
        self.set_interval(REFRESH_S, self._look)
        self._look()

    def on_resize(self) -> None:
        self._show()

    def _look(self) -> None:
        if not self._records or any(record["state"] != "finished" for record in self._records):
            self._ask()

    @work(exclusive=True, group="inspect")
    async def _ask(self) -> None:
        failure: SemipdError | None = None
        try:
            self._records = await self._operator.requests(request_id=self._request_id)
        except SemipdError as error:
            failure = error
        if not self.is_current:
            # closed meanwhile: there is nothing to write on
            return
        if failure is not None:
            self.query_one(Reading).show([error_line(failure)])
        else:
            self._show()

    def _show(self) -> None:
        reading = self.query_one(Reading)
        lines: list[Line] = []
        for record in self._records:
            lines += [*request_lines(record, max(reading.size.width - 2, 20)), EMPTY]
        reading.show(lines)
