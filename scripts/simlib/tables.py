"""A comparison as Markdown tables, by name. Everything in them is simulated."""

import math
from collections.abc import Callable, Iterable

from semipd.sim.statistics import geometric, interval, mean_ratios, ratios
from simlib.comparison import Comparison, Run
from simlib.plan import BASELINE, family_of, order_of
from simlib.scenarios import SCENARIOS, described

LOST = "-"
"""In a cell: nobody keeps the targets there, so there is nothing to compare."""

FAR_APART = 0.1
"""Difference between the halves of a window beyond which single bursts decide what it says."""


MOST_TAIL_GROWTH = 2.0
"""The order may make the tail of those served so many times longer where first come, first served is within
its capacity."""


def tables(made: Comparison) -> dict[str, str]:
    """The tables that the comparison has something for."""
    found = {
        "capacity": capacity(made),
        "same-order": same_order(made),
        "overload": overload(made),
        "latency": latency(made),
        "classes": classes(made),
        "windows": windows(made),
        "members": members(made),
        "worlds": worlds(made),
        "claims": claims(made),
    }
    return {name: text for name, text in found.items() if text}


def capacity(made: Comparison) -> str:
    """Mean rate, its ratio to the baseline's, and the member."""

    def cell(scenario: str, column: str) -> str:
        rates = made.capacity[scenario, column]
        chosen = made.tuned[scenario, column].member
        value = chosen.partition(":")[2].partition("+")[0]
        note = f"; {value}" if value else ""
        return f"{interval(rates).mean:.2f} ({_ratio(rates, made.capacity[scenario, BASELINE])}{note})"

    head = (
        f"Capacity: highest rate with 90 % attainment, requests/s and GPU, mean of {_seeds(made)} (ratio to "
        f"tuned `{BASELINE}` [95 % interval]; chosen member):"
    )
    last = ["geometric mean", "", *(_overall(made, column, BASELINE) for column in made.plan.columns)]
    return _by_scenario(made, head, cell, [last])


def same_order(made: Comparison) -> str:
    """Ratio to tuned chunked with the column's own order."""
    pairs = _same_order_pairs(made)
    if not pairs:
        return ""
    lines = ["Capacity relative to tuned `chunked` with the same order [95 % interval]:", ""]
    lines += _header(["scenario", *pairs])
    for scenario in made.plan.scenarios:
        cells = [_ratio(made.capacity[scenario, c], made.capacity[scenario, b]) for c, b in pairs.items()]
        lines.append(_row([scenario, *cells]))
    lines.append(_row(["geometric mean", *(_overall(made, c, b) for c, b in pairs.items())]))
    return "\n".join(lines)


def overload(made: Comparison) -> str:
    """Goodput beyond the capacity of the baseline, relative to the baseline's there."""
    parts = []
    for load in made.plan.loads:
        if load <= 1.0:
            continue

        def cell(scenario: str, column: str, load: float = load) -> str:
            ours, theirs = (made.goodput(scenario, c, load) for c in (column, BASELINE))
            return f"{interval(ours).mean:.2f} ({_ratio(ours, theirs)})" if ours else LOST

        head = (
            f"Overload: goodput at {load:g} times the capacity of tuned `{BASELINE}`, requests/s and GPU "
            "(ratio to its goodput there [95 % interval]):"
        )
        parts.append(_by_scenario(made, head, cell))
    return "\n\n".join(parts)


def latency(made: Comparison) -> str:
    """What serving so many costs the others: time to the first token, and the fate of those left behind."""
    parts = []
    for load in made.plan.loads:

        def cell(scenario: str, column: str, load: float = load) -> str:
            ours, theirs = (made.runs_at(scenario, of, load) for of in (column, BASELINE))
            if not ours:
                return LOST
            p50, p99, most = (_ttft_ms(ours, name) for name in ("p50", "p99", "max"))
            ratio = p99 / _ttft_ms(theirs, "p99")
            return f"{p50:.0f} / {p99:.0f} / {most:.0f} ({ratio:.2f}x; {_fate(ours)})"

        head = (
            f"TTFT of served requests at {load:g} x the capacity of tuned `{BASELINE}`, ms: p50 / p99 / "
            f"max (p99 over `{BASELINE}`'s there; share served late, share refused):"
        )
        parts.append(_by_scenario(made, head, cell))
    return "\n\n".join(parts)


