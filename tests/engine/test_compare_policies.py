"""The comparison of policies: intervals, members, capacities, tables, and the script as a whole."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from engine.test_simulator import script
from simlib import comparison, plan
from simlib.comparison import Comparison, Run, Tuned, capacities_of, tune, whole_runs
from simlib.plan import BASELINE, TUNING_SEED, Plan, family_of, forecast, jobs_of, order_of
from simlib.report import as_data, fill_in, write
from simlib.scenarios import SCENARIOS, Scenario, described
from simlib.tables import tables
from support.simulated import azure_file

from semipd.core.errors import SemipdError
from semipd.core.slo import Targets
from semipd.sim.cases import Case, Result
from semipd.sim.outcomes import ClassFigures, Figures
from semipd.sim.policies import parse_policy
from semipd.sim.statistics import Interval, geometric, interval, mean_ratios, ratios, t_quantile


def test_intervals_by_hand() -> None:
    """1, 2, 3: standard deviation 1, t of two degrees 4.303."""
    half = 4.303 / math.sqrt(3)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    assert interval([5.0]) == (5.0, -math.inf, math.inf)
    found = geometric([2.0, 8.0])
    assert found.mean == pytest.approx(4.0)
    assert found.low * found.high == pytest.approx(16.0)
    assert geometric([1.0, 1.0]).as_ratio() == "1.00x"
    assert geometric([1.3]).as_ratio() == "1.30x"
    assert Interval(1.07, 1.02, 1.13).as_ratio() == "1.07x [1.02, 1.13]"


def test_students_t_falls_to_the_normal_one() -> None:
    quantiles = [t_quantile(degrees) for degrees in (1, 2, 5, 10, 11, 30, 1000)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert t_quantile(11) == pytest.approx(2.201, rel=0.003)
    assert t_quantile(30) == pytest.approx(2.042, rel=0.003)
    assert t_quantile(10_000) == pytest.approx(1.96, abs=0.001)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    values = statistics.NormalDist(10.0, 2.0).samples(3000, seed=1)
    found = [interval(values[start : start + 3]) for start in range(0, 3000, 3)]
    held = sum(one.low <= 10.0 <= one.high for one in found)
    assert held / 1000 == pytest.approx(0.95, abs=0.02)


def test_ratios_are_paired_and_nothing_is_compared_with_nothing() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert ratios([2.0, 9.0], [1.0, 0.0]) is None
    assert ratios([0.0], [1.0]) is None
    assert mean_ratios([[1.0, 4.0], None, [4.0, 9.0]]) == pytest.approx([2.0, 6.0])
    assert mean_ratios([None]) == []


def a_plan(tmp_path: Path, *scenarios: str, **changes: object) -> Plan:
    base = Case("", "", "", 0.0, 0.0, 0.0)
    made = Plan(tmp_path, tmp_path / "cache", base, scenarios or ("conv",))
    return replace(made, **changes)  # type: ignore[arg-type]


def test_members_of_columns(tmp_path: Path) -> None:
    made, conv = a_plan(tmp_path, budgets=(1, 2, 3), splits=(16, 24)), SCENARIOS["conv"]
    assert made.members(conv, "2*chunked+deadline") == [
        "2*chunked:2+deadline",
        "2*chunked:1+deadline",
        "2*chunked:3+deadline",
    ]
    assert set(made.members(conv, "fixed")) == {"fixed:16", "fixed:24"}
    assert made.members(conv, "predictive+cost") == ["predictive+cost"]
    assert made.neighbours(conv, "chunked", "chunked:1") == ["chunked:1", "chunked:2"]
    assert made.neighbours(conv, "chunked", "chunked:2") == ["chunked:2", "chunked:1", "chunked:3"]
    assert (family_of("2*fixed+cost"), order_of("2*fixed+cost"), order_of("paper")) == ("fixed", "+cost", "")
    for column in plan.COLUMNS:
        for member in made.members(conv, column):
            assert str(parse_policy(member)) == member


def test_scenarios_are_complete() -> None:
    for scenario in SCENARIOS.values():
        case = a_plan(Path()).case(scenario, 1)
        assert case.window_s * scenario.first_rate > 300, scenario.name
        assert not scenario.classes or sum(of.share for of in scenario.classes) == pytest.approx(1.0)
        assert described(scenario)
    assert {s.model for s in SCENARIOS.values()} >= {"llama-3-70b-w8", "deepseek-v2-lite"}
    assert described(SCENARIOS["long"]) == "500+100/1k/25 ms"
    assert described(SCENARIOS["conv-gaps"]) == "500/25 ms, gaps 50 ms"
    assert described(SCENARIOS["mixed"]).endswith("batch 20% no targets")


def figures_with(
    attainment: float, *, complete: bool = True, goodput: float = 1.0, p99: float = 100.0
) -> Figures:
    ttft = {"p50": 10.0, "p99": p99, "max": 2 * p99}
    row = ClassFigures(100, attainment, goodput, ttft, 4, {"late": 3})
    return Figures(
        num_requests=100,
        num_failed=3,
        complete=complete,
        attainment=attainment,
        goodput_per_s=goodput,
        mean_e2e_ms=1.0,
        ttft_ms=ttft,
        tpot_ms={},
        e2e_ms={},
        output_tokens=1,
        cached_tokens=0,
        half_attainments=(attainment, attainment - 0.02),
        errors={"late": 3},
        by_class={"default": row},
    )


class KnownWorld:
    """In place of the cache of simulations: a member passes up to a rate that hangs on the seed."""

    def __init__(self, folder: Path) -> None:
        pass

    def get(self, case: Case) -> Result | None:
        return None

    def run(self, case: Case) -> Result:
        limit = parse_policy(case.policy).value + 0.1 * case.seed % 10
        passes = case.rate <= limit
        figures = figures_with(0.95 if passes else 0.5, complete=passes or not case.stop_below)
        return Result(figures, 1.0, 2.0, 1, 0, 0, {})


@pytest.fixture
def known_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "Cache", KnownWorld)
    monkeypatch.setattr(plan, "Cache", KnownWorld)


@pytest.mark.usefixtures("known_world")
def test_tuning_finds_the_best_member_and_capacities_its_limits(tmp_path: Path) -> None:
    made = a_plan(tmp_path, budgets=(4, 7, 5), seeds=(1, 2, 30))
    tuned = tune(made, "conv", "chunked")
    assert tuned.member == "chunked:7"
    assert tuned.rate <= 7.0 + 0.1 * TUNING_SEED % 10 < tuned.rate * 1.05
    assert all(tuned.rates[f"chunked:{budget}"] <= tuned.rate for budget in (4, 5))
    found = capacities_of(made, "conv", "chunked", tuned)
    for rate, limit in zip(found, (7.1, 7.2, 10.0), strict=True):
        assert rate <= limit < rate * 1.02
    runs = whole_runs(made, "conv", "chunked", tuned.member, found)
    assert [(run.seed, run.load) for run in runs] == [(s, load) for s in (1, 2, 30) for load in made.loads]
    assert all(run.rate == pytest.approx(rate * run.load) for run, rate in zip(runs[::3], found, strict=True))
    assert whole_runs(made, "conv", "chunked", tuned.member, [0.0, 0.0, 0.0]) == []


class Stored(KnownWorld):
    """Every search is stored, no whole run is."""

    def __init__(self, folder: Path) -> None:
        self.ran: list[Case] = []

    def get(self, case: Case) -> Result | None:
        return super().run(case) if case.stop_below else None

    def run(self, case: Case) -> Result:
        self.ran.append(case)
        return super().run(case)


def test_a_search_that_was_not_given_up_is_not_run_again(tmp_path: Path) -> None:
    cache, case = Stored(tmp_path), Case("", "", "chunked:5", 4.0, 1.0, 1.0)
    assert comparison._whole(cache, case).figures.complete  # type: ignore[arg-type]
    assert cache.ran == []
    given_up = replace(case, rate=6.0)
    comparison._whole(cache, given_up)  # type: ignore[arg-type]
    assert cache.ran == [given_up]


@pytest.mark.usefixtures("known_world")
def test_a_class_that_fails_fails_the_rate() -> None:
    result = Result(figures_with(0.95), 1.0, 1.0, 1, 0, 0, {})
    assert comparison.keeps(result)
    rows = {"default": result.figures.by_class["default"], "poor": ClassFigures(5, 0.8, 0.1, {}, 0, {})}
    poor = replace(result.figures, by_class=rows)
    assert not comparison.keeps(replace(result, figures=poor))
    assert not comparison.keeps(replace(result, figures=replace(result.figures, complete=False)))


@pytest.mark.usefixtures("known_world")
def test_the_forecast_counts_what_will_be_simulated(tmp_path: Path) -> None:
    one = a_plan(tmp_path, columns=("chunked", "predictive"), budgets=(1, 2), seeds=(1, 2))
    jobs = [job for job in jobs_of(one) if job.num_sims]
    assert [(job.column, job.num_sims) for job in jobs] == [
        ("chunked", 7.0),
        ("chunked", 10.0),
        ("chunked", 6.0),
        ("predictive", 10.0),
        ("predictive", 6.0),
    ]
    assert jobs[3].cpu_s == pytest.approx(2 * jobs[1].cpu_s)
    half = sum(job.cpu_s for job in jobs_of(replace(one, window_scale=0.5)))
    assert half == pytest.approx(sum(job.cpu_s for job in jobs))  # the probe costs as much, twice a second
    more = sum(job.num_sims for job in jobs_of(replace(one, worlds=("drain",), world_columns=("chunked",))))
    assert more == 39 + 2 * 5
    lines = forecast(one)
    assert lines[0].startswith("conv ")
    assert "39 simulations" in lines[-1]


def made_up(tmp_path: Path, *columns: str, scenarios: tuple[str, ...] = ("conv", "70b")) -> Comparison:
    """Capacities 10 and 12 of the baseline, 1.1 and 1.3 times that of the others, times their place."""
    made = Comparison(
        a_plan(tmp_path, *scenarios, columns=(BASELINE, *columns), seeds=(1, 2), loads=(1.0, 1.5))
    )
    for scenario in scenarios:
        for place, column in enumerate(made.plan.columns):
            member = made.plan.members(SCENARIOS[scenario], column)[0]
            made.tuned[scenario, column] = Tuned(member, {member: 9.0})
            made.capacity[scenario, column] = [10.0 * 1.1**place, 12.0 * 1.3**place]
            made.runs[scenario, column] = [
                Run(
                    seed,
                    load,
                    10.0 * load,
                    figures_with(0.9, goodput=8.0 + place, p99=100.0 * (1 + place)),
                    0,
                )
                for seed in (1, 2)
                for load in (1.0, 1.5)
            ]
    return made


def test_tables_say_what_was_found(tmp_path: Path) -> None:
    made = made_up(tmp_path, "chunked+deadline", "predictive+deadline")
    found = tables(made)
    mean = math.sqrt(1.1 * 1.3)
    assert f"| 11.00 (1.00x; 1024) | 13.30 ({mean:.2f}x [" in found["capacity"]
    assert "2 seeds" in found["capacity"]
    assert f"| geometric mean | {mean:.2f}x [" in found["same-order"]
    assert "chunked+deadline |" not in found["same-order"].splitlines()[2]
    assert "9.00 (1.12x)" in found["overload"]
    assert "10 / 200 / 400 (2.00x; 4.0% late, 3.0% refused)" in found["latency"]
    assert "| conv | 300 | 100 | 90.0% | 88.0% | 2.0% |" in found["windows"]
    assert (
        "capacity: `predictive+deadline` over `chunked` (2 of 2 scenarios): geometric mean 1.43x"
        in found["claims"]
    )
    assert "goodput at 1.5 times the capacity of `chunked`: `predictive+deadline` over" in found["claims"]
    assert "geometric mean 1.25x" in found["claims"]
    assert "geometric mean 3.00x" in found["claims"]
    assert found["claims"].endswith("Aim: at most 2x; above it: conv, 70b")
    for run in made.runs["conv", "predictive+deadline"]:
        run.figures.ttft_ms["p99"] = 190.0
    assert tables(made)["claims"].endswith("above it: 70b")
    assert "classes" not in found
    assert "worlds" not in found
    made.worlds = {("drain", "conv", "chunked"): 4.0, ("drain", "conv", "predictive"): 5.0}
    assert "| drain | conv | 4.00 (1.00x) | 5.00 (1.25x) |" in tables(made)["worlds"]


def test_nobody_is_compared_where_the_baseline_keeps_nothing(tmp_path: Path) -> None:
    made = made_up(tmp_path, "predictive+deadline")
    for column in made.plan.columns:
        made.runs["conv", column] = []
    made.capacity["conv", BASELINE] = [0.0, 0.0]
    found = tables(made)
    assert "| conv | 500/25 ms | 0.00 (-; 1024) | 13.30 (-) |" in found["capacity"]
    assert "left out, as one of them keeps nothing: conv" in found["claims"]
    assert "| conv | 500/25 ms | - | - |" in found["latency"]


def test_classes_have_a_table_of_their_own(tmp_path: Path) -> None:
    made = made_up(tmp_path, "paper", scenarios=("mixed",))
    for runs in made.runs.values():
        row = runs[0].figures.by_class["default"]
        for run in runs:
            run.figures.by_class["chat"] = row
    assert "| 1.5 | chat | 90.0%, 100 | 90.0%, 200 |" in tables(made)["classes"]


def test_results_are_written_and_filled_in(tmp_path: Path) -> None:
    made = made_up(tmp_path, "chunked+deadline", "predictive+deadline")
    page = write(made, tmp_path / "out")
    assert "simulated" in page
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert data == json.loads(json.dumps(as_data(made)))
    assert data["capacity"][0] == {"scenario": "conv", "column": "chunked", "rates": [10.0, 12.0]}
    document = tmp_path / "policies.md"
    marked = "".join(
        f"Before {name}.\n<!-- table: {name} -->\nformer\n<!-- /table -->\n" for name in tables(made)
    )
    document.write_text(marked)
    assert fill_in(document, made) == list(tables(made))
    once = document.read_text()
    assert "former" not in once
    assert once.count("Before ") == len(tables(made))
    assert tables(made)["claims"] in once
    fill_in(document, made)
    assert document.read_text() == once
    document.write_text(marked.replace("table: claims", "table: other"))
    with pytest.raises(SemipdError, match="no place for the table claims"):
        fill_in(document, made)
    assert "former" in document.read_text()


@pytest.mark.soak
def test_the_script_compares_resumes_and_says_how_much_it_will_be(tmp_path: Path) -> None:
    rows = [(idx * 0.4, 3000 + idx * 31 % 2000, 50 + idx * 7 % 100) for idx in range(60)]
    azure_file(tmp_path, rows, "azure2023_conv_first5000.csv")
    common = (
        "--traces",
        tmp_path,
        "--quick",
        "--no-plots",
        "--only",
        "conv",
        "--columns",
        "predictive",
        "1p1d",
    )
    places = ("--out", tmp_path / "out", "--cache", tmp_path / "cache", "--jobs", 1)
    done = script("compare_policies.py", *common, *places)
    assert done.returncode == 0, done.stderr
    assert "simulations" in done.stderr
    text = (tmp_path / "out" / "policies.md").read_text()
    assert "| conv | 500/25 ms |" in text
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["column"] for row in found["capacity"]} == {"chunked", "paper", "1p1d"}
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    again = script("compare_policies.py", *common, *places)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == stored
    assert (tmp_path / "out" / "policies.md").read_text() == text


def test_an_order_that_the_engine_does_not_know_is_refused_first(tmp_path: Path) -> None:
    azure_file(tmp_path, name="azure2023_conv_first5000.csv")
    common = ("--traces", tmp_path, "--no-plots", "--only", "conv", "--cache", tmp_path / "cache")
    done = script("compare_policies.py", *common, "--columns", "chunked+lifo")
    assert done.returncode == 2
    assert "unknown_policy" in done.stderr


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    scenario = SCENARIOS["conv"]
    assert isinstance(scenario, Scenario)
    assert scenario.targets == Targets(500.0, tpot_ms=25.0)
