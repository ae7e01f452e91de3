"""First contact without a GPU: order, time limits, what is left of a run that is cut short."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_contact
import pytest
from contactlib import engine
from contactlib.plan import PLAN, TOTAL_S, parts
from contactlib.small import LARGE
from contactlib.verdicts import NOT_MEASURED, page
from gpu_contact import VirtualClock, contact
from gpulib import opening
from gpulib.parts import Part, Results

from semipd.devices.fake import FakeDevice
from semipd.devices.sim.gpus import GPUS
from semipd.devices.sim.profile import load_profile

LARGEST_CALL_S = 480.0
NAMES = ["environment", "compile", "facts", "kernels", "parity", "engine"]
PROFILE = {"curves": {"gemm_flops": [[16, 1e14], [132, 7e14]]}}
ENGINE = {
    "decode_steps": [{"ms": 8.9, "share of copy": 0.86}],
    "latency": [
        {"engine": "decode alone", "itl_p50_ms": 6.0, "itl_p99_ms": 7.0},
        {"engine": "semipd 84+48", "itl_p50_ms": 9.0, "itl_p99_ms": 10.0},
        {"engine": "chunked 512", "itl_p99_ms": 40.0},
        {"engine": "chunked 1024", "itl_p99_ms": 50.0},
    ],
    "goodput": [
        {"engine": "semipd predictive", "rate": 8.0, "goodput_per_s": 6.0},
        {"engine": "chunked 1024", "rate": 8.0, "goodput_per_s": 3.0},
        {"engine": "chunked 512", "rate": 8.0, "goodput_per_s": 4.0},
    ],
    "state": {"switches": {"decode": {"count": 3, "mean_us": 12.3}}},
    "constants": {"profile": PROFILE},
}


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "contact.json").read_text())["parts"]
    return found


def test_the_dry_run_keeps_to_the_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_contact.main([str(tmp_path), "--dry-run"]) == 0
    assert list(read(tmp_path)) == NAMES
    assert sum(planned.limit_s for planned in PLAN) <= TOTAL_S < LARGEST_CALL_S
    assert all(planned.planned_s <= planned.limit_s for planned in PLAN)
    seconds = sum(planned.planned_s for planned in PLAN)
    assert f"{seconds:g} s by the virtual clock" in capsys.readouterr().out


@pytest.mark.parametrize("slow", NAMES)
def test_a_part_that_overruns_takes_nothing_from_the_others(slow: str, tmp_path: Path) -> None:
    clock = VirtualClock({slow: 10_000.0})
    contact(tmp_path, clock.pass_part, clock)
    failed = {name for name, result in read(tmp_path).items() if "error" in result}
    assert failed == {slow}
    assert clock.now_s <= TOTAL_S


def test_if_all_overrun_the_call_still_ends_in_time(tmp_path: Path) -> None:
    clock = VirtualClock(dict.fromkeys(NAMES, 10_000.0))
    contact(tmp_path, clock.pass_part, clock)
    assert [result["took_s"] for result in read(tmp_path).values()] == [p.limit_s for p in PLAN]
    assert clock.now_s <= TOTAL_S


def test_results_are_whole_whenever_the_run_is_cut(tmp_path: Path) -> None:
    clock, begun = VirtualClock(), list[str]()

    def run(part: Part, out: Path, limit_s: float) -> dict[str, Any]:
        if begun:  # what a cut here would leave
            assert list(read(tmp_path)) == begun
            assert (tmp_path / "targets.md").exists()
        begun.append(part.name)
        return ENGINE if part.name == "engine" else clock.pass_part(part, out, limit_s)

    contact(tmp_path, run, clock)
    assert begun == NAMES
    assert load_profile(GPUS["h200"], tmp_path / "profile.json").curves["gemm_flops"][0] == (16, 1e14)
    assert "| 0.25 (10 / 40) |" in (tmp_path / "targets.md").read_text()


def test_targets_stand_beside_what_was_measured() -> None:
    verdict = {"beyond": 1, "tokens": 4608, "allowed": 4}
    text = page({"parity": {"bfloat16": verdict, "took_s": 40.0}, "engine": ENGINE})
    assert "bfloat16: 1 of 4608 beyond, 4 allowed" in text
    assert "0.86 (8.9 ms)" in text
    assert "| < 50 | 12.3 |" in text
    assert "goodput at 8 requests/s: predictive / best chunked | >= 1.5 | 1.50 (6 / 4)" in text
    assert page({}).count(NOT_MEASURED) == 7
    assert page({"engine": {"error": "stopped after 190 s"}}).count(NOT_MEASURED) == 7


def test_semipd_is_measured_before_what_it_is_compared_with() -> None:
    names = [name for name, _ in engine.engines(FakeDevice())]
    first_chunked = next(idx for idx, name in enumerate(names) if name.startswith("chunked"))
    assert first_chunked > 0
    assert all(name.startswith("semipd") for name in names[:first_chunked])
    assert all(name.startswith("chunked") for name in names[first_chunked:])


def test_each_row_of_the_engine_is_on_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "x.part", list[dict[str, Any]]()

    def rows(device: object) -> Iterator[dict[str, Any]]:
        for number in range(2):
            yield {"row": number}
            seen.append(json.loads(path.read_text()))

    monkeypatch.setattr(engine, "decode_steps", lambda timer, device: [])
    monkeypatch.setattr(engine, "constants", lambda timer, device, results: {})
    monkeypatch.setattr(engine, "latency_rows", rows)
    monkeypatch.setattr(engine, "goodput_rows", rows)
    engine.run_sections(Results(path), FakeDevice())
    assert [len(state["latency"]) for state in seen] == [1, 2, 2, 2]
    assert [len(state.get("goodput", [])) for state in seen] == [0, 0, 1, 2]
    assert "constants" not in seen[1]
    assert "constants" in seen[2]


def test_every_rate_meets_the_same_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    served = list[tuple[str, float]]()

    def serve(device: object, settings: Any, rate: float) -> dict[str, Any]:
        served.append((settings.scheduler, rate))
        return {}

    monkeypatch.setattr(engine, "serve", serve)
    rows = list(engine.goodput_rows(FakeDevice()))
    assert [row["engine"] for row in rows[::3]] == ["semipd predictive", "chunked 1024", "chunked 512"]
    assert [rate for _, rate in served] == [*engine.RATES] * 3
    assert [scheduler for scheduler, _ in served] == ["semipd"] * 3 + ["chunked"] * 6


def test_a_serving_run_is_judged_by_its_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WINDOW_S", 0.3)
    row = engine.serve(FakeDevice(), opening.changed(LARGE, {"device": "fake"}), 20.0)
    assert row["requests"] > 0
    assert 0 <= row["attainment"] <= 1


def test_how_rates_grow_with_sms() -> None:
    assert engine.exponent([(sms, 3.0 * sms**0.85) for sms in (16, 48, 132)]) == 0.85
    assert engine.exponent([(16, 1.0)]) is None


def test_parts_are_commands_that_exist(tmp_path: Path) -> None:
    assert [part.name for part in parts(tmp_path)] == NAMES
    assert {part.name for part in parts(tmp_path) if "--part" in part.command} == gpu_contact.BODIES.keys()
    assert all(Path(part.command[1]).exists() for part in parts(tmp_path))


def test_a_part_can_still_choose_torchs_environment() -> None:
    scripts = Path(gpu_contact.__file__).parent
    code = "import sys, gpu_contact; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=scripts, timeout=100, check=True)
