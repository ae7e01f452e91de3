"""The capacity planner without its simulations: what it refuses, whom it judges, what it says."""

import asyncio
import json
import random
import sys
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any

import pytest
from support.seeds import each_seed
from support.simulated import azure_file

from semipd.core.errors import SemipdError
from semipd.core.slo import NO_TARGETS, Targets
from semipd.plan import command, planning
from semipd.plan.answer import Answer, Carried, Fleet
from semipd.plan.question import Question, base_case, enough_requests, families, usable_rows, with_targets
from semipd.plan.text import answer_lines
from semipd.plan.work import Found, Judge, split_shares
from semipd.sim.cases import Case, Result
from semipd.sim.outcomes import ClassFigures, Outcome, figures
from semipd.sim.policies import parse_policy
from semipd.sim.workloads.traces import Row, Trace

MANY = [(idx * 0.1, 30 + idx % 900, 1 + idx % 60) for idx in range(300)]
SLO = Targets(500.0, tpot_ms=25.0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says on standard error; it must fail and print nothing else."""
    try:
        code = command.main(list(arguments))
    except SystemExit as end:
        code = int(str(end.code))
    out, err = capsys.readouterr()
    assert (code > 0, out) == (True, "")
    return err


def question(folder: Path, **changes: Any) -> Question:
    path = azure_file(folder, MANY)
    case = base_case(path, "", "llama-3-8b", ["h200"], "", 60.0)
    trace, num_too_long = usable_rows(case, 0.9)
    fields: dict[str, Any] = {
        "case": with_targets(case, trace, SLO),
        "trace": trace,
        "num_too_long": num_too_long,
        "gpus": ("h200",),
        "families": families(["predictive"], ["h200"], "deadline"),
        "rate": 40.0,
        "counts": range(1, 9),
        "seeds": (1, 2, 3),
        "wanted": 0.9,
    }
    return Question(**(fields | changes))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "h300"], ["unknown_device", "h200, h100, a100"]),
        (["--model", "llama-9"], ["unknown_model", "llama-3-8b", "qwen3-8b"]),
        (
            ["--model", "llama-3-70b"],
            ["out_of_memory", "141.1 GB of weights", "would need 2 of them", "70b-w8"],
        ),
        (["--policies", "magic"], ["unknown_policy", "predictive"]),
        (["--policies", "2*predictive"], ["unknown_policy", "--gpus"]),
        (["--policies", "1p1d"], ["unknown_policy", "--gpus"]),
        (["--policies", "fixed:63"], ["impossible_split", "64"]),
        (["--attainment", "99"], ["trace_too_short", "300 requests", "2000 or more", "20 may miss"]),
        (["--format", "zip"], ["unknown_option", "azure", "recorded"]),
        (["--slo", "500"], ["TTFT/TPOT"]),
        (["--slo", "500/0"], ["not within"]),
        (["--gpus", "4..2"], ["ends before it begins"]),
        (["--gpus", "0"], ["not within 1 to 256"]),
        (["--profile", "/nowhere"], ["invalid_profile", "/nowhere"]),
        (["--json", "/nowhere/x"], ["cannot_write", "/nowhere/x"]),
        (["--seed", "1"], ["unrecognized", "--seeds"]),
        (["--trace", "/nowhere"], ["trace_not_found", "/nowhere"]),
    ],
    ids=lambda value: "_".join(value) if value[0].startswith("--") else "",
)
def test_what_cannot_be_known_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: list[str]
) -> None:
    given = {
        "--trace": str(azure_file(tmp_path, MANY)),
        "--gpu": "h200",
        "--model": "llama-3-8b",
        "--slo": "500/25",
    }
    given |= {arguments[0]: arguments[1]}
    message = refused(capsys, *(word for pair in given.items() for word in pair))
    assert [word for word in says if word not in message] == [], message


def test_targets_come_from_somewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(azure_file(tmp_path, MANY))
    message = refused(capsys, "--trace", path, "--gpu", "h200", "--model", "llama-3-8b")
    assert "targets_missing" in message
    assert "--slo 500/25" in message
    assert "--gpu, --model" in refused(capsys, "--trace", path)


def test_a_picture_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = str(azure_file(tmp_path, MANY))
    arguments = ["--trace", path, "--gpu", "h200", "--model", "llama-3-8b", "--slo", "500/25"]
    message = refused(capsys, *arguments, "--png", str(tmp_path / "x.png"))
    assert "matplotlib_missing" in message
    assert "pip install matplotlib" in message


def test_too_long_sequences_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*MANY, (40.0, 8190, 3), (41.0, 8190, 2)]
    case = base_case(azure_file(tmp_path, rows), "", "llama-3-8b", ["h200"], "", 60.0)
    assert case.longest == 8192
    trace, too_long = usable_rows(case, 0.9)
    assert (len(trace.rows), too_long) == (301, 1)
    with pytest.raises(SemipdError, match="301 requests, and 1 more of over 8192 tokens"):
        usable_rows(case, 0.95)
    assert [enough_requests(wanted) for wanted in (0.5, 0.9, 0.99)] == [40, 200, 2000]


def test_families_are_what_the_names_stand_for() -> None:
    tuned, split, exact, other = families(
        ["chunked", "fixed", "fixed:64", "predictive+fcfs"], ["h200", "h100"], "deadline"
    )
    assert set(tuned.members) == {f"chunked:{tokens}+deadline" for tokens in (512, 1024, 2048, 4096)}
    assert split.members[0] == "fixed:64+deadline", "the middle narrows the search for the others"
    assert len(split.members) == 7
    assert (exact.members, other.members) == (("fixed:64+deadline",), ("predictive+fcfs",))


def test_targets_of_classes(tmp_path: Path) -> None:
    """Without --slo each class has the trace's; with it, those that have some; those without stay without."""
    case = base_case(azure_file(tmp_path, MANY), "", "llama-3-8b", ["h200"], "", 60.0)
    own = {"default": Targets(300.0), "batch": NO_TARGETS, "unused": Targets(1.0)}
    rows = tuple(Row(float(idx), 9, 9, (), "batch" if idx % 2 else "default") for idx in range(4))
    trace = Trace("made", rows, classes=own)
    found = {one.name: one.targets for one in with_targets(case, trace, None).classes}
    assert found == {"default": Targets(300.0), "batch": NO_TARGETS}
    told = with_targets(case, trace, SLO)
    assert {one.name: one.targets for one in told.classes} == {"default": SLO, "batch": NO_TARGETS}
    assert (told.ttft_ms, told.tpot_ms) == (500.0, 25.0)
    only_batch = Trace("made", rows[1:2], classes=own)
    assert [one.targets for one in with_targets(case, only_batch, SLO).classes] == [SLO]
    with pytest.raises(SemipdError, match="says nothing of targets"):
        with_targets(case, only_batch, None)


def test_the_worst_class_with_targets_counts(tmp_path: Path) -> None:
    def shares(**classes: tuple[int, float]) -> Any:
        whole = figures([Outcome(0)], 1.0, complete=True)
        rows = {name: ClassFigures(num, share, 0.0, {}, 0, {}) for name, (num, share) in classes.items()}
        return type(whole)(**{f: getattr(whole, f) for f in whole.__slots__} | {"by_class": rows})

    judge = Judge(0.9, ("chat", "code"), 200)
    assert judge.attainment(shares(chat=(1000, 0.95), code=(500, 0.91), batch=(900, 0.1))) == pytest.approx(
        0.91
    )
    assert judge.attainment(shares(chat=(1000, 0.95), code=(10, 0.0))) == pytest.approx(950 / 1010)
    assert judge.attainment(shares(chat=(100, 0.8), code=(100, 1.0))) == pytest.approx(0.9)
    assert judge.attainment(shares(batch=(900, 0.1))) == 1.0


def answer(folder: Path, **changes: Any) -> Answer:
    found = Answer(question(folder, **changes))
    times = {"p50": 80.0, "p99": 420.0}
    rates = (10.0, 11.0, 12.0)
    found.carried = [
        Carried("h200", "predictive+deadline", rates, rates, 10.5, times, times, {"68+64": 0.8, "0+132": 0.2})
    ]
    found.fleets = [
        Fleet("h200", "predictive+deadline", 4, 10.0, (0.95, 0.93, 0.92), True, 38.0, times, times),
        Fleet("h200", "predictive+deadline", 3, 13.3, (0.91, None, 0.9), False, 30.0, times, times),
    ]
    return found


def test_the_answer_says_what_it_is_made_of(tmp_path: Path) -> None:
    found = answer(tmp_path)
    text = "\n".join(answer_lines(found))
    said = (
        "Simulated, not measured: llama-3-8b, built-in profile, seeds 1 to 3, 60 s",
        "rates to 4%",
        "targets (TTFT/TPOT) 500/25 ms",
        "90 % within targets",
        "11 [8.52, 13.5]",
        "68+64 80%, 0+132 20%",
        "92.0%",
        "too few",
        "h200, predictive+deadline: 4 of them.",
        "Not all of it was simulated.",
    )
    assert [words for words in said if words not in text] == [], text
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (document["simulated"], document["complete"]) == (True, False)
    assert document["needed"] == [{"gpu": "h200", "policy": "predictive+deadline", "num_gpus": 4}]
    assert document["carries"][0]["rate"] == pytest.approx(
        {"mean": 11.0, "low": 8.5159, "high": 13.484}, abs=1e-3
    )
    found.is_complete = True
    assert "Not all" not in "\n".join(answer_lines(found))


def test_a_number_of_gpus_is_only_said_when_one_less_was_tried(tmp_path: Path) -> None:
    found = answer(tmp_path)
    found.fleets = found.fleets[:1]
    assert found.needed("h200", "predictive+deadline") is None
    assert "not found out" in "\n".join(answer_lines(found))
    found.question = question(tmp_path, counts=range(4, 9))
    assert found.needed("h200", "predictive+deadline") == 4


def test_one_seed_has_no_interval_and_none_that_keeps_targets_is_said(tmp_path: Path) -> None:
    found = answer(tmp_path, seeds=(1,), counts=range(1, 4))
    found.carried = [Carried("h200", "paper", (0.0,), (0.02,), None, {}, {}, {})]
    found.fleets = []
    text = "\n".join(answer_lines(found))
    assert "none keeps these targets" in text
    found.carried = [Carried("h200", "paper", (4.0,), (4.1,), 3.9, {}, {}, {})]
    found.fleets = [Fleet("h200", "paper", 3, 13.3, (None,), False, None, {}, {})]
    text = "\n".join(answer_lines(found))
    assert "3 are not enough" in text
    assert found.to_json()["carries"][0]["rate"] == {"mean": 4.0, "low": None, "high": None}


class AtOnce(Executor):
    """Does the work when it is given it."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@each_seed(range(40))
def test_the_least_number_of_gpus_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Against trying all numbers; what several carry is not so many times what one does."""
    chance = random.Random(seed)
    alone, rate, pooled = chance.uniform(1, 20), chance.uniform(1, 100), chance.uniform(0.5, 1.5)
    low = chance.randint(1, 12)
    counts = range(low, low + chance.randint(1, 12))
    tried: list[int] = []

    def keeps(num_gpus: int) -> bool:
        return rate / num_gpus <= alone * (pooled if num_gpus > 1 else 1.0)

    def carries(case: Case, members: tuple[str, ...], near_rate: float, judge: Judge) -> Found:
        return Found(members[0], alone, alone * 1.04, None)

    def simulated(case: Case, policy: str, at_rate: float, judge: Judge) -> Result:
        num_gpus = parse_policy(policy).num_gpus
        assert at_rate * num_gpus == pytest.approx(rate)
        tried.append(num_gpus)
        return Result(figures([], 1.0, complete=keeps(num_gpus)), 0.0, 0.0, 0, 0, 0, {})

    monkeypatch.setattr(planning, "carries", carries)
    monkeypatch.setattr(planning, "simulated", simulated)
    found = Answer(question(tmp_path, rate=rate, counts=counts, seeds=(1, 2)))
    asyncio.run(planning.Planner(found, AtOnce(), lambda _line: None).run())
    assert found.is_complete
    enough = [num_gpus for num_gpus in counts if keeps(num_gpus)]
    assert found.needed("h200", "predictive+deadline") == min(enough, default=None)
    assert set(tried) <= set(counts)
    assert [tried.count(num_gpus) for num_gpus in set(tried)] == [2] * len(set(tried)), "once with each seed"


def test_a_process_that_dies_is_an_answer(tmp_path: Path) -> None:
    class Broken(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
            raise BrokenExecutor

    with pytest.raises(SemipdError) as died:
        asyncio.run(planning.Planner(answer(tmp_path), Broken(), lambda _line: None).run())
    assert died.value.code == "simulation_died"


def test_splits_that_held_hardly_are_left_out() -> None:
    assert split_shares({"68+64": 30.0, "0+132": 69.5, "132+0": 0.5}) == {"0+132": 0.695, "68+64": 0.3}
    assert split_shares({}) == {}
