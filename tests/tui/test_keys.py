"""Every key of the dashboard does what its help says."""

from collections.abc import Awaitable, Callable

import pytest
from semipd_top.screen.app import TopApp
from semipd_top.screen.dialogs.base import Dialog
from semipd_top.screen.dialogs.confirm import CancelDialog
from semipd_top.screen.dialogs.event import EventDialog
from semipd_top.screen.dialogs.help import HelpDialog
from semipd_top.screen.dialogs.inspect import InspectDialog
from semipd_top.screen.dialogs.override import OverrideDialog, UnitsInput
from semipd_top.screen.dialogs.slo import SloDialog
from semipd_top.screen.panes import EventsPane, OverviewPane, RequestsPane, SearchablePane
from semipd_top.screen.widgets import LinesWidget
from semipd_top.text.lines import plain
from support.eventually import eventually
from support.top_pilot import ROWS, Board, dashboard
from support.top_source import ScriptedPlayback
from support.top_state import event, later, request, seen, state
from textual.binding import Binding
from textual.widgets import Input

Act = Callable[[Board], Awaitable[None]]

OWNERS = {
    "app": TopApp,
    "overview": OverviewPane,
    "search": SearchablePane,
    "requests": RequestsPane,
    "events": EventsPane,
    "dialog": Dialog,
    "override": OverrideDialog,
    "units": UnitsInput,
}


NO_REPLAY = "Only the time of a recording can be chosen."


def keys_of(owner: type) -> set[str]:
    """That it adds itself."""
    bindings = owner.__dict__.get("BINDINGS", [])
    assert all(isinstance(binding, Binding) for binding in bindings)
    return {key for binding in bindings for key in binding.key.split(",")}


TESTED: dict[tuple[str, str], Act] = {}


def key(owner: str, *keys: str) -> Callable[[Callable[[Board, str], Awaitable[None]]], None]:
    """Registers a test of these keys of this owner."""

    def register(test: Callable[[Board, str], Awaitable[None]]) -> None:
        for name in keys:

            async def act(board: Board, name: str = name) -> None:
                await test(board, name)

            assert (owner, name) not in TESTED
            TESTED[owner, name] = act

    return register


def test_every_key_is_tested() -> None:
    assert set(TESTED) == {(name, key) for name, owner in OWNERS.items() for key in keys_of(owner)}


def test_every_dialog_and_pane_is_among_the_owners() -> None:
    panes = {OverviewPane, *SearchablePane.__subclasses__()}
    assert panes <= set(OWNERS.values())
    with_keys = {dialog for dialog in Dialog.__subclasses__() if keys_of(dialog)}
    assert with_keys <= set(OWNERS.values())


@pytest.mark.parametrize("owner_and_key", TESTED, ids=lambda pair: f"{pair[0]}-{pair[1]}")
async def test_key(owner_and_key: tuple[str, str]) -> None:
    async with dashboard() as board:
        await TESTED[owner_and_key](board)


# ---- everywhere --------------------------------------------------------------------------------


@key("app", "1", "2", "3")
async def _view(board: Board, name: str) -> None:
    view = {"1": "overview", "2": "requests", "3": "events"}[name]
    await board.press({"1": "2"}.get(name, "1"))
    assert board.view != view
    await board.press(name)
    assert board.view == view
    assert f"[{name} {view}]" in board.text
    assert board.focused == (view if view == "overview" else f"{view}-table")


@key("app", "o", "plus", "minus")
async def _override(board: Board, name: str) -> None:
    await board.press("2")
    await board.override(name)
    units = board.app.screen.query_one("#units", Input).value
    assert units == {"o": "68", "plus": "72", "minus": "64"}[name]
    assert board.person.deeds == []


@key("app", "a")
async def _auto(board: Board, name: str) -> None:
    await board.press("2", name)
    await board.told("Back to auto.")
    assert board.person.deeds == [("clear_partition", {})]


@key("app", "s")
async def _slo(board: Board, name: str) -> None:
    await board.opens(SloDialog, "2", name)
    assert board.person.calls == []


@key("app", "p", "space")
async def _pause(board: Board, name: str) -> None:
    await board.press(name)
    await board.say(seen(later(state(), 1, {"kv.used_blocks": 3999}), ROWS[:1]))
    assert "❚❚ PAUSED" in board.text
    assert "used 30 %" in board.text
    await board.press(name)
    assert "● LIVE" in board.text
    assert "used 99" in board.text, "what came meanwhile"


@key("app", "left_square_bracket", "right_square_bracket")
async def _speed(board: Board, name: str) -> None:
    await board.press(name)
    assert board.notices == [NO_REPLAY]
    async with dashboard(make=ScriptedPlayback) as replay:
        await replay.press(name)
        speed = 0.5 if name.startswith("left") else 2.0
        assert replay.source.speed == speed  # type: ignore[attr-defined]
        assert f", {speed:g}x" in replay.text


