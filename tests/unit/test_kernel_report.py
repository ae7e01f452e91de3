"""The kernel report fails on what it is there to find, and answers from its cache only for the same tree."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import kernel_report
import pytest
from kernellib.report import build
from kernellib.report.build import by_name
from kernellib.report.facts import Facts, violations
from kernellib.report.report_table import table, verdict

ROOT = Path(__file__).parents[2]
GOOD = Facts(
    name="attention/bf16",
    arch=90,
    shipped=True,
    tensor_cores=True,
    async_copy=True,
    vector_bytes=16,
    spills_allowed=0,
    registers=168,
    shared_bytes=200 * 1024,
    loads=({16: 8, 4: 1}, {4: 1}),
    tensor_core_ops={"wgmma.mma_async": 4},
    async_copies=9,
)


def test_kept_promises() -> None:
    assert violations(GOOD) == []
    assert violations(replace(GOOD, vector_bytes=0, loads=({2: 9},))) == []
    assert violations(replace(GOOD, dependent=True, waits_first=True)) == []
    assert violations(replace(GOOD, tensor_cores=False, tensor_core_ops={})) == []
    assert violations(replace(GOOD, spill_bytes=8, spills_allowed=8)) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arch": 80}, "needs 200.0 KiB of shared memory, limit 163 KiB"),
        ({"spill_bytes": 24, "spills_in_loops": 3}, r"spills 24 .* 0 allowed \(3 instructions in innermost"),
        ({"spill_bytes": 24}, r"\(none in innermost loops\)"),
        ({"spill_bytes": 24, "spills_in_loops": None}, r"\(perhaps in loops\)"),
        ({"loads": ({16: 2, 4: 4},)}, r"loads 2 x 16 B \+ 4 x 4 B in a streaming loop: 33%"),
        ({"loads": ({16: 99}, {2: 8})}, "loads 8 x 2 B"),
        ({"loads": ({4: 1}, {2: 2})}, "loads 1 x 4 B"),
        ({"loads": ()}, "has no load from global memory"),
        ({"tensor_core_ops": {}}, "promises tensor cores"),
        ({"async_copies": 0}, "promises asynchronous copies"),
        ({"prefetches": True, "async_depth": 0}, "waits in an innermost loop for the loads of the same turn"),
        ({"prefetches": True}, "promises loads ahead"),
        ({"max_turn_instructions": 300, "turn_instructions": 301}, "issues 301 instructions"),
        ({"max_turn_instructions": 300}, "promises few instructions"),
        ({"scratch_bytes": 512}, "allocates 512 bytes"),
        ({"dependent": True}, "does not wait for the kernel before it"),
        ({"dependent": True, "waits_first": False}, "does not wait for the kernel before it"),
        ({"waits_first": True}, "has griddepcontrol instructions"),
        ({"counts_arrivals": True}, "counts arrivals without ordering"),
        ({"counts_arrivals": True, "counts_in_order": False}, "counts arrivals without ordering"),
        ({"error": "does not compile: no"}, "does not compile: no"),
    ],
)
def test_broken_promises(change: dict[str, Any], says: str) -> None:
    found = violations(replace(GOOD, **change))
    assert found
    assert re.search(says, found[0]), found


def test_sm_100_is_only_reported() -> None:
    bad = replace(GOOD, async_copies=0)
    failed, noted = verdict([bad, replace(bad, arch=100)], kernel_report.COUNTED_ARCHS)
    assert [line.split(":")[0] for line in failed] == ["attention/bf16 sm_90"]
    assert [line.split(":")[0] for line in noted] == ["attention/bf16 sm_100"]


def test_table_has_one_row_per_case() -> None:
    text = table([GOOD, replace(GOOD, arch=80, registers=255), replace(GOOD, name="b", error="no")])
    assert len(text.splitlines()) == 4
    assert "| attention/bf16 | 255 / 168 |" in text
    assert "| b | does not compile |" in text


def test_facts_survive_json() -> None:
    assert Facts.from_json(json.loads(json.dumps(GOOD.to_json()))) == GOOD


class Pool:
    """Runs jobs in this process; `deadly` ones break the pool, `unlucky` ones only in company."""

    def __init__(self, workers: int, deadly: set[str], unlucky: set[str]) -> None:
        self.doomed = deadly if workers == 1 else deadly | unlucky

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Any, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if args[1] in self.doomed:
            future.set_exception(BrokenProcessPool("died"))
        else:
            future.set_result(function(*args))
        return future


def test_a_compiler_that_dies_costs_one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [replace(GOOD, name=name) for name in "abcdefg"]
    monkeypatch.setattr(build, "_pool", lambda workers: Pool(workers, {"c"}, {"e"}))
    monkeypatch.setattr(build, "_jobs", lambda ops, full: jobs)
    monkeypatch.setattr(build, "compile_one", lambda ops, name, arch: replace(GOOD, name=name))
    monkeypatch.setattr(build, "as_completed", list)
    found = {facts.name: facts.error for facts in build.compile_all(("op",), full=False, workers=2)}
    assert found == dict.fromkeys("abdefg", "") | {
        "c": "does not compile: the compiler's process died, twice"
    }


def test_two_cases_of_one_name_are_refused() -> None:
    with pytest.raises(RuntimeError, match="two cases are called attention/bf16"):
        by_name([GOOD, GOOD])


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[bool]:
    """The report's answers without a compiler; one entry for each time it would have compiled."""
    times: list[bool] = []

    def compile_all(ops: tuple[str, ...], *, full: bool, workers: int) -> Iterator[Facts]:
        times.append(full)
        yield replace(GOOD, async_copies=0 if full else 1)

    kernels = tmp_path / "kernels" / "semipd_kernels"
    kernels.mkdir(parents=True)
    (kernels / "one.py").write_text("1")
    (kernels / "tuned.json").write_text("{}")
    monkeypatch.setattr(kernel_report, "KERNELS", kernels)
    monkeypatch.setattr(kernel_report, "SCRIPTS", tmp_path / "scripts")
    monkeypatch.setattr(kernel_report, "__file__", str(tmp_path / "scripts" / "kernel_report.py"))
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "kernel_report.py").write_text("")
    monkeypatch.setattr(kernel_report, "compile_all", compile_all)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.9.0")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    return times


