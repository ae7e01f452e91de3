"""The compiled copy of the simulator: what is compiled, when it is made again, and the random simulations
that hold it equal to the source (scripts/compile_simulator.py runs thousands of them on both)."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from simlib import compiled, random_cases

import semipd

PACKAGE = Path(semipd.__file__).parent


def test_what_is_compiled_exists_and_is_most_of_what_a_step_runs_through() -> None:
    for pattern in compiled.COMPILED:
        assert list(PACKAGE.glob(pattern)), f"{pattern} names nothing"
    names = {str(path) for path in compiled.modules(PACKAGE)}
    assert {"semipd/engine/coordinator.py", "semipd/sched/scheduler.py", "semipd/memory/prefix.py"} <= names
    assert not any(name.endswith("__init__.py") for name in names)
    assert not compiled.is_compiled(), "the tests run the source"


def test_a_copy_is_made_again_only_when_the_source_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, copy = tmp_path / "semipd", tmp_path / "copy"
    (package / "sched").mkdir(parents=True)
    (package / "sched" / "one.py").write_text("A = 1\n")
    commands: list[list[str]] = []

    def run(command: list[str], cwd: Path, **_: Any) -> None:
        commands.append(command)
        (cwd / "build").mkdir()

    monkeypatch.setattr(subprocess, "run", run)
    assert compiled.make_copy(package, copy)
    assert commands[0][-1] == "semipd/sched/one.py"
    assert not compiled.make_copy(package, copy)
    (package / "sched" / "one.py").write_text("A = 2\n")
    assert compiled.make_copy(package, copy)
    assert (copy / "semipd" / "sched" / "one.py").read_text() == "A = 2\n"


def test_random_simulations_repeat_to_the_last_bit_and_differ_by_seed(tmp_path: Path) -> None:
    random_cases.write_traces(tmp_path)
    first, again = (list(random_cases.outcomes(range(6), tmp_path)) for _ in range(2))
    assert first == again
    results = [json.loads(line)[1] for line in first]
    assert len({json.dumps(result) for result in results}) == len(results)
    assert sum(result["num_steps"] for result in results) > 500


def test_random_simulations_reach_every_policy_preemption_and_reuse(tmp_path: Path) -> None:
    cases = [random_cases.random_case(seed, tmp_path) for seed in range(300)]
    for policy in random_cases.POLICIES:
        assert any(case.policy.startswith(policy) for case in cases)
    assert any("+deadline" in case.policy for case in cases)
    random_cases.write_traces(tmp_path)
    small = [seed for seed, case in enumerate(cases) if case.kv_frac == random_cases.SMALL_KV_FRAC][:8]
    results = [
        json.loads(line)[1]
        for seed in small
        for line in random_cases.outcomes(range(seed, seed + 1), tmp_path)
    ]
    assert sum(result["num_preemptions"] for result in results) > 0
    assert sum(result["figures"]["cached_tokens"] for result in results) > 0
