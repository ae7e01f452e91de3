"""Every panel at any size over any state: exactly the lines and cells asked for, and the facts in them."""

import random
from typing import Any

import pytest
from semipd_top.panels.device import device_panel
from semipd_top.panels.events import events_panel
from semipd_top.panels.kv import kv_panel
from semipd_top.panels.overview import WIDE, Panel, first_screen, overview
from semipd_top.panels.slo import judged_at, slo_panel
from semipd_top.panels.split import pending_split, split_panel
from semipd_top.panels.traffic import traffic_panel
from semipd_top.picture.picture import Monitor, Picture
from semipd_top.text.lines import Line, plain, width_of
from support.top_source import gone
from support.top_state import (
    CHANGE,
    GPU_STATS,
    HOLDER,
    NOW_S,
    event,
    finished,
    later,
    seen,
    state,
    state_without_engine,
)

PANELS = {
    "split": split_panel,
    "slo": slo_panel,
    "kv": kv_panel,
    "traffic": traffic_panel,
    "device": device_panel,
    "events": events_panel,
    "overview": overview,
}
SIZES = [(1, 1), (2, 2), (3, 1), (5, 3), (6, 9), (7, 2), (20, 5), (39, 8), (80, 21), (80, 6)]
SIZES += [(139, 17), (140, 10), (140, 17), (140, 18), (200, 47), (250, 80), (250, 1), (1, 80)]

FIXED = CHANGE | {
    "mode": "fixed",
    "actor": "ann (pid 4121)",
    "reason": "long prompts",
    "granted": [100, 32],
    "expires_at_s": NOW_S + 90,
}
HUGE: dict[str, Any] = {
    "kv.total_blocks": 10**12,
    "kv.used_blocks": 10**12,
    "kv.free_blocks": 0,
    "kv.cached_blocks": 0,
    "kv.reserved_blocks": 10**9,
    "kv.holders": [HOLDER | {"id": "漢" * 64, "blocks": 10**11, "tokens": 10**13}] * 8,
    "device.name": "漢字 device " * 20,
    "device.stats": GPU_STATS | {"gpu": GPU_STATS["gpu"] | {"throttled_by": ["power cap", "thermal"] * 5}},
    "requests.waiting": 10**9,
    "requests.background": 10**9,
    "requests.oldest_waiting_ms": 1e10,
    "requests.held": 12345,
    "requests.suspects": 12345,
    "throughput.prompt_tokens_per_s": 1e12,
    "throughput.output_tokens_per_s": 1e12,
    "slo.targets": {"ttft_ms": 1e9, "tpot_ms": 0.001, "percentile": 99.9, "window_s": 86400.0},
    "slo.ttft_ms": {"p50": 1e9, "p90": 1e9, "p99": 1e9},
    "slo.tpot_ms": {"p50": None, "p90": None, "p99": None},
    "refused": {f"code_{number}": number for number in range(30)},
    "partition.shared.reason": "a very long reason " * 40,
    "partition.prefill_duty": 1.0,
    "notes": ["a very long note " * 20] * 9,
    "preemptions": 10**9,
}
NOTHING: dict[str, Any] = {
    "kv.used_blocks": 0,
    "kv.free_blocks": 4000,
    "kv.cached_blocks": 0,
    "kv.reserved_blocks": 0,
    "kv.holders": [],
    "prefix": {"prompt_tokens": 0, "cached_tokens": 0},
    "requests.waiting": 0,
    "requests.background": None,
    "requests.oldest_waiting_ms": None,
    "requests.totals": {},
    "refused": {},
    "throughput": {"prompt_tokens_per_s": 0.0, "output_tokens_per_s": 0.0},
    "partition.decision": None,
    "partition.prediction.ttft_error": None,
    "partition.shared.reason": "",
    "lanes.prefill.steps_in_flight": 0,
    "lanes.decode.steps_in_flight": 0,
    "last_split_change": None,
    "device.memory": {},
    "device.stats": {},
}


def picture_of(*items: Any) -> Picture:
    monitor = Monitor(0.5)
    for item in items:
        monitor.take(item)
    return monitor.picture(NOW_S)


def run_of(first: Any, length: int, seed: int = 1) -> Picture:
    """A picture with a past: every way the units can be used, and times without an engine."""
    rng, current, items = random.Random(seed), first, []
    items.append(seen(first, events=[event("preempted"), event("arrived")]))
    for _ in range(length):
        ran = {}
        for name in ("prefill", "decode", "merged"):
            steps = current["partition"]["prediction"]["steps"][name]["steps"]
            ran[f"partition.prediction.steps.{name}.steps"] = steps + rng.choice((0, 0, 9))
        ran["partition.shared.split"] = rng.choice(([8, 124], [68, 64], [124, 8]))
        current = later(current, 0.5, ran)
        items.append(seen(current))
        if rng.random() < 0.1:
            items.append(seen(state_without_engine({"at_s": current["at_s"]})))
    return picture_of(*items, seen(later(current, 0.5)))


