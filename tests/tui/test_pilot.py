"""The screen as a whole: mouse, pause, tables that move, themes, sizes, and what is shown when it breaks."""

import pytest
from semipd_top.screen import app as module
from semipd_top.screen.app import TopApp, run_app
from semipd_top.screen.dialogs.inspect import InspectDialog
from semipd_top.screen.dialogs.override import OverrideDialog
from semipd_top.screen.dialogs.slo import SloDialog
from support.eventually import eventually
from support.top_pilot import ROWS, Board, dashboard
from support.top_source import ScriptedSource, gone
from support.top_state import event, later, request, seen, state, state_without_engine
from textual.geometry import Region
from textual.theme import BUILTIN_THEMES

from semipd.core.errors import SemipdError

# ---- mouse -------------------------------------------------------------------------------------


async def test_tabs_can_be_clicked() -> None:
    async with dashboard() as board:
        for number, view in (("2", "requests"), ("3", "events"), ("1", "overview")):
            await board.click(f"{number} {view}")
            assert board.view == view


@pytest.mark.parametrize(
    ("title", "opens"), [("Split", OverrideDialog), ("SLO", SloDialog), ("Traffic", None), ("Events", None)]
)
async def test_titles_of_panels_can_be_clicked(title: str, opens: type | None) -> None:
    async with dashboard(size=(160, 45)) as board:
        await board.click(f"─ {title} ─")
        if opens is None:
            assert board.view == {"Traffic": "requests", "Events": "events"}[title]
        else:
            await eventually(lambda: isinstance(board.app.screen, opens), title)


async def test_columns_are_sorted_by_their_heads() -> None:
    async with dashboard() as board:
        await board.press("2")
        orders = []
        for heading in ("  TTFT  ", "TTFT▼", "TTFT▲"):
            await board.click(heading)
            orders.append((board.requests.order.column, board.requests.order.reverse))
        assert orders == [("TTFT", True), ("TTFT", False), ("", False)]


async def test_every_sort_mark_is_visible() -> None:
    async with dashboard(size=(180, 30)) as board:
        await board.press("2")
        for _ in range(14):
            await board.press("greater_than_sign")
            assert "▼" in board.text
            await board.press("r")
            assert "▲" in board.text


async def test_a_row_is_chosen_by_a_click_and_opened_by_another() -> None:
    async with dashboard() as board:
        await board.press("2")
        await board.click("req-0003")
        assert board.dialog is None
        chosen = board.requests.chosen()
        assert chosen is not None
        assert chosen["id"] == "req-0003"
        await board.click("req-0003")
        await eventually(lambda: isinstance(board.app.screen, InspectDialog), "the request")


async def test_buttons_can_be_clicked() -> None:
    async with dashboard() as board:
        await board.override()
        await board.pilot.click("#keep")
        await board.closed()
        assert board.person.deeds == []
        await board.override()
        await board.pilot.click("#apply")
        await board.closed()
        assert len(board.person.deeds) == 1


# ---- what is shown -----------------------------------------------------------------------------


async def test_a_pause_keeps_the_picture_while_items_go_on() -> None:
    async with dashboard() as board:
        await board.press("p")
        for seconds in (1, 2, 3):
            await board.say(seen(later(state(), seconds), ROWS[:1], [event("refused")]))
        board.source.at_s += 60
        await board.drawn()
        assert "❚❚ PAUSED" in board.text
        await board.press("2")
        assert "4 of 4 requests" in board.text
        await board.press("3")
        assert "3 events of 3 kept" in board.text
        board.source.at_s -= 57
        await board.press("p")
        assert "6 events of 6 kept" in board.text
        await board.press("2")
        assert "1 of 1 requests" in board.text
        assert "● LIVE" in board.text


async def test_a_lost_connection_is_told_and_comes_back() -> None:
    async with dashboard(gone()) as board:
        assert "✘ DISCONNECTED" in board.text
        assert "Next try in 3 s. No daemon listens at /run/d.sock. Start one." in board.text
        await board.say(seen(state(), ROWS))
        assert "● LIVE" in board.text
        assert "-trouble" not in board.app.classes
        await board.say(gone())
        assert "✘ DISCONNECTED" in board.text
        assert "-trouble" in board.app.classes


