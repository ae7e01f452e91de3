"""The live screen."""

import signal
import traceback
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pty import STDIN_FILENO
from typing import Any, ClassVar, Protocol

from textual import on, work
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import ContentSwitcher, Footer

from semipd.command_line.answers import understood
from semipd.command_line.exit_codes import DONE, TERMINATED
from semipd.core.errors import SemipdError
from semipd_top.panels.header import Frame, condition_of, header
from semipd_top.picture.picture import Monitor, Picture
from semipd_top.screen.dialogs.confirm import CancelDialog
from semipd_top.screen.dialogs.event import EventDialog
from semipd_top.screen.dialogs.help import HelpDialog
from semipd_top.screen.dialogs.inspect import InspectDialog
from semipd_top.screen.dialogs.override import OverrideDialog
from semipd_top.screen.dialogs.slo import SloDialog
from semipd_top.screen.environment import blamed_on_variables
from semipd_top.screen.panes import EventsPane, OverviewPane, Pane, RequestsPane
from semipd_top.screen.tables import SyncedTable
from semipd_top.screen.terminal import watched_terminal
from semipd_top.screen.widgets import LinesWidget
from semipd_top.sources.contract import Gone, Item, Operator, Playback, Source

DRAW_EVERY_S = 0.25
"""At most so often; nothing is drawn when nothing has changed."""

CLOCK_S = 1.0
"""Ages and countdowns move on even when no frame comes."""

SKIP_S = 10.0
MIN_SPEED, MAX_SPEED = 1 / 16, 256.0
"""Of a replay, reached by keys."""


class Recorder(Protocol):
    """Where items are kept. `status` is what the header says about it."""

    @property
    def status(self) -> str: ...

    def write(self, item: Item) -> None: ...