PICTURES = {
    "nothing yet": picture_of(),
    "nobody there": picture_of(gone()),
    "live": picture_of(seen(state())),
    "with a past": run_of(state(), 300),
    "no engine": picture_of(seen(state_without_engine())),
    "engine gone": picture_of(seen(state()), seen(state_without_engine({"state": "restarting"})), gone()),
    "huge": run_of(state(HUGE), 20),
    "nothing to do": picture_of(seen(state(NOTHING))),
    "fixed": picture_of(seen(state({"partition.mode": "fixed", "partition.change": FIXED}))),
    "off": picture_of(seen(state({"partition.mode": "off", "partition.change": CHANGE | {"mode": "off"}}))),
    "chunked": picture_of(seen(state({"scheduler": "chunked", "partition.mode": "off"}))),
    "no sensors": picture_of(seen(state({"device.stats": {"gpu": {"absent": "pynvml is missing"}}}))),
    "no stats": picture_of(seen(state({"device.stats": None, "device.memory": None}))),
    "undivided": picture_of(
        seen(state({"device.stats": {"partition": {"possible": False, "reason": "MIG", "notes": []}}}))
    ),
    "one unit": picture_of(seen(state({"device.num_units": 1, "partition.shared.split": [0, 1]}))),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("panel", PANELS)
def test_panels_have_exactly_the_size_asked_for(panel: str, name: str) -> None:
    for width, height in SIZES:
        lines = PANELS[panel](PICTURES[name], width, height)
        assert len(lines) == height, (width, height)
        assert {width_of(spans) for spans in lines} == {width}, (width, height)


@pytest.mark.parametrize("seed", range(6))
def test_any_size(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(25):
        width, height = rng.randrange(1, 251), rng.randrange(1, 81)
        panel, picture = rng.choice(list(PANELS.values())), rng.choice(list(PICTURES.values()))
        lines = panel(picture, width, height)
        assert (len(lines), {width_of(spans) for spans in lines}) == (height, {width})


@pytest.mark.parametrize("size", [(80, 24), (200, 50), (WIDE, 30)])
def test_the_first_screen_is_the_header_and_the_panels(size: tuple[int, int]) -> None:
    lines = first_screen(PICTURES["live"], *size)
    assert [width_of(spans) for spans in lines] == [size[0]] * size[1]
    shown = "\n".join(map(plain, lines))
    assert all(title in shown for title in ("Split", "SLO", "KV pool", "Traffic", "Device", "● LIVE"))


def show(panel: Panel, changes: dict[str, Any] | None = None, size: tuple[int, int] = (90, 12)) -> str:
    return "\n".join(map(plain, panel(picture_of(seen(state(changes))), *size)))


def cells_of(lines: list[Line], mark: str, style: str = "") -> int:
    return sum(span.text.count(mark) for spans in lines for span in spans if not style or span.style == style)


def test_split_mode_reason_and_prediction() -> None:
    shown = show(split_panel)
    assert "mode auto, policy predictive" in shown
    assert "prefill  68 " in shown
    assert " 64  decode" in shown
    assert "64 SMs keep TPOT at 42.1 of 50 ms" in shown
    assert "TTFT 310 ms, TPOT 42.1 ms  (lately off by 8.0 % and 3.0 %)" in shown
    assert "132 SMs" in shown


def test_split_bar_is_in_proportion() -> None:
    bar = split_panel(PICTURES["live"], 132 + len("prefill  68 ") + len(" 64  decode"), 8)[2]
    assert (cells_of([bar], "█"), cells_of([bar], "▒")) == (68, 64)


def test_an_override_shows_its_time_left_and_what_will_change_hands() -> None:
    changes = {"partition.mode": "fixed", "partition.change": FIXED}
    shown = show(split_panel, changes)
    assert "mode fixed for 1:30, by ann (pid 4121): long prompts" in shown
    assert "100+32 follows when both lanes have work" in shown
    assert "╱" in shown
    assert pending_split(state(changes)["partition"]) == (100, 32)
    done = FIXED | {"effective_at_s": NOW_S, "expires_at_s": None}
    shown = show(split_panel, changes | {"partition.change": done})
    assert "mode fixed for ever" in shown
    assert "╱" not in shown
    assert pending_split(state({"partition.change": done})["partition"]) is None


@pytest.mark.parametrize(
    ("prefill", "decode", "words"),
    [
        (1, 1, "both lanes work, each on its own units"),
        (0, 1, "no prompt to compute: decode has all 132 SMs"),
        (1, 0, "nothing to decode: prefill has all 132 SMs"),
        (0, 0, "idle"),
    ],
)
def test_how_the_units_are_used_now(prefill: int, decode: int, words: str) -> None:
    changes = {"lanes.prefill.steps_in_flight": prefill, "lanes.decode.steps_in_flight": decode}
    assert f"now  {words}" in show(split_panel, changes)


def test_a_scheduler_of_one_lane_has_nothing_to_divide() -> None:
    assert "scheduler chunked: one lane, nothing to divide" in show(split_panel, {"scheduler": "chunked"})


def test_history_of_the_split_has_the_newest_at_the_right() -> None:
    current, items = state({"partition.shared.split": [33, 99]}), []
    for units in (33, 33, 99):
        current = later(current, 0.5, {"partition.shared.split": [units, 132 - units]})
        items.append(seen(current))
    lines = split_panel(picture_of(*items), 80, 12)
    rows = [plain(spans)[-3:] for spans in lines[6:-1]]
    assert len(rows) == 5
    heights = [sum(row[x] != " " for row in rows) for x in range(3)]
    assert heights == [2, 2, 4], "a quarter, a quarter, three quarters of five rows"


def test_kv_cells_add_up_and_holders_are_named() -> None:
    lines = kv_panel(PICTURES["live"], 100, 12)
    shown = "\n".join(map(plain, lines))
    bar = lines[1]
    assert [cells_of([bar], mark) for mark in "█▒·╳"] == [30, 22, 47, 1]
    assert "used 30 %" in shown
    assert "free 1.9k" in shown
    assert "reusable 900" in shown
    assert "reserved 40" in shown
    assert "prefix hits 33 %, preemptions 3" in shown
    assert ("a" * 32) in shown
    assert "7.5 %  decoding" in shown


def test_the_largest_holder_is_named_in_one_line() -> None:
    assert "largest aaaaaaaaaaaa 300 blocks, decoding" in show(kv_panel, size=(44, 6))


def test_an_unknown_use_of_the_pool_is_a_gap() -> None:
    picture = picture_of(seen(state()), seen(state_without_engine()), seen(state()))
    line = next(plain(spans) for spans in kv_panel(picture, 60, 20) if plain(spans).startswith("used "))
    assert line.endswith("▂ ▂")


def test_slo_says_what_is_missed_at_which_percentile() -> None:
    lines = slo_panel(PICTURES["live"], 60, 8)
    shown = "\n".join(map(plain, lines))
    assert "p90 over 60 s" in shown
    assert "TTFT     120    380    640   ≤ 500 ✔ kept" in shown
    assert "96 % of 140 met all, goodput 2.2/s" in shown
    late = show(slo_panel, {"slo.ttft_ms.p90": 501.0}, (60, 8))
    assert "≤ 500 ✘ missed" in late


NO_TARGETS = {"ttft_ms": 0.0, "ttft_ms_per_1k_tokens": 0.0, "tpot_ms": 0.0, "itl_ms": 0.0}


def levels(requests: int, attainment: float | None, **targets: float) -> dict[str, Any]:
    values = {"p50": 100.0, "p90": 310.0, "p99": 900.0}
    facts: dict[str, Any] = {"requests": requests, "attainment": attainment, "goodput_rps": 1.0}
    facts |= {"targets": NO_TARGETS | targets}
    return facts | dict.fromkeys(("ttft_ms", "tpot_ms", "itl_ms"), values)


def test_slo_shows_classes_when_there_are_several() -> None:
    """A class `batch` that nobody uses is none; what has no target is not held against one."""
    idle = {"default": levels(140, 0.96, ttft_ms=500.0), "batch": levels(0, None)}
    assert "batch" not in show(slo_panel, {"slo.classes": idle}, (60, 8))
    classes = idle | {"batch": levels(12, 1.0), "chat": levels(9, 0.5, ttft_ms=300.0, itl_ms=400.0)}
    lines = slo_panel(picture_of(seen(state({"slo.classes": classes}))), 60, 9)
    shown = [plain(spans).rstrip() for spans in lines]
    assert shown[1:5] == [
        "p90, ms      met   of  TTFT  TPOT   ITL",
        "default     96 %  140   310   310   310",
        "batch      100 %   12   310   310   310",
        "chat        50 %    9   310   310   310",
    ]
    styles = [[span.style for span in spans if span.text.strip()] for spans in lines[2:5]]
    assert styles == [
        ["", "ok", "", "", "dim", "dim"],
        ["", "ok", "", "dim", "dim", "dim"],
        ["", "bad", "", "bad", "dim", ""],
    ]
    many = {f"c{idx}": levels(idx, 1.0) for idx in range(9)}
    assert "and 7 more classes" in show(slo_panel, {"slo.classes": many}, (60, 6))


def test_the_classes_targets_explain_what_is_late() -> None:
    rows = [
        finished(1, ttft_ms=900.0, queue_ms=100.0, prefill_ms=200.0),
        finished(2, ttft_ms=400.0, targets={**NO_TARGETS, "ttft_ms": 300.0, "ttft_ms_per_1k_tokens": 200.0}),
        finished(3, ttft_ms=9e5, targets=NO_TARGETS),
    ]
    classes = {"default": levels(2, 0.5), "chat": levels(1, 1.0)}
    lines = slo_panel(picture_of(seen(state({"slo.classes": classes}), rows)), 60, 9)
    assert any("1 late: queued 100 ms, prefill 200 ms" in plain(spans) for spans in lines)


def test_a_daemon_of_before_knows_no_classes() -> None:
    older = state()
    for name in ("classes", "itl_ms"):
        del older["slo"][name]
    for name in ("itl_ms", "itl_percentile", "ttft_ms_per_1k_tokens"):
        del older["slo"]["targets"][name]
    rows = [finished(1, ttft_ms=9000.0)]
    for name in ("itl_ms", "targets", "service_class"):
        del rows[0][name]  # type: ignore[misc]
    older["slo"]["ttft_ms"] = {"p50": 600.0, "p90": 700.0, "p99": 900.0}
    shown = "\n".join(map(plain, slo_panel(picture_of(seen(older, rows)), 60, 9)))
    assert "≤ 500 ✘ missed" in shown
    assert "1 late" in shown


def test_an_inter_token_target_has_a_row() -> None:
    shown = show(slo_panel, {"slo.targets.itl_ms": 60.0}, (60, 9))
    assert "ITL     40.0   61.0   95.0    ≤ 60 ✘ missed" in shown


@pytest.mark.parametrize(
    ("percentile", "name"), [(1, "p50"), (50, "p50"), (50.1, "p90"), (90, "p90"), (95, "p99"), (100, "p99")]
)
def test_the_percentile_that_is_judged(percentile: float, name: str) -> None:
    assert judged_at(percentile) == name


def test_traffic() -> None:
    shown = show(traffic_panel, {"requests.held": 2, "requests.suspects": 1})
    assert "prompt  5.1k tok/s" in shown
    assert "output   730 tok/s" in shown
    assert "waiting 4, the oldest for 0.4 s  held 2" in shown
    assert "prefilling 2  decoding 9  suspects 1" in shown
    assert "done 270  failed 4  refused 3  cancelled 11" in shown
    assert "refused overloaded 2" in shown


def test_the_device_tells_its_health_and_its_lanes() -> None:
    shown = "\n".join(map(plain, device_panel(run_of(state(), 3), 80, 10)))
    for fact in ("NVIDIA H100 80GB HBM3, 132 SMs, bfloat16", "70/80 GiB", "512/700 W", "1755 MHz", "61 °C"):
        assert fact in shown
    assert "prefill   40 %     20.0     20.0      3" in shown
    worker = {"workers": {"decode": {"state": "restarting"}}}
    assert "worker restarting" in show(device_panel, {"device.stats": worker})
    assert "no sensors: pynvml" in "\n".join(map(plain, device_panel(PICTURES["no sensors"], 80, 10)))
    assert "cannot be divided: MIG" in "\n".join(map(plain, device_panel(PICTURES["undivided"], 80, 10)))


def test_the_newest_events_come_first() -> None:
    events = [event("refused", {"code": f"number_{number}"}) for number in range(9)]
    lines = events_panel(picture_of(seen(state(), events=events)), 80, 4)
    assert [plain(spans).split()[-1] for spans in lines[1:]] == ["number_8", "number_7", "number_6"]
    assert "Nothing has happened" in plain(events_panel(PICTURES["live"], 80, 4)[1])


@pytest.mark.parametrize("panel", ["split", "kv", "device"])
def test_panels_without_an_engine_say_so(panel: str) -> None:
    shown = plain(PANELS[panel](PICTURES["no engine"], 80, 5)[1])
    assert "engine" in shown
