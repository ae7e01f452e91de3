"""Cancel a request?"""

from collections.abc import Iterable

from textual.widget import Widget
from textual.widgets import Label

from semipd.core.state.requests import RequestRow
from semipd_top.screen.dialogs.base import Dialog
from semipd_top.sources.contract import Operator
from semipd_top.text.numbers import count, duration

_RESULTS = {
    "cancelled": "is cancelled",
    "already_finished": "had finished already",
    "not_found": "is not known any more",
}


class CancelDialog(Dialog):
    """Of one request, by its public id: all its choices."""

    heading = "Cancel this request?"
    keep_label = "Let it run"
    apply_label = "Cancel it"

    def __init__(self, operator: Operator, row: RequestRow) -> None:
        super().__init__()
        self._operator = operator
        self._row = row

    def content(self) -> Iterable[Widget]:
        row = self._row
        tokens = f"{count(row['prompt_tokens'])} prompt tokens, {count(row['output_tokens'])} of output"
        yield Label(
            f"{row['id']}\n{row['state']}, came {duration(row['age_ms'] / 1e3)} ago, {tokens}.\n"
            "Its client gets the error request_cancelled.",
            markup=False,
        )

    async def apply(self) -> str:
        result = await self._operator.cancel_request(self._row["id"])
        return f"Request {self._row['id']:.12} {_RESULTS.get(result, result)}."
