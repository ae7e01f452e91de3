"""Dialogs: the safe choice has the focus, previews change nothing, deeds are exactly what was typed."""

import asyncio
from typing import Any

import pytest
from semipd_top.screen.dialogs.base import Dialog
from semipd_top.screen.dialogs.confirm import CancelDialog
from semipd_top.screen.dialogs.event import EventDialog
from semipd_top.screen.dialogs.help import HelpDialog
from semipd_top.screen.dialogs.inspect import InspectDialog
from semipd_top.screen.dialogs.override import OverrideDialog
from semipd_top.screen.dialogs.slo import SloDialog
from support.eventually import eventually
from support.top_pilot import ROWS, Board, dashboard
from support.top_source import ScriptedPlayback
from support.top_state import event, finished, seen, state
from textual.widgets import Button, Checkbox, Input

from semipd.core.errors import SemipdError

OPENERS: dict[type[Dialog], tuple[str, ...]] = {
    OverrideDialog: ("o",),
    SloDialog: ("s",),
    CancelDialog: ("2", "c"),
    InspectDialog: ("2", "enter"),
    HelpDialog: ("question_mark",),
    EventDialog: ("3", "enter"),
}
SILENT = SemipdError("engine_silent", "The engine has not answered within 5 s.", "Look at its log.")


def test_every_dialog_is_here() -> None:
    assert set(OPENERS) == set(Dialog.__subclasses__())


@pytest.mark.parametrize("kind", OPENERS)
async def test_the_safe_choice_has_the_focus_and_enter_on_it_changes_nothing(kind: type[Dialog]) -> None:
    async with dashboard() as board:
        await board.opens(kind, *OPENERS[kind])
        assert board.focused == "keep"
        await board.press("enter")
        await board.closed()
        assert board.person.deeds == []


@pytest.mark.parametrize("kind", OPENERS)
async def test_impatient_keys_close_one_dialog_and_nothing_else(kind: type[Dialog]) -> None:
    async with dashboard() as board:
        await board.opens(kind, *OPENERS[kind])
        await board.press("escape", "escape", "escape")
        await board.closed()
        assert board.person.deeds == []
        assert "● LIVE" in board.text


# ---- override ----------------------------------------------------------------------------------


async def test_a_preview_is_a_dry_run_of_what_is_typed_beside_auto() -> None:
    async with dashboard() as board:
        await board.override()
        await board.type("units", "71")
        await board.sees("71 SMs asked for")
        await board.sees("auto TTFT   210 ms (≤ 500)  TPOT  47.9 ms (≤ 50)")
        asked = [fields for name, fields in board.person.calls if name == "set_partition"]
        assert all(fields["dry_run"] is True for fields in asked)
        assert asked[-2:] == [
            {"prefill_units": 71, "expires_s": 600.0, "reason": "", "dry_run": True},
            {"mode": "auto", "dry_run": True},
        ]
        assert board.person.deeds == []


async def test_typing_asks_once_it_has_settled() -> None:
    async with dashboard() as board:
        await board.override()
        num_before = len(board.person.calls)
        for text in ("7", "72", "7", "76"):
            board.app.screen.query_one("#units", Input).value = text
        await board.sees("granted 76+56")
        await board.pilot.pause()
        assert len(board.person.calls) == num_before + 2


async def test_override_sends_exactly_the_wish() -> None:
    async with dashboard() as board:
        await board.override()
        await board.type("units", "72")
        await board.type("expiry", "2h")
        await board.type("reason", "long prompts")
        await board.apply()
        await board.closed()
        wish = {"prefill_units": 72, "expires_s": 7200.0, "reason": "long prompts"}
        assert board.person.deeds == [("set_partition", wish)]
        assert board.notices == ["Override: split 72+60 for 2.0 h, with the next step."]


