"""Where a comparison's results go: a page of tables, plain data, and the marked places of a document."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from semipd.core.errors import SemipdError
from simlib.comparison import Comparison
from simlib.scenarios import SCENARIOS
from simlib.tables import tables

HEAD = "Everything here is **simulated**; nothing was measured on a GPU."


def write(made: Comparison, folder: Path) -> str:
    """policies.md and results.json. Returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    page = "\n\n".join([HEAD, *tables(made).values()]) + "\n"
    (folder / "policies.md").write_text(page)
    (folder / "results.json").write_text(json.dumps(as_data(made), indent=1))
    return page


def as_data(made: Comparison) -> dict[str, Any]:
    """Everything that was found, with what it depends on. No value is NaN."""
    plan = made.plan
    return {
        "scenarios": {name: asdict(SCENARIOS[name]) for name in plan.scenarios},
        "seeds": plan.seeds,
        "loads": plan.loads,
        "step": plan.step,
        "window_scale": plan.window_scale,
        "base": asdict(plan.base),
        "tuned": [_cell(cell) | asdict(tuned) for cell, tuned in made.tuned.items()],
        "capacity": [_cell(cell) | {"rates": rates} for cell, rates in made.capacity.items()],
        "runs": [_cell(cell) | asdict(run) for cell, runs in made.runs.items() for run in runs],
        "worlds": [
            {"world": world, "scenario": scenario, "column": column, "rate": rate}
            for (world, scenario, column), rate in made.worlds.items()
        ],
    }


def _cell(cell: tuple[str, str]) -> dict[str, str]:
    return {"scenario": cell[0], "column": cell[1]}


def fill_in(document: Path, made: Comparison) -> list[str]:
    """Put each table between its two marks, `<!-- table: NAME -->` and `<!-- /table -->`. Returns the names.
    Raises SemipdError(`marks_missing`) when the document has no place for one; then nothing is written."""
    text, found = document.read_text(encoding="utf-8"), tables(made)
    for name, table in found.items():
        mark = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- /table -->)", re.DOTALL)
        if not mark.search(text):
            hint = f"Write <!-- table: {name} --> and <!-- /table --> on lines of their own."
            raise SemipdError("marks_missing", f"{document} has no place for the table {name}.", hint)
        text = mark.sub(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", text)  # type: ignore[misc]
    document.write_text(text, encoding="utf-8")
    return list(found)