async def test_silence_becomes_stale_without_any_item() -> None:
    async with dashboard() as board:
        board.source.at_s += 7
        await board.drawn()
        assert "◷ STALE" in board.text
        assert "No news for 7.0 s" in board.text


async def test_nothing_is_drawn_when_nothing_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = 0

    def count(_self: TopApp) -> None:
        nonlocal drawn
        drawn += 1

    async with dashboard() as board:
        monkeypatch.setattr(TopApp, "draw", count)
        for _ in range(3):
            await board.drawn()
        assert drawn == 0
        board.source.at_s += module.CLOCK_S
        await board.drawn()
        assert drawn > 0, "ages move on"


async def test_the_cursor_stays_on_its_request_while_others_come_and_go() -> None:
    async with dashboard(seen(state(), [request(seq) for seq in range(50, 0, -1)])) as board:
        await board.press("2", *["down"] * 20)
        chosen = board.requests.chosen()
        assert chosen is not None
        wanted, offset = chosen["seq"], cursor_offset(board)
        for newest in (51, 55, 60):
            rows = [request(seq) for seq in range(newest, 0, -1) if seq >= wanted or seq % 7]
            await board.say(seen(state(), rows))
            chosen = board.requests.chosen()
            assert chosen is not None
            assert chosen["seq"] == wanted
        assert cursor_offset(board) == offset, "and at its place on the screen"
        rows = [request(seq) for seq in range(60, 0, -1) if seq != wanted]
        await board.say(seen(state(), rows))
        assert board.requests.chosen() is not None, "whoever stands where it stood"
        await board.say(seen(state(), []))
        assert board.requests.chosen() is None


def cursor_offset(board: Board) -> float:
    table = board.requests.table
    return table.cursor_row - table.scroll_offset.y


async def test_at_the_top_the_cursor_stays_at_the_top() -> None:
    async with dashboard() as board:
        await board.press("2")
        await board.say(seen(state(), [request(9), *ROWS]))
        chosen = board.requests.chosen()
        assert chosen is not None
        assert chosen["seq"] == 9


async def test_cells_change_in_place() -> None:
    async with dashboard() as board:
        await board.press("2")
        await board.say(seen(state(), [request(4, output_tokens=399), *ROWS[1:]]))
        assert "399/400" in board.text


async def test_search_and_filter_hold_while_rows_come() -> None:
    async with dashboard() as board:
        await board.press("2", "slash", *"evaluation", "enter")
        await board.say(seen(state(), [request(9), request(8, key="evaluation"), *ROWS]))
        assert "2 of 6 requests" in board.text
        await board.press("l", "l")
        assert "0 of 6 requests: finished" in board.text


async def test_events_are_found_by_their_words() -> None:
    async with dashboard() as board:
        await board.press("3", "slash", *"blocks again")
        assert "1 event of 3 kept" in board.text
        assert "gave up 40 blocks" in board.text


async def test_lost_events_are_told() -> None:
    async with dashboard(seen(state(), ROWS, lost=3)) as board:
        await board.press("3")
        assert "3 lost" in board.text


# ---- commands, themes, sizes -------------------------------------------------------------------


async def test_the_command_palette_has_our_commands() -> None:
    async with dashboard() as board:
        commands = {one.title: one for one in board.app.get_system_commands(board.app.screen)}
        titles = list(commands)
        assert len(titles) == len(set(titles))
        for title in ("Overview", "Requests", "Events", "Help", "Change the service level targets"):
            assert title in titles
        assert [title.lower() for title in titles].count("quit") == 1
        await commands["Events"].callback()
        await board.pilot.pause()
        assert board.view == "events"
        assert commands["Change the service level targets"].help == "key s"


async def test_a_command_can_be_typed() -> None:
    async with dashboard() as board:
        await board.press("ctrl+p", *"end an over")
        await board.pilot.pause(0.5)
        await board.press("enter")
        await board.told("Back to auto.")
        assert board.person.deeds == [("clear_partition", {})]


@pytest.mark.parametrize("view", ["1", "2", "3"])
async def test_all_themes(view: str) -> None:
    async with dashboard() as board:
        await board.press(view)
        looks = set()
        for name in BUILTIN_THEMES:
            board.app.theme = name
            await board.pilot.pause()
            looks.add(str(board.app.screen._compositor.render_strips()[5]))
        assert any("ansi" in name for name in BUILTIN_THEMES)
        assert len(looks) > 1