async def test_an_override_without_an_end_and_without_a_split() -> None:
    async with dashboard() as board:
        await board.override()
        board.app.screen.query_one("#off", Checkbox).value = True
        await board.type("expiry", "never")
        await board.sees("merged steps, no split")
        assert board.app.screen.query_one("#units", Input).disabled
        await board.apply()
        await board.closed()
        assert board.person.deeds == [("set_partition", {"mode": "off", "reason": ""})]
        assert board.notices == ["Override: merged steps, with the next step."]


async def test_enter_in_a_field_leads_to_the_button_and_changes_nothing_yet() -> None:
    async with dashboard() as board:
        await board.override()
        for field in ("units", "expiry", "reason"):
            board.app.screen.query_one(f"#{field}", Input).focus()
            await board.press("enter")
            assert board.focused == "apply"
            assert board.person.deeds == []
        await board.press("enter")
        await board.closed()
        assert len(board.person.deeds) == 1


async def test_only_digits_can_be_typed_as_units() -> None:
    async with dashboard() as board:
        await board.override()
        units = board.app.screen.query_one("#units", Input)
        units.value = ""
        units.focus()
        await board.press(*"x7.2e")
        assert units.value == "72"


async def test_an_impossible_split_is_refused_in_the_daemons_words() -> None:
    async with dashboard() as board:
        await board.override()
        await board.type("units", "0")
        await board.sees("0 of 132 SMs for prefill leaves one lane without any.")
        await board.sees("12+120, 16+116")
        await board.apply()
        await board.told("impossible_split 0 of 132 SMs for prefill leaves one lane without any.")
        assert isinstance(board.dialog, OverrideDialog)
        assert not board.app.screen.query_one("#apply", Button).disabled
        await board.type("units", "8")
        await board.apply()
        await board.closed()


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [("units", "", "How many units for prefill?"), ("expiry", "soon", "'soon' is no duration.")],
)
async def test_what_cannot_be_meant_is_said_before_anybody_is_asked(
    field: str, text: str, words: str
) -> None:
    async with dashboard() as board:
        await board.override()
        num_before = len(board.person.calls)
        await board.type(field, text)
        await board.sees(words)
        await board.apply()
        await board.told(words)
        assert isinstance(board.dialog, OverrideDialog)
        assert len(board.person.calls) == num_before


async def test_a_device_that_cannot_be_divided_has_no_dialog() -> None:
    async with dashboard() as board:
        board.person.document["possible"] = []
        await board.press("o")
        await board.told("nothing_to_divide")
        assert board.dialog is None


# ---- service levels ----------------------------------------------------------------------------


async def test_targets_are_tried_on_the_requests_at_hand() -> None:
    rows = [finished(seq, ttft_ms=100.0 * seq) for seq in (4, 3, 2, 1)]
    async with dashboard(seen(state(), rows)) as board:
        await board.slo()
        await board.sees("4 of 4 finished requests at hand, of the last 60 s, would have met all")
        await board.type("ttft_ms", "250")
        await board.sees("2 of 4 finished requests at hand")
        await board.type("ttft_ms", "fast")
        await board.sees("TTFT ms: 'fast' is no number above 0.")
        await board.apply()
        await board.told("is no number above 0")
        assert board.dialog is not None
        assert board.person.calls == []


async def test_only_changed_targets_are_sent() -> None:
    async with dashboard() as board:
        await board.slo()
        await board.type("ttft_ms", "300")
        await board.type("window_s", "30")
        await board.type("reason", "evening peak")
        await board.apply()
        await board.closed()
        wish = {"ttft_ms": 300.0, "window_s": 30.0, "reason": "evening peak"}
        assert board.person.deeds == [("set_slo", wish)]
        assert board.notices == ["Targets: TTFT 300 ms, TPOT 50 ms, from now on."]