@key("app", "n")
async def _next(board: Board, name: str) -> None:
    await board.press(name)
    assert board.notices == [NO_REPLAY]
    async with dashboard(make=ScriptedPlayback) as replay:
        await replay.press(name, name)
        assert replay.source.num_steps == 2  # type: ignore[attr-defined]
        await replay.drawn()
        assert "❚❚ PAUSED" in replay.text


@key("app", "f")
async def _forward(board: Board, name: str) -> None:
    await board.press(name)
    assert board.notices == [NO_REPLAY]
    async with dashboard(make=ScriptedPlayback) as replay:
        before_s = replay.source.at_s
        await replay.press(name)
        assert replay.source.at_s == before_s + 10


@key("app", "question_mark")
async def _help(board: Board, name: str) -> None:
    await board.opens(HelpDialog, "2", name)
    assert "override the split" in board.text


@key("app", "q", "ctrl+c")
async def _quit(board: Board, name: str) -> None:
    await board.press("2", name)
    await eventually(lambda: board.app._exit, "the end")
    assert board.app.return_code == 0


# ---- views -------------------------------------------------------------------------------------


@key("overview", "o")
async def _overview_override(board: Board, name: str) -> None:
    assert board.focused == "overview"
    await board.override(name)


@key("overview", "a")
async def _overview_auto(board: Board, name: str) -> None:
    await _auto_from_here(board, name)


async def _auto_from_here(board: Board, name: str) -> None:
    await board.press(name)
    await board.told("Back to auto.")


@key("overview", "s")
async def _overview_slo(board: Board, name: str) -> None:
    await board.opens(SloDialog, name)


@key("search", "slash")
async def _search(board: Board, name: str) -> None:
    for number, word, summary in (("2", "evaluation", "1 of 4 requests"), ("3", "overloaded", "1 event")):
        await board.press(number, name, *word)
        assert summary in board.text
        assert f"matching '{word}'" in board.text
        await board.press("enter")
        assert board.focused.endswith("-table")
        assert summary in board.text, "Enter keeps the words"
        await board.press("escape")


@key("search", "escape")
async def _end_search(board: Board, name: str) -> None:
    for number, all_again in (("2", "4 of 4 requests"), ("3", "3 events of 3")):
        await board.press(number, "slash", *"xyz")
        assert all_again not in board.text
        await board.press(name)
        assert all_again in board.text
        assert board.focused.endswith("-table")


@key("requests", "l")
async def _which(board: Board, name: str) -> None:
    await board.press("2")
    seen_rows = []
    for _ in range(3):
        await board.press(name)
        seen_rows.append(shown_seqs(board))
    assert seen_rows == [[4, 3], [2, 1], [4, 3, 2, 1]]


@key("requests", "less_than_sign", "greater_than_sign")
async def _sort(board: Board, name: str) -> None:
    await board.press("2", name)
    assert "by prefill" in board.text if name.startswith("less") else "by id" in board.text
    back = "greater_than_sign" if name.startswith("less") else "less_than_sign"
    await board.press(back)
    assert "live first, newest first" in board.text
    await board.press(*["greater_than_sign"] * 7)
    assert "by TTFT" in board.text
    assert "TTFT▼" in board.text
    assert shown_seqs(board) == [3, 4, 1, 2]


@key("requests", "r")
async def _reverse(board: Board, name: str) -> None:
    await board.press("2", name)
    assert shown_seqs(board) == [4, 3, 2, 1], "the daemon's order has no reverse"
    await board.press(*["greater_than_sign"] * 7, name)
    assert "TTFT▲" in board.text
    assert shown_seqs(board) == [2, 1, 4, 3]


@key("requests", "enter")
async def _inspect(board: Board, name: str) -> None:
    board.person.records["req-0003"] = [ROWS[1] | {"events": [event("admitted")]}]
    await board.press("2", "down")
    await board.opens(InspectDialog, name)
    await board.sees("256 of 1.0k tokens found as a prefix")


@key("requests", "c")
async def _cancel(board: Board, name: str) -> None:
    await board.press("2", "down")
    await board.opens(CancelDialog, name)
    assert "req-0003" in board.text
    assert board.person.calls == []


@key("events", "x")
async def _all_kinds(board: Board, name: str) -> None:
    await board.press("3")
    assert "3 events of 3 kept" in board.text
    assert "arrived" not in board.text
    await board.press(name)
    assert "4 events of 4 kept, newest first, all kinds" in board.text
    assert "arrived" in board.text
    await board.press(name)
    assert "3 events of 3 kept" in board.text