class TopApp(App[int]):
    CSS_PATH = "top.tcss"
    TITLE = "semipd-top"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "view('overview')", "Overview", show=False),
        Binding("2", "view('requests')", "Requests", show=False),
        Binding("3", "view('events')", "Events", show=False),
        Binding(
            "o", "override", "Override", show=False, tooltip="override the split: preview, expiry, reason"
        ),
        Binding("plus", "override(1)", "+", tooltip="the same, prefill one granule more", show=False),
        Binding("minus", "override(-1)", "-", tooltip="the same, prefill one granule less", show=False),
        Binding("a", "auto", "Auto", show=False, tooltip="end an override: back to auto, at once"),
        Binding("s", "slo", "SLO", show=False, tooltip="change the service level targets"),
        Binding(
            "p,space", "pause", "Pause", key_display="p", tooltip="let the picture, or a replay, stand still"
        ),
        Binding("left_square_bracket", "speed(0.5)", "Slower", show=False, tooltip="replay half as fast"),
        Binding("right_square_bracket", "speed(2)", "Faster", show=False, tooltip="replay twice as fast"),
        Binding("n", "step", "Next", show=False, tooltip="replay: the next frame, then stand still"),
        Binding("f", "skip", "Forward", show=False, tooltip=f"replay: {SKIP_S:g} s further"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q,ctrl+c", "quit", "Quit", key_display="q"),
    ]

    def __init__(
        self,
        source: Source,
        recording: Recorder | None = None,
        *,
        read_only: bool = False,
    ) -> None:
        super().__init__()
        self._source = source
        self._recording = recording
        self._monitor = Monitor(source.interval_s)
        self._why_read_only = (
            "semipd-top was started with --read-only." if read_only else source.why_read_only
        )
        self.failure: Exception | None = None
        """A bug that has ended the source; the screen says so."""
        self._has_changed = True
        self._drawn_s = float("-inf")
        self._still: Picture | None = None
        self._view = "overview"

    def compose(self) -> ComposeResult:
        yield LinesWidget(id="header")
        with ContentSwitcher(initial="overview"):
            yield OverviewPane(id="overview")
            yield RequestsPane(id="requests")
            yield EventsPane(id="events")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self._listen()
        self.set_interval(DRAW_EVERY_S, self._draw_if_due)

    def on_resize(self) -> None:
        """What the terminal still shows is unknown even when it is as large as before: one that shrank and
        grew while we were busy has lost its contents, and Textual redraws only what has another size."""
        self.screen.refresh()

    def newest(self) -> Picture:
        return self._still or self._monitor.picture(self._source.now_s())

    def draw(self) -> None:
        picture = self.newest()
        self._has_changed, self._drawn_s = False, self._source.now_s()
        paused = self._paused
        self.set_class(condition_of(picture, paused) not in ("live", "paused"), "-trouble")
        frame = Frame(
            view=self._view,
            title=self._source.title,
            paused=paused,
            read_only=bool(self._why_read_only),
            recording=self._recording.status if self._recording is not None else "",
            speed=self._source.speed if isinstance(self._source, Playback) else None,
        )
        lines = self.query_one("#header", LinesWidget)
        lines.show(header(picture, frame, lines.size.width))
        for pane in self.query(Pane):
            pane.show(picture)

    @work(group="source")
    async def _listen(self) -> None:
        try:
            async with aclosing(self._source.items()) as items:
                async for item in items:
                    with understood(self._source.title):
                        self._monitor.take(item)
                    if self._recording is not None:
                        self._recording.write(item)
                    self._has_changed = True
        except SemipdError as error:
            self._end(error)
        except Exception as error:
            # the last picture may matter more to an operator than our bug
            self.failure = error
            what = f"semipd-top has a bug, and hears nothing more: {error!r}."
            self._end(SemipdError("internal_error", what, "q ends it and shows where; please report that."))

    def _end(self, why: SemipdError) -> None:
        self._monitor.take(Gone(self._source.now_s(), why.code, why.message, why.hint))
        self._has_changed = True

    def _draw_if_due(self) -> None:
        age_s = self._source.now_s() - self._drawn_s
        if (self._has_changed and self._still is None) or age_s >= CLOCK_S or age_s < 0:
            self.draw()

    @property
    def _paused(self) -> bool:
        return self._still is not None or (isinstance(self._source, Playback) and self._source.paused)

    def action_view(self, name: str) -> None:
        self._view = name
        self.query_one(ContentSwitcher).current = name
        pane = self.query_one(f"#{name}", Pane)
        (pane if isinstance(pane, OverviewPane) else pane.query_one(SyncedTable)).focus()
        self.draw()

    def action_pause(self) -> None:
        """A replay's time stands still; a live picture is only kept, and the daemon goes on."""
        if isinstance(self._source, Playback):
            self._source.resume() if self._source.paused else self._source.pause()
        else:
            self._still = None if self._still is not None else self.newest()
        self.draw()

    def action_speed(self, factor: float) -> None:
        if (playback := self._playback()) is not None:
            playback.speed = min(max(playback.speed * factor, MIN_SPEED), MAX_SPEED)
            self.draw()

    def action_step(self) -> None:
        if (playback := self._playback()) is not None:
            playback.step()
            self.draw()

    def action_skip(self) -> None:
        if (playback := self._playback()) is not None:
            playback.skip(SKIP_S)
            self.draw()

    def _playback(self) -> Playback | None:
        if isinstance(self._source, Playback):
            return self._source
        self.notify("Only the time of a recording can be chosen.", severity="warning")
        return None

    def action_help(self) -> None:
        groups = [
            ("Everywhere", _keys(self)),
            *((name, _keys(self.query_one(kind))) for name, kind in _VIEWS),
        ]
        self.push_screen(HelpDialog(groups))

    def get_system_commands(self, screen: Screen[Any]) -> Any:
        yield from super().get_system_commands(screen)
        for binding in _keys(self):
            if binding.action in ("quit", "command_palette"):
                continue
            words = binding.tooltip or binding.description
            yield SystemCommand(
                words[:1].upper() + words[1:], f"key {self.get_key_display(binding)}", self._run(binding)
            )

    def _run(self, binding: Binding) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            await self.run_action(binding.action)

        return run

    def _operator(self) -> Operator:
        """Raises SemipdError: nothing may be changed here, or nobody is there."""
        if self._why_read_only:
            raise SemipdError("read_only", self._why_read_only)
        return self._source.operator

    @work(exclusive=True, group="act")
    async def action_override(self, step: int = 0) -> None:
        try:
            operator = self._operator()
            partition = await operator.partition()
        except SemipdError as error:
            self._refuse(error)
            return
        if not partition["possible"]:
            self._refuse(
                SemipdError("nothing_to_divide", "This device or scheduler has no splits to choose from.")
            )
            return
        await self.push_screen_wait(OverrideDialog(operator, partition, step))

    @work(exclusive=True, group="act")
    async def action_auto(self) -> None:
        try:
            await self._operator().clear_partition()
        except SemipdError as error:
            self._refuse(error)
        else:
            self.notify("Back to auto.")

    @work(exclusive=True, group="act")
    async def action_slo(self) -> None:
        try:
            operator = self._operator()
            if self.newest().state is None:
                raise SemipdError("not_connected", "There are no targets to change yet.")
        except SemipdError as error:
            self._refuse(error)
            return
        await self.push_screen_wait(SloDialog(operator, self.newest))

    @work(exclusive=True, group="act")
    async def action_cancel_request(self) -> None:
        row = self.query_one(RequestsPane).chosen()
        try:
            operator = self._operator()
            if row is None or row["state"] == "finished":
                raise SemipdError("nothing_to_cancel", "Choose a request that lives.")
        except SemipdError as error:
            self._refuse(error)
            return
        await self.push_screen_wait(CancelDialog(operator, row))

    @on(SyncedTable.RowSelected, "#requests-table")
    def action_inspect(self) -> None:
        row = self.query_one(RequestsPane).chosen()
        if row is None:
            return
        try:
            self.push_screen(InspectDialog(self._source.operator, row["id"]))
        except SemipdError as error:
            self._refuse(error)

    @on(SyncedTable.RowSelected, "#events-table")
    def action_read_event(self) -> None:
        event = self.query_one(EventsPane).chosen()
        if event is not None:
            self.push_screen(EventDialog(event))

    def _refuse(self, error: SemipdError) -> None:
        # a key that is pressed again and again says why not once
        self.clear_notifications()
        self.notify(str(error), title=error.code, severity="warning")