async def test_targets_of_another_class() -> None:
    mine = {"ttft_ms": 300.0, "ttft_ms_per_1k_tokens": 0.0, "tpot_ms": 0.0, "itl_ms": 40.0}
    unknown = {"p50": None, "p90": None, "p99": None}
    none: dict[str, Any] = {"requests": 0, "attainment": None, "goodput_rps": 0.0}
    none |= {"ttft_ms": unknown, "tpot_ms": unknown, "itl_ms": unknown}
    classes = {"default": none | {"targets": mine}, "chat": none | {"targets": mine}}
    rows = [finished(1, service_class="chat", ttft_ms=250.0, tpot_ms=20.0, itl_ms=50.0), finished(2)]
    async with dashboard(seen(state({"slo.classes": classes}), rows)) as board:
        await board.slo()
        await board.type("service_class", "chap")
        await board.sees("There is no class 'chap'; there are default, chat.")
        await board.type("service_class", "chat")
        await board.sees("0 of 1 finished requests at hand, of the last 60 s, would have met all")
        await board.type("itl_ms", "60")
        await board.sees("1 of 1 finished requests at hand")
        await board.type("ttft_ms", "0")
        await board.apply()
        await board.closed()
        wish = {"ttft_ms": 0.0, "itl_ms": 60.0, "service_class": "chat", "reason": ""}
        assert board.person.deeds == [("set_slo", wish)]
        assert board.notices == ["Targets of chat: ITL 60 ms, from now on."]


async def test_unchanged_targets_are_not_sent() -> None:
    async with dashboard() as board:
        await board.slo()
        await board.apply()
        await board.told("Nothing is changed.")
        assert board.dialog is not None
        assert board.person.calls == []


# ---- one request -------------------------------------------------------------------------------


async def test_cancelling_asks_and_then_cancels_that_request() -> None:
    async with dashboard() as board:
        await board.opens(CancelDialog, "2", "down", "c")
        assert "1.0k prompt tokens, 100 of output" in board.text
        await board.apply()
        await board.closed()
        assert board.person.deeds == [("cancel_request", {"request_id": "req-0003"})]
        assert board.notices == ["Request req-0003 is cancelled."]


async def test_the_request_asked_about_is_cancelled_though_the_table_has_moved_on() -> None:
    async with dashboard() as board:
        await board.opens(CancelDialog, "2", "c")
        await board.say(seen(state(), ROWS[1:]))
        await board.apply()
        await board.closed()
        assert board.person.deeds == [("cancel_request", {"request_id": "req-0004"})]


async def test_a_finished_request_cannot_be_cancelled() -> None:
    async with dashboard() as board:
        await board.press("2", "ctrl+end", "c")
        await board.told("Choose a request that lives.")
        assert board.dialog is None


async def test_a_living_request_is_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semipd_top.screen.dialogs.inspect.REFRESH_S", 0.02)
    async with dashboard() as board:
        board.person.records["req-0004"] = [ROWS[0] | {"events": [event("arrived")]}]
        await board.opens(InspectDialog, "2", "enter")
        await board.sees("at most 400 of output")
        assert "req-0004  decoding" in board.text
        ended = finished(4) | {"events": [event("arrived"), event("finished")]}
        board.person.records["req-0004"] = [ended]
        await board.sees("stop after 100 tokens, TPOT 42.0 ms")
        num_asked = len(board.person.calls)
        for _ in range(5):
            await board.pilot.pause(0.03)
        assert len(board.person.calls) == num_asked, "it will not change any more"


async def test_all_choices_of_a_request_are_shown() -> None:
    async with dashboard() as board:
        choice = ROWS[0] | {"events": []}
        board.person.records["req-0004"] = [choice, choice | {"seq": 5, "output_tokens": 77}]
        await board.opens(InspectDialog, "2", "enter")
        await board.sees("output 77 of at most 400")
        assert "output 100 of at most 400" in board.text