def classes(made: Comparison) -> str:
    """Attainment and TTFT of each class, for scenarios with several."""
    parts = []
    for scenario in made.plan.scenarios:
        if not SCENARIOS[scenario].classes:
            continue
        lines = [f"Classes of `{scenario}`: attainment, p99 TTFT in ms:", ""]
        lines += _header(["load", "class", *made.plan.columns])
        for load in made.plan.loads:
            for of in SCENARIOS[scenario].classes:
                cells = [
                    _class_cell(made.runs_at(scenario, column, load), of.name) for column in made.plan.columns
                ]
                lines.append(_row([f"{load:g}", of.name, *cells]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def windows(made: Comparison) -> str:
    """Whether the windows are long enough: both halves of one should say the same."""
    lines = [
        f"Windows: virtual seconds, requests of one, and attainment in both halves at the capacity of tuned "
        f"`{BASELINE}` (largest difference over the seeds; bold where bursts decide):",
        "",
    ]
    lines += _header(["scenario", "s", "requests", "first half", "second half", "largest difference"])
    for scenario in made.plan.scenarios:
        runs = made.runs_at(scenario, BASELINE, 1.0)
        if runs:
            halves = [run.figures.half_attainments for run in runs]
            first, second = (_mean(half[idx] for half in halves) for idx in (0, 1))
            apart = max(abs(a - b) for a, b in halves)
            seconds = SCENARIOS[scenario].window_s * made.plan.window_scale
            number = _mean(run.figures.num_requests for run in runs)
            shown = f"**{apart:.1%}**" if apart > FAR_APART else f"{apart:.1%}"
            cells = [f"{seconds:g}", f"{number:.0f}", f"{first:.1%}", f"{second:.1%}", shown]
            lines.append(_row([scenario, *cells]))
    return "\n".join(lines) if 1.0 in made.plan.loads else ""


def members(made: Comparison) -> str:
    """All members of the columns that have several."""
    parts = []
    for column in made.plan.columns:
        if family_of(column) not in ("chunked", "fixed"):
            continue
        lines = [
            f"Members of `{column}` on the arrivals of the choice, rates to 5 or 10 %, best in bold:",
            "",
        ]
        values = sorted({_value(m) for s in made.plan.scenarios for m in made.tuned[s, column].rates})
        lines += _header(["scenario", *map(str, values)])
        for scenario in made.plan.scenarios:
            tuned = made.tuned[scenario, column]
            rates = {_value(m): rate for m, rate in tuned.rates.items()}
            best = _value(tuned.member)
            cells = [
                f"**{rates[v]:.2f}**" if v == best else f"{rates[v]:.2f}" if v in rates else ""
                for v in values
            ]
            lines.append(_row([scenario, *cells]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def worlds(made: Comparison) -> str:
    """Capacities elsewhere, and their ratios there."""
    if not made.worlds:
        return ""
    columns = list(dict.fromkeys(column for _, _, column in made.worlds))
    lines = [f"Capacity in other worlds, one seed (ratio to tuned `{BASELINE}` there):", ""]
    lines += _header(["world", "scenario", *columns])
    for world, scenario in dict.fromkeys((world, scenario) for world, scenario, _ in made.worlds):
        base = made.worlds.get((world, scenario, BASELINE), 0.0)
        rates = [made.worlds[world, scenario, column] for column in columns]
        cells = [f"{rate:.2f} ({_ratio([rate], [base])})" for rate in rates]
        lines.append(_row([world, scenario, *cells]))
    return "\n".join(lines)


def claims(made: Comparison) -> str:
    """What the product's default should reach, and what it does."""
    ours = "predictive+deadline"
    if ours not in made.plan.columns:
        return ""
    lines = [_claim(made, ours, BASELINE, made.plan.scenarios, "1.2 in the mean, never below 1.0")]
    same = f"{BASELINE}{order_of(ours)}"
    if same in made.plan.columns:
        divided = tuple(name for name in made.plan.scenarios if SCENARIOS[name].divide)
        lines.append(_claim(made, ours, same, made.plan.scenarios, "never below 1.0"))
        lines += (
            [_claim(made, ours, same, divided, "never below 1.1 where dividing is right")] if divided else []
        )
    lines += [_overload_claim(made, ours, load) for load in made.plan.loads if load > 1.0]
    lines += [_price_claim(made, ours)] if 1.0 in made.plan.loads else []
    return "\n".join(lines)


def _overload_claim(made: Comparison, ours: str, load: float) -> str:
    rows = {
        scenario: ratios(made.goodput(scenario, ours, load), made.goodput(scenario, BASELINE, load))
        for scenario in made.plan.scenarios
    }
    return f"* goodput at {load:g} times the capacity of `{BASELINE}`: {_summary(ours, BASELINE, rows)}"


def _price_claim(made: Comparison, ours: str) -> str:
    """The tail's growth, seed by seed."""
    grown = {}
    for scenario in made.plan.scenarios:
        tails = [
            [run.figures.ttft_ms.get("p99", 0.0) for run in made.runs_at(scenario, column, 1.0)]
            for column in (ours, BASELINE)
        ]
        grown[scenario] = ratios(*tails)
    over = [s for s, row in grown.items() if row is not None and geometric(row).mean > MOST_TAIL_GROWTH]
    return (
        f"* p99 TTFT of served requests at the capacity of `{BASELINE}`: {_summary(ours, BASELINE, grown)}. "
        f"Aim: at most {MOST_TAIL_GROWTH:g}x; above it: {', '.join(over) or 'nowhere'}"
    )


def _summary(ours: str, theirs: str, rows: dict[str, list[float] | None]) -> str:
    """Mean, lowest and highest ratio over the scenarios that have one."""
    known = {scenario: geometric(row) for scenario, row in rows.items() if row is not None}
    if not known:
        return f"`{ours}` and `{theirs}` have no scenario in common"
    lowest, highest = (pick(known, key=lambda s: known[s].mean) for pick in (min, max))
    overall = geometric(mean_ratios(rows.values()))
    left_out = [scenario for scenario in rows if scenario not in known]
    return (
        f"`{ours}` over `{theirs}` ({len(known)} of {len(rows)} scenarios): geometric mean "
        f"{overall.as_ratio()}; lowest "
        f"{known[lowest].as_ratio()} ({lowest}), highest {known[highest].as_ratio()} ({highest})"
        + (f"; left out, as one of them keeps nothing: {', '.join(left_out)}" if left_out else "")
    )


def _claim(made: Comparison, ours: str, theirs: str, scenarios: tuple[str, ...], aim: str) -> str:
    rows = {s: ratios(made.capacity[s, ours], made.capacity[s, theirs]) for s in scenarios}
    return f"* capacity: {_summary(ours, theirs, rows)}. Aim: {aim}"


def _by_scenario(
    made: Comparison, head: str, cell: Callable[[str, str], str], last: Iterable[list[str]] = ()
) -> str:
    lines = [head, "", *_header(["scenario", "targets", *made.plan.columns])]
    for scenario in made.plan.scenarios:
        cells = [cell(scenario, column) for column in made.plan.columns]
        lines.append(_row([scenario, described(SCENARIOS[scenario]), *cells]))
    return "\n".join([*lines, *map(_row, last)])


def _same_order_pairs(made: Comparison) -> dict[str, str]:
    """Columns with an order, each with tuned chunked of that order."""
    columns = made.plan.columns
    pairs = {c: f"{BASELINE}{order_of(c)}" for c in columns if order_of(c) and family_of(c) != BASELINE}
    return {column: base for column, base in pairs.items() if base in columns}


def _overall(made: Comparison, column: str, base: str) -> str:
    rows = [ratios(made.capacity[s, column], made.capacity[s, base]) for s in made.plan.scenarios]
    means = mean_ratios(rows)
    return geometric(means).as_ratio() if means else LOST


def _ratio(ours: list[float], theirs: list[float]) -> str:
    found = ratios(ours, theirs)
    return geometric(found).as_ratio() if found else LOST


def _fate(runs: list[Run]) -> str:
    number = sum(run.figures.num_requests for run in runs)
    late = sum(row.num_late for run in runs for row in run.figures.by_class.values())
    refused = sum(sum(run.figures.errors.values()) for run in runs)
    return f"{late / number:.1%} late, {refused / number:.1%} refused"


def _ttft_ms(runs: list[Run], name: str) -> float:
    """Mean over the seeds of a percentile, or of "max"."""
    return _mean(run.figures.ttft_ms.get(name, math.nan) for run in runs)


def _class_cell(runs: list[Run], name: str) -> str:
    rows = [run.figures.by_class[name] for run in runs if name in run.figures.by_class]
    if not rows:
        return LOST
    p99 = _mean(row.ttft_ms.get("p99", math.nan) for row in rows)
    return f"{_mean(row.attainment for row in rows):.1%}, {p99:.0f}"


def _value(member: str) -> int:
    return int(member.partition(":")[2].partition("+")[0])


def _seeds(made: Comparison) -> str:
    number = len(made.plan.seeds)
    return f"{number} seeds" if number > 1 else "one seed"


def _mean(values: Iterable[float]) -> float:
    return interval(list(values)).mean


def _header(cells: list[str]) -> list[str]:
    return [_row(cells), _row(["---"] * len(cells))]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