_VIEWS = (("Requests", RequestsPane), ("Events", EventsPane))


def _keys(node: Any) -> list[Binding]:
    """Its bindings, each action once however many keys it has: with the key that it has last been given."""
    found: dict[str, Binding] = {}
    for _, binding in node._bindings:
        found.pop(binding.action, None)
        found[binding.action] = binding
    return list(found.values())


def run_app(
    source: Source,
    recording: Recorder | None = None,
    *,
    read_only: bool = False,
    theme: str | None = None,
) -> int:
    """Until the person quits. Returns the exit code. `theme` None: Textual's dark one, or the terminal's own
    colours where it has only 16."""
    with blamed_on_variables():
        app = TopApp(source, recording, read_only=read_only)
    # without any colour that theme's text would be as black as what lies behind it
    few_colours = app.console.color_system == "standard" and not app.no_color
    app.theme = theme or ("ansi-dark" if few_colours else app.theme)
    # the terminal is put back before the end
    signal.signal(signal.SIGTERM, lambda *_: app.exit(return_code=TERMINATED))
    with blamed_on_variables(if_named=True), watched_terminal(STDIN_FILENO) as gone:
        app.run()
    if gone.is_set():
        return DONE
    if app.failure is not None:
        traceback.print_exception(app.failure)
        return 1
    return app.return_code or 0