# ---- errors, and who is in a hurry -------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [(OverrideDialog, "set_partition"), (SloDialog, "set_slo"), (CancelDialog, "cancel_request")],
)
async def test_an_operators_error_is_shown_and_the_dialog_stays(kind: type[Dialog], method: str) -> None:
    async with dashboard() as board:
        await board.opens(kind, *OPENERS[kind])
        if kind is SloDialog:
            await board.type("ttft_ms", "300")
        board.person.refusals[method] = SILENT
        await board.apply()
        await board.told("engine_silent The engine has not answered within 5 s. Look at its log.")
        assert isinstance(board.dialog, kind)
        del board.person.refusals[method]
        await board.apply()
        await board.closed()


@pytest.mark.parametrize(("key", "method"), [("o", "partition"), ("a", "clear_partition")])
async def test_an_error_before_there_is_a_dialog_is_a_notice(key: str, method: str) -> None:
    async with dashboard() as board:
        board.person.refusals[method] = SILENT
        await board.press(key)
        await board.told("engine_silent")
        assert board.dialog is None


async def test_an_error_of_a_preview_stands_in_the_dialog() -> None:
    async with dashboard() as board:
        board.person.refusals["set_partition"] = SILENT
        await board.opens(OverrideDialog, "o")
        await board.sees("The engine has not answered within 5 s.")


async def test_an_error_of_an_inspection_stands_in_the_dialog() -> None:
    async with dashboard() as board:
        board.person.refusals["requests"] = SILENT
        await board.opens(InspectDialog, "2", "enter")
        await board.sees("✘ The engine has not answered within 5 s.")


async def test_a_deed_under_way_is_done_once_and_closing_meanwhile_is_safe() -> None:
    async with dashboard() as board:
        await board.override()
        board.person.gate = asyncio.Event()
        button = board.app.screen.query_one("#apply", Button)
        button.press()
        await eventually(lambda: len(board.person.deeds) == 1, "the deed has begun")
        button.press()
        await board.press("escape")
        assert board.dialog is None, "nobody has to wait for it"
        board.person.gate.set()
        await board.told("Override: split 68+64")
        await board.press("2")
        assert board.view == "requests", "the screen below is still there"
        assert len(board.person.deeds) == 1


@pytest.mark.parametrize(("kind", "worker"), [(OverrideDialog, "_preview"), (InspectDialog, "_ask")])
async def test_a_question_that_outlives_its_dialog_is_dropped(kind: type[Dialog], worker: str) -> None:
    """A dialog's fields go before its workers are cancelled."""
    async with dashboard() as board:
        dialog = await board.opens(kind, *OPENERS[kind])
        await board.press("escape")
        await board.closed()
        await getattr(kind, worker).__wrapped__(dialog)


# ---- where nothing may be changed --------------------------------------------------------------

ACTS = ("o", "plus", "minus", "a", "s", "c")


async def no_act_is_possible(board: Board, words: str) -> None:
    await board.press("2")
    for act in ACTS:
        board.app.clear_notifications()
        await board.press(act)
        await eventually(lambda: len(board.notices) == 1, act)
        assert words in board.notices[-1]
    await board.press(*ACTS)
    await eventually(lambda: len(board.notices) == 1, "refusals do not pile up")
    assert board.dialog is None
    assert board.person.calls == []


async def test_read_only_refuses_acts_and_says_why() -> None:
    async with dashboard(read_only=True) as board:
        assert "read-only" in board.text
        await no_act_is_possible(board, "semipd-top was started with --read-only.")


async def test_a_recording_refuses_acts_and_says_why() -> None:
    async with dashboard(make=ScriptedPlayback) as board:
        await no_act_is_possible(board, "this is a recording")


async def test_without_a_connection_acts_are_refused() -> None:
    async with dashboard() as board:
        board.source.connected = False
        await no_act_is_possible(board, "There is no connection to a daemon.")
        await board.press("enter")
        assert "There is no connection" in board.notices[-1]


async def test_read_only_allows_a_look_at_a_request() -> None:
    async with dashboard(read_only=True) as board:
        board.person.records["req-0004"] = [ROWS[0] | {"events": []}]
        await board.opens(InspectDialog, "2", "enter")
        await board.sees("req-0004  decoding")
