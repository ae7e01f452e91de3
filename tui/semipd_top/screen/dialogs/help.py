"""Every key, and what the characters of the bars mean."""

from collections.abc import Iterable, Sequence

from textual.binding import Binding
from textual.widget import Widget

from semipd_top.panels import kv, split
from semipd_top.screen.dialogs.base import Dialog, Reading
from semipd_top.text.lines import EMPTY, Line, Span, line

KV_LEGEND = (
    (kv.USED, "prefill", "KV blocks in use"),
    (kv.CACHED, "ok", "free, but what they hold can still be reused"),
    (kv.FREE, "dim", "free"),
    (kv.RESERVED, "warn", "kept free for requests that run: newcomers do not get them"),
)

WORDS = (
    "TTFT: from arrival at the daemon to the first token leaving it. TPOT: (last - first) / (tokens - 1).",
    "Met both: of all that came in the window, refused and failed ones are misses. Goodput: such per second.",
    "Busy: share of the time in which a lane had a step. It is no measure of how full the SMs are.",
    "Indicators: the engine's process is up; both loops turn; no step in flight is stuck.",
)


class HelpDialog(Dialog):
    heading = "semipd-top"
    keep_label = "Close"

    def __init__(self, groups: Sequence[tuple[str, Sequence[Binding]]]) -> None:
        """`groups`: a name, and the keys that belong to it."""
        super().__init__()
        self._groups = groups

    def content(self) -> Iterable[Widget]:
        yield Reading()

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one(Reading).show(help_lines(self._groups, self.app.get_key_display))


def help_lines(groups: Sequence[tuple[str, Sequence[Binding]]], display) -> list[Line]:  # type: ignore[no-untyped-def]
    lines: list[Line] = []
    for name, bindings in groups:
        lines.append(line(Span(name, "title")))
        for binding in bindings:
            key = binding.key_display or display(binding)
            lines.append(line(Span(f"  {key:>9}  ", "key"), binding.tooltip or binding.description))
        lines.append(EMPTY)
    lines.append(line(Span("Bars", "title")))
    for mark, style, words in (*split.LEGEND, *KV_LEGEND):
        lines.append(line(Span(f"  {mark * 3:>9}  ", style), words))  # type: ignore[arg-type]
    lines += [EMPTY, line(Span("Words", "title"))]
    return lines + [line(f"  {words}") for words in WORDS]