def test_cache_answers_only_for_the_same_tree(
    compiled: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = ["--cache", str(tmp_path / "cache")]
    assert kernel_report.main(cached) == 0
    first = capsys.readouterr().out
    assert kernel_report.main(cached) == 0
    assert capsys.readouterr().out == first
    assert compiled == [False]
    (tmp_path / "kernels" / "semipd_kernels" / "one.py").write_text("2")
    assert kernel_report.main(cached) == 0
    assert compiled == [False] * 2
    assert kernel_report.main([*cached, "--op", "rms_norm"]) == 0
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.6.0")
    assert kernel_report.main(cached) == 0
    assert kernel_report.main(["--summary"]) == 0
    assert compiled == [False] * 5


def test_a_violation_is_an_exit_status_from_the_cache_too(
    compiled: list[bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--full", "--summary", "--cache", str(tmp_path / "cache")]
    for _ in range(2):
        assert kernel_report.main(arguments) == 1
        assert "FAILED attention/bf16 sm_90: promises asynchronous" in capsys.readouterr().out
    assert compiled == [True]


def test_the_table_replaces_what_stands_between_its_marks(
    compiled: list[bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "kernels.md"
    page.write_text(f"before\n{kernel_report.DOCS_BEGIN}\nold\n{kernel_report.DOCS_END}\nafter\n")
    arguments = ["--summary", "--docs", str(page)]
    assert kernel_report.main(arguments) == 0
    once = page.read_text()
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert table([GOOD]).splitlines()[1] in once
    assert kernel_report.main(arguments) == 0
    assert page.read_text() == once
    page.write_text("no marks")
    assert kernel_report.main(arguments) == 1
    assert "needs one line" in capsys.readouterr().err
    assert page.read_text() == "no marks"


def test_an_unknown_operation_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernel_report.main(["--op", "rms"]) == 1
    assert "No operation rms; there are rms_norm," in capsys.readouterr().err


@pytest.fixture(scope="module")
def bad_kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Compiled in a process of its own: this one may hold interpreted kernels."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed; it exists for Linux only")
    paths = [ROOT, ROOT / "kernels", ROOT / "scripts"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = ROOT / "tests" / "support" / "bad_kernels.py"
    done = subprocess.run(
        [sys.executable, script, "90"], env=environment, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("unaligned", ["loads 32 x 4 B in a streaming loop"]),
        ("no stages", ["promises asynchronous copies"]),
        ("too many stages", ["needs 304.0 KiB of shared memory, limit 227 KiB"]),
        ("no dot", ["promises tensor cores"]),
        ("spilling", ["spills"]),
        ("wrong names", ["does not compile: ValueError: the case and the kernel name different arguments"]),
        ("good", []),
        ("good dot", []),
    ],
)
def test_real_kernels_are_told_apart(bad_kernels: dict[str, Any], case: str, says: list[str]) -> None:
    found = bad_kernels[case]["violations"]
    assert len(found) == len(says), found
    assert all(line.startswith(start) for line, start in zip(found, says, strict=True)), found


def test_spills_are_found_inside_the_loop(bad_kernels: dict[str, Any]) -> None:
    assert bad_kernels["spilling"]["facts"]["spills_in_loops"] > 0
    assert bad_kernels["good dot"]["facts"]["tensor_core_ops"] == {"wgmma.mma_async": 4}