@key("events", "enter")
async def _read(board: Board, name: str) -> None:
    await board.press("3", "down", "down")
    await board.opens(EventDialog, name)
    assert "gave up 40 blocks, 640 tokens to compute again" in board.text
    assert "tokens_lost" in board.text


def shown_seqs(board: Board) -> list[int]:
    table = board.requests.table
    return [int(row.cells[0].text[-1:]) for row in table.rows]


# ---- dialogs -----------------------------------------------------------------------------------


@key("dialog", "escape")
async def _close(board: Board, name: str) -> None:
    everywhere: list[tuple[str, type[Dialog]]]
    everywhere = [("o", OverrideDialog), ("s", SloDialog), ("question_mark", HelpDialog)]
    of_requests: list[tuple[str, type[Dialog]]] = [("c", CancelDialog), ("enter", InspectDialog)]
    for view, dialogs in (("1", everywhere), ("2", of_requests)):
        await board.press(view)
        for opener, kind in dialogs:
            await board.opens(kind, opener)
            await board.press(name)
            assert board.dialog is None
    assert board.person.deeds == []


@key("override", "up", "plus", "down", "minus")
async def _step(board: Board, name: str) -> None:
    await board.override()
    up = name in ("up", "plus")
    await board.press(name)
    units = board.app.screen.query_one("#units", Input)
    assert units.value == ("72" if up else "64")
    await board.sees("granted 72+60" if up else "granted 64+68")
    await board.press(*[name] * 16)
    assert units.value == ("128" if up else "8"), "the end of the table"


@key("units", "plus", "minus")
async def _step_in_the_field(board: Board, name: str) -> None:
    await board.override()
    units = board.app.screen.query_one("#units", Input)
    units.focus()
    await board.press("up", name, name)
    assert units.value == ("80" if name == "plus" else "64")
    reason = board.app.screen.query_one("#reason", Input)
    reason.focus()
    await board.press(name)
    assert reason.value == ("+" if name == "plus" else "-"), "elsewhere they are characters"


# ---- what help says ----------------------------------------------------------------------------


async def test_help_names_every_key() -> None:
    async with dashboard(size=(130, 100)) as board:
        await board.opens(HelpDialog, "question_mark")
        lines = [plain(spans).strip() for spans in board.app.screen.query_one(LinesWidget).lines]
        first_words = {line.split("  ")[0] for line in lines}
        for owner in ("app", "search", "requests", "events"):
            for binding in OWNERS[owner].__dict__["BINDINGS"]:
                shown = binding.key_display or board.app.get_key_display(binding)
                assert shown in first_words, binding
                assert any((binding.tooltip or binding.description) in line for line in lines), binding
        for mark in "█▒░▞╱·╳":
            assert mark * 3 in first_words


async def test_the_footer_hints_at_what_the_view_offers() -> None:
    async with dashboard() as board:
        hints = {"1": ("Override", "Auto", "SLO"), "2": ("Search", "Which", "Sort", "Inspect", "Cancel")}
        for number, words in (hints | {"3": ("Search", "All kinds", "Read")}).items():
            await board.press(number)
            footer = board.text.split("\n")[-1]
            assert all(word in footer for word in (*words, "Pause", "Help", "Quit")), footer


async def test_a_replay_is_paused_at_its_source() -> None:
    async with dashboard(make=ScriptedPlayback) as board:
        await board.press("p")
        assert board.source.paused is True  # type: ignore[attr-defined]
        assert "❚❚ PAUSED" in board.text
        await board.press("p")
        assert board.source.paused is False  # type: ignore[attr-defined]
        assert "● LIVE" in board.text


async def test_speeds_have_ends() -> None:
    async with dashboard(make=ScriptedPlayback) as board:
        await board.press(*["right_square_bracket"] * 9)
        fast = board.source.speed  # type: ignore[attr-defined]
        await board.press(*["left_square_bracket"] * 13)
        assert (fast, board.source.speed) == (256.0, 1 / 16)  # type: ignore[attr-defined]


async def test_letters_in_a_search_are_no_keys() -> None:
    async with dashboard() as board:
        await board.press("2", "slash", *"qaspo3")
        assert board.view == "requests"
        assert board.requests.words == "qaspo3"
        assert board.person.calls == []


async def test_more_requests_than_fit_can_be_reached() -> None:
    rows = [request(seq) for seq in range(200, 0, -1)]
    async with dashboard(seen(state(), rows), size=(80, 24)) as board:
        await board.press("2", "ctrl+end")
        chosen = board.requests.chosen()
        assert chosen is not None
        assert chosen["seq"] == 1