SECOND_LINE = Region(0, 1, 60, 1)


async def test_tables_take_the_colours_of_a_new_theme() -> None:
    async with dashboard() as board:
        await board.press("2", "down")
        table = board.requests.table
        before = table.render_lines(SECOND_LINE)
        board.app.theme = "textual-light"
        await eventually(lambda: table.render_lines(SECOND_LINE) != before, "other colours")
        assert table.cursor_row == 1


@pytest.mark.parametrize("view", ["1", "2", "3"])
async def test_any_size(view: str) -> None:
    async with dashboard() as board:
        await board.press(view)
        for size in ((80, 24), (20, 6), (5, 3), (1, 1), (2, 40), (250, 2), (139, 30), (200, 50)):
            await board.pilot.resize_terminal(*size)
            await board.say(seen(state(), ROWS))
        assert "● LIVE" in board.text


@pytest.mark.parametrize("key", ["o", "s", "question_mark"])
async def test_dialogs_at_tiny_sizes(key: str) -> None:
    async with dashboard() as board:
        await board.press(key)
        await eventually(lambda: board.dialog is not None, "the dialog")
        for size in ((40, 10), (10, 4), (1, 1), (80, 24)):
            await board.pilot.resize_terminal(*size)
            await board.pilot.pause()
        await board.press("escape")
        assert board.dialog is None


async def test_without_an_engine_every_view_works() -> None:
    async with dashboard(seen(state_without_engine(), [])) as board:
        for view in ("1", "2", "3"):
            await board.press(view)
            assert "◌ STARTING" in board.text
        assert board.requests.chosen() is None
        await board.press("2", "enter", "c")
        await board.told("Choose a request that lives.")


async def test_before_anything_has_come() -> None:
    async with dashboard(gone(None)) as board:
        for view in ("1", "2", "3"):
            await board.press(view)
            assert "■ ENDED" in board.text
        await board.press("s")
        await board.told("There are no targets to change yet.")


# ---- recording, and what breaks ----------------------------------------------------------------


class Kept:
    """A recording in memory."""

    def __init__(self) -> None:
        self.items: list[object] = []

    @property
    def status(self) -> str:
        return f"REC {len(self.items)}"

    def write(self, item: object) -> None:
        self.items.append(item)


async def test_what_comes_is_recorded_also_while_paused() -> None:
    kept = Kept()
    items = [seen(state(), ROWS), seen(later(state(), 1)), gone()]
    async with dashboard(items[0], recording=kept) as board:
        await board.press("p")
        await board.say(*items[1:])
        await board.press("p")
        await board.say(seen(later(state(), 2)))
        assert kept.items[:3] == items
        assert "REC 4" in board.text


async def test_a_source_that_has_a_bug_leaves_its_last_picture_and_words() -> None:
    async with dashboard() as board:
        board.source.say(ZeroDivisionError("a bug"))
        await eventually(lambda: board.app.failure is not None, "the failure")
        await board.drawn()
        assert "■ ENDED" in board.text
        assert "semipd-top has a bug, and hears nothing more: ZeroDivisionError('a bug')." in board.text
        assert "used 30 %" in board.text, "the last picture"
        await board.press("2")
        assert board.view == "requests"


async def test_a_source_that_cannot_go_on_says_why() -> None:
    async with dashboard() as board:
        board.source.say(SemipdError("recording_cut", "The recording breaks off.", "Get another one."))
        await eventually(lambda: board.app.newest().link == "ended", "the end")
        await board.drawn()
        assert "The recording breaks off. Get another one." in board.text
        assert board.app.failure is None


def test_the_bug_is_shown_where_it_was_when_the_screen_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(app: TopApp) -> int:
        app.failure = ZeroDivisionError("a bug")
        return 0

    monkeypatch.setattr(TopApp, "run", run)
    assert run_app(ScriptedSource()) == 1
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


def test_the_exit_code_and_the_theme(monkeypatch: pytest.MonkeyPatch) -> None:
    themes = []
    monkeypatch.setattr(TopApp, "run", lambda app: themes.append(app.theme))
    assert run_app(ScriptedSource(), theme="nord") == 0
    assert themes == ["nord"]
