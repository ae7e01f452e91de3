"""semipd-top in a real terminal, beside a real daemon on a simulated GPU: what an operator sees and does."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from support.eventually import eventually_now
from support.sim_daemon import CPU, SimDaemon, load
from support.terminal import TMUX, Cell, Terminal

from semipd.client import Client

pytestmark = pytest.mark.skipif(TMUX is None, reason="needs tmux (Debian: apt install tmux)")

RESTART_S = 3
"""Between an engine's death and the next one: long enough for a look at the screen."""

SPLIT = re.compile(r"^prefill +(\d+) █+▒+ (\d+) +decode", re.MULTILINE)
"""Both lanes at work on units of their own."""

TIGHT_TPOT_MS = 7.0
"""What merged steps of 256 tokens exceed and a divided device can keep, under LONG_PROMPTS."""

LONG_PROMPTS = (12, 1500)
"""Streams, and tokens of each one's prompt."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[SimDaemon]:
    started = SimDaemon(tmp_path, {"supervision.backoff_s": RESTART_S})
    yield started
    started.stop()


@contextmanager
def top(daemon: SimDaemon, columns: int = 80, rows: int = 24, **options: object) -> Iterator[Terminal]:
    command = [sys.executable, "-m", "semipd_top.cli", "--socket", str(daemon.socket_path)]
    command += ["--interval", "0.25"]
    with Terminal(command, columns, rows, **options) as terminal:  # type: ignore[arg-type]
        yield terminal


def override_for(terminal: Terminal, key: str, expiry: str, reason: str) -> str:
    """Through the dialog that this key opens; what it has predicted."""
    terminal.send_keys(key)
    terminal.wait_for(r"granted \d+\+\d+")
    terminal.move_focus("BTab", "reason")
    terminal.write(reason)
    terminal.move_focus("BTab", "ends after")
    terminal.send_keys("C-u")
    # Textual handles it later than letters, which it would delete
    terminal.wait_for("ends after +never")
    terminal.write(expiry)
    terminal.wait_for(rf"ends after +{expiry} .*\n.*reason +{reason}")
    terminal.move_focus("Enter", "Keep as it is")
    screen = terminal.wait_for("this +TTFT")
    terminal.send_keys("Enter")
    return screen


def test_the_split_is_watched_and_overridden(daemon: SimDaemon) -> None:
    with (
        load(daemon.socket_path, *LONG_PROMPTS, max_tokens=150),
        daemon.client() as client,
        top(daemon) as terminal,
    ):
        screen = terminal.wait_for("● LIVE")
        assert "process ✔  loop ✔  progress ✔" in screen
        terminal.wait_for("mode auto, policy predictive")
        terminal.wait_for("now  merged steps")
        client.set_slo(tpot_ms=TIGHT_TPOT_MS, window_s=10)
        terminal.wait_for(SPLIT.search)

        preview = override_for(terminal, "+", "5s", "a look")
        [asked, granted] = re.findall(r"(?:prefill SMs +|granted )(\d+)", preview)
        assert asked == granted
        terminal.wait_for(r"mode fixed for [1-5] s, by .*: a look")
        assert re.search(rf"^prefill +{granted} ", terminal.screen(), re.MULTILINE)
        terminal.wait_for("mode auto, policy")

        override_for(terminal, "o", "10m", "for long")
        terminal.wait_for(r"mode fixed for 9:\d\d, by .*: for long")
        terminal.send_keys("a")
        terminal.wait_for("mode auto, policy")
        assert client.partition()["mode"] == "auto"

        terminal.send_keys("3")
        terminal.wait_for(r"slo changed +TTFT 500 ms, TPOT 7 ms")
        terminal.send_keys("/")
        terminal.wait_for("words that must all occur")
        terminal.write("partition_changed")
        told = terminal.wait_for("4 events of .*matching")
        changes = re.findall(r"partition changed +(.*)", told)
        wanted = ["auto, by ", "fixed .* 10 min, by ", "auto, by expiry", rf"fixed {granted}.* 5\.0 s, by "]
        assert all(map(re.match, wanted, changes)), changes


def test_a_paused_picture_stands_still(daemon: SimDaemon) -> None:
    with load(daemon.socket_path, 4, 64, max_tokens=64) as made, top(daemon) as terminal:
        terminal.wait_for("done [1-9]")
        terminal.send_keys("p")
        still = body(terminal.wait_for("PAUSED"))
        done = made.num_finished
        eventually_now(lambda: made.num_finished > done + 10, "requests go on behind a paused picture")
        assert body(terminal.screen()) == still
        terminal.send_keys("p")
        terminal.wait_for(lambda screen: "● LIVE" in screen and body(screen) != still)


def body(screen: str) -> list[str]:
    """Without the header and the key hints."""
    return screen.splitlines()[2:-1]


def test_a_request_is_found_inspected_and_cancelled(daemon: SimDaemon) -> None:
    held = {"max_tokens": 8000, "request_id": "held-one"}
    with (
        load(daemon.socket_path, 3, 64, max_tokens=64),
        load(daemon.socket_path, 1, 40, **held) as of_held,
        daemon.client() as client,
        top(daemon) as terminal,
    ):
        terminal.send_keys("2")
        terminal.wait_for("held-one +decoding")
        terminal.wait_for("live first, newest first")
        terminal.send_keys(*">>>>>>")
        terminal.wait_for("by output")
        terminal.wait_for("output▼")
        # soon it has generated more than any other
        terminal.wait_for(lambda screen: first_row(screen).startswith("held-one"))
        terminal.send_keys("/")
        terminal.write("held")
        terminal.wait_for("1 of .*matching 'held'")
        terminal.move_focus("Enter", "held-one")
        terminal.send_keys("Enter")
        terminal.wait_for("first token +the engine's first token")
        terminal.send_keys("Escape")
        terminal.wait_for(lambda screen: "first token" not in screen)

        terminal.send_keys("c")
        terminal.wait_for("Cancel this request")
        terminal.send_keys("Enter")
        terminal.wait_for(lambda screen: "Cancel this request" not in screen)
        assert state_of(client) == "decoding", "Enter alone lets it run"

        terminal.send_keys("c")
        terminal.wait_for("Cancel this request")
        terminal.move_focus("Tab", "Let it run")
        terminal.send_keys("Enter")
        terminal.wait_for("Request held-one is cancelled")
        eventually_now(lambda: of_held.failed == ["request_cancelled"], "its client is told")
        assert state_of(client) == "finished"


def first_row(screen: str) -> str:
    lines = screen.splitlines()
    heading = next(y for y, line in enumerate(lines) if line.split()[:2] == ["id", "state"])
    return lines[heading + 1].strip()


def state_of(client: Client) -> str:
    [record] = client.requests(request_id="held-one")
    return str(record["state"])


def test_an_engine_dies_and_requests_go_on(daemon: SimDaemon) -> None:
    with load(daemon.socket_path, 4, 64, max_tokens=400) as made, top(daemon) as terminal:
        terminal.wait_for("● LIVE")
        made.grows("tokens come")
        os.kill(daemon.engine_pid, signal.SIGKILL)
        terminal.wait_for(r"RESTARTING[^✔]*The engine is being replaced, attempt 1")
        terminal.wait_for("● LIVE")
        made.grows("tokens come from the new engine")
        terminal.send_keys("3")
        terminal.wait_for("engine died +The engine ended on signal SIGKILL")
        terminal.wait_for("engine restarted")
        assert made.failed == []


@pytest.mark.soak  # the same on the simulated device is cheaper
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be divided")
def test_the_cpu_device_is_watched_overridden_and_restarted(tmp_path: Path) -> None:
    daemon = SimDaemon(tmp_path, {"supervision.backoff_s": RESTART_S}, CPU)
    try:
        with load(daemon.socket_path, 3, 64, max_tokens=60) as made, top(daemon) as terminal:
            terminal.wait_for(r"demo  up .*\n.*cores")
            terminal.wait_for("now  (merged steps|both lanes work|no prompt to compute)")
            override_for(terminal, "o", "5s", "a look")
            terminal.wait_for(r"mode fixed for [1-5] s, by .*: a look")
            terminal.wait_for("mode auto, policy")
            os.kill(daemon.engine_pid, signal.SIGKILL)
            terminal.wait_for(r"RESTARTING[^✔]*The engine is being replaced, attempt 1")
            terminal.wait_for("● LIVE")
            made.grows("tokens come from the new engine")
            assert made.failed == []
    finally:
        daemon.stop()


def test_a_drain_and_its_undoing(daemon: SimDaemon) -> None:
    with (
        load(daemon.socket_path, 2, 64, max_tokens=2000) as made,
        daemon.client() as client,
        top(daemon) as terminal,
    ):
        made.grows("tokens come")
        client.drain(limit_s=600, reason="new weights")
        terminal.wait_for(r"▼ DRAINING\s+New requests are refused; 2 to finish .*, (9:\d\d|10:00) left")
        client.drain(cancel=True)
        terminal.wait_for("● LIVE")
        made.grows("tokens come")


def test_a_daemon_stops_and_comes_back(daemon: SimDaemon) -> None:
    with top(daemon) as terminal:
        terminal.wait_for("● LIVE")
        daemon.stop()
        terminal.wait_for(r"✘ DISCONNECTED\s+Next try in \d s")
        daemon.start()
        terminal.wait_for("● LIVE")

        os.kill(daemon.pid, signal.SIGSTOP)
        terminal.wait_for(r"◷ STALE\s+No news for \d+(\.\d)? s: what you see is old")
        os.kill(daemon.pid, signal.SIGCONT)
        terminal.wait_for("● LIVE")


def test_quitting_restores_the_terminal(daemon: SimDaemon) -> None:
    with top(daemon) as terminal:
        terminal.wait_for("● LIVE")
        in_use = [terminal.variable(name) for name in ("alternate_on", "cursor_flag", "mouse_any_flag")]
        assert in_use == ["1", "0", "1"]
        terminal.send_keys("q")
        screen = terminal.wait_for("exit code")
        assert "exit code 0" in screen
        assert screen.startswith("before the program")
        left = [terminal.variable(name) for name in ("alternate_on", "cursor_flag", "mouse_any_flag")]
        assert left == ["0", "1", "0"]


def test_a_window_resized_to_the_same_size_is_drawn_again() -> None:
    """One that shrinks and grows while the program is busy is seen only at its last size, which is the one
    before; what it showed is lost, here by a sequence that clears the screen."""
    whole = r"\[1 overview\][^$]*q Quit"
    with Terminal([sys.executable, "-m", "semipd_top.cli", "--demo"]) as terminal:
        terminal.wait_for(whole)
        Path(terminal.variable("pane_tty")).write_text("\x1b[2J")
        terminal.wait_for(lambda screen: "q Quit" not in screen)
        os.kill(terminal.program_pid(), signal.SIGWINCH)
        terminal.wait_for(whole)


@pytest.mark.soak  # many redraws; what once went wrong here is the test above
def test_any_size_of_window(daemon: SimDaemon) -> None:
    with load(daemon.socket_path, 4, 64, max_tokens=64), top(daemon) as terminal:
        terminal.wait_for("● LIVE")
        for view in "123":
            terminal.send_keys(view)
            for columns, rows in ((200, 50), (30, 8), (5, 2), (1, 1)):
                terminal.resize(columns, rows)
                terminal.wait_for(partial(lambda rows, screen: len(screen.splitlines()) == rows, rows))
            terminal.resize(80, 24)
            terminal.wait_for("● LIVE")
        terminal.resize(200, 50)
        terminal.send_keys("1")
        terminal.wait_for(r"─ Events ─[^$]*LIVE|LIVE[^$]*─ Events ─")
        terminal.resize(30, 8)
        terminal.wait_for("● LIVE")


def test_the_mouse(daemon: SimDaemon) -> None:
    with top(daemon) as terminal:
        header = terminal.wait_for("● LIVE").splitlines()[0]
        for view in ("requests", "events", "overview"):
            terminal.click(header.index(view), 0)
            terminal.wait_for(rf"\[\d {view}\]")


@pytest.fixture
def divided(daemon: SimDaemon) -> Iterator[SimDaemon]:
    """Under load, by an operator's split, so that both lanes' bars are on the screen."""
    with load(daemon.socket_path, *LONG_PROMPTS, max_tokens=150), daemon.client() as client:
        client.set_partition(prefill_units=68)
        yield daemon


def bar_cells(terminal: Terminal) -> tuple[Cell, Cell]:
    """A cell of prefill's part of the bar, and one of decode's."""
    screen = terminal.wait_for(SPLIT.search)
    row = next(y for y, text in enumerate(screen.splitlines()) if SPLIT.match(text))
    cells = terminal.cells()[row]
    return next(c for c in cells if c.char == "█"), next(c for c in cells if c.char == "▒")


@pytest.mark.parametrize("term", ["screen", "xterm-16color"])
def test_sixteen_colours_tell_the_lanes_apart(divided: SimDaemon, term: str) -> None:
    with top(divided, term=term) as terminal:
        prefill, decode = bar_cells(terminal)
        assert prefill.colour != decode.colour
        assert re.fullmatch(r"[39][0-7]", prefill.colour), "one of the sixteen"
        assert re.fullmatch(r"[39][0-7]", decode.colour)
        assert_readable(terminal)


@pytest.mark.parametrize("term", ["screen", "tmux-256color"])
def test_without_colours_characters_tell_the_lanes_apart(divided: SimDaemon, term: str) -> None:
    with top(divided, term=term, env={"NO_COLOR": "1"}) as terminal:
        prefill, decode = bar_cells(terminal)
        assert prefill.char != decode.char
        assert prefill.colour != decode.colour, "two greys"
        used = {cell.colour for row in terminal.cells() for cell in row}
        assert used <= GREYS, used - GREYS
        assert_readable(terminal)


GREYS = {"39", "30", "37", "90", "97", "38;5;231"} | {f"38;5;{code}" for code in range(232, 256)}


def assert_readable(terminal: Terminal) -> None:
    """What is written is not of the colour that lies behind it; the backgrounds' codes are ten higher."""
    for row in terminal.cells():
        for cell in row:
            code, _, rest = cell.colour.partition(";")
            same = f"{int(code) + 10}" + (f";{rest}" if rest else "")
            hidden = cell.background == same and code != "39"
            assert not (cell.char.isalnum() and hidden), "".join(c.char for c in row)
