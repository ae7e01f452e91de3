"""Compiles cases ahead of time, in several processes. Imports triton, and semipd_kernels, only there."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cache
from typing import Any

from kernellib.report import cubin, ptx
from kernellib.report.facts import Facts
from semipd.system.parent_death import die_with_parent

REPORTED_ONLY = (100,)
QUEUED_AHEAD = 1
"""Jobs that a pool hands out beyond one per worker."""


def compile_all(ops: tuple[str, ...], *, full: bool, workers: int) -> Iterator[Facts]:
    """Facts as they come, in no order: shipped cases for the architectures that count; `full`: all cases, and
    the architectures that are only reported. A case that takes the compiler's process with it says so.

    Raises:
        RuntimeError: two cases have one name, or the cases themselves cannot be listed.
    """
    # The interpreter and the compiler need different kinds of the same decorated functions.
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with _pool(1) as pool:
        try:
            pending = pool.submit(_jobs, ops, full).result()
        except BrokenProcessPool as error:
            raise RuntimeError("the process that lists the cases died") from error
    while pending:
        try:
            for facts in _compile_together(ops, tuple(pending), workers):
                pending = [job for job in pending if job.key != facts.key]
                yield facts
        except BrokenProcessPool:
            # It was at one of the first that are left; alone, each shows whether it is the one.
            for job in pending[: workers + QUEUED_AHEAD]:
                yield _compile_alone(ops, job)
            pending = pending[workers + QUEUED_AHEAD :]


def _compile_together(ops: tuple[str, ...], jobs: Sequence[Facts], workers: int) -> Iterator[Facts]:
    with _pool(workers) as pool:
        for future in as_completed([pool.submit(compile_one, ops, job.name, job.arch) for job in jobs]):
            yield future.result()


def _compile_alone(ops: tuple[str, ...], job: Facts) -> Facts:
    with _pool(1) as pool:
        try:
            return pool.submit(compile_one, ops, job.name, job.arch).result()
        except BrokenProcessPool:
            return replace(job, error="does not compile: the compiler's process died, twice")


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_settle_in,
        initargs=(os.getpid(),),
    )


def _settle_in(parent_pid: int) -> None:
    """A worker's first call. Triton prints what ptxas refuses; stdout belongs to the report."""
    die_with_parent(parent_pid)
    os.dup2(2, 1)


def compile_one(ops: tuple[str, ...], name: str, arch: int) -> Facts:
    return compile_case(_cases(ops)[name], arch)


def compile_case(case: Any, arch: int) -> Facts:
    """`case`: an AotCase. What the compiler refuses becomes `Facts.error`."""
    promised = promises(case, arch)
    try:
        compiled = _triton_compile(case, arch)
        moves, machine = ptx.inspect(compiled.asm["ptx"]), _machine(case, compiled.asm["cubin"])
    except Exception as error:  # whatever the compiler raises is the finding
        return replace(promised, error=f"does not compile: {type(error).__name__}: {_first_line(error)}")
    return replace(
        promised,
        registers=machine.registers,
        spill_bytes=machine.spill_bytes,
        spills_in_loops=machine.spills_in_loops,
        shared_bytes=compiled.metadata.shared,
        scratch_bytes=compiled.metadata.global_scratch_size or 0,
        loads=moves.loads,
        tensor_core_ops=moves.tensor_core_ops,
        async_copies=moves.async_copies,
        async_depth=machine.async_depth,
        turn_instructions=machine.turn_instructions,
        waits_first=moves.waits_first,
        counts_in_order=moves.counts_in_order,
    )


def _machine(case: Any, code: bytes) -> cubin.CubinFacts:
    return cubin.inspect(code, streams=case.prefetches or bool(case.max_turn_instructions))


def promises(case: Any, arch: int) -> Facts:
    """What an AotCase says of itself, before anything was compiled."""
    return Facts(
        name=case.name,
        arch=arch,
        shipped=case.shipped,
        tensor_cores=case.tensor_cores,
        async_copy=case.async_copy,
        dependent=case.dependent,
        vector_bytes=case.vector_bytes,
        spills_allowed=case.spills_allowed,
        prefetches=case.prefetches,
        max_turn_instructions=case.max_turn_instructions,
        counts_arrivals=case.counts_arrivals,
    )


def _triton_compile(case: Any, arch: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    declared = {**case.signature, **dict.fromkeys(case.constexprs, "constexpr")}
    if set(declared) != set(names) or set(case.signature) & set(case.constexprs):
        odd = sorted(set(declared) ^ set(names))
        raise ValueError(f"the case and the kernel name different arguments: {', '.join(odd)}")
    if not case.aligned <= set(case.signature):
        raise ValueError(f"aligned, but no argument: {', '.join(sorted(case.aligned - set(case.signature)))}")
    source = ASTSource(
        fn=case.kernel,
        signature={name: declared[name] for name in names},
        constexprs=dict(case.constexprs),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in sorted(case.aligned)},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _jobs(ops: tuple[str, ...], full: bool) -> list[Facts]:
    from semipd_kernels.aot import TARGETS

    chosen = [case for case in _cases(ops).values() if full or case.shipped]
    jobs = [promises(case, arch) for case in chosen for arch in case.targets]
    newest = [
        promises(case, arch) for case in chosen if max(TARGETS) in case.targets for arch in REPORTED_ONLY
    ]
    return jobs + newest if full else jobs


@cache
def _cases(ops: tuple[str, ...]) -> dict[str, Any]:
    from semipd_kernels.catalog import aot_cases

    return by_name(aot_cases(ops))


def by_name(cases: Iterable[Any]) -> dict[str, Any]:
    """Raises RuntimeError when two cases share a name."""
    named: dict[str, Any] = {}
    for case in cases:
        if case.name in named:
            raise RuntimeError(f"two cases are called {case.name}")
        named[case.name] = case
    return named


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
