"""Compiles cases ahead of time, in several processes. Imports triton, and semipd_kernels, only there."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any

from kernellib import cubin, ptx
from kernellib.facts import Facts
from semipd.core.parent_death import die_with_parent

REPORTED_ONLY = (100,)


def compile_all(ops: tuple[str, ...], *, full: bool, workers: int) -> Iterator[Facts]:
    """Facts as they come, in no order: shipped cases for the architectures that count; `full`: all cases, and
    the architectures that are only reported.

    Raises:
        RuntimeError: a compiler process died, or two cases have one name.
    """
    # The interpreter and the compiler need different kinds of the same decorated functions.
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_settle_in, initargs=(os.getpid(),)
    ) as pool:
        jobs = pool.submit(_jobs, ops, full).result()
        pending: dict[Future[Facts], tuple[str, int]] = {
            pool.submit(compile_one, ops, name, arch): (name, arch) for name, arch in jobs
        }
        try:
            for future in as_completed(pending):
                yield future.result()
                del pending[future]
        except BrokenProcessPool as error:
            left = ", ".join(f"{name} sm_{arch}" for name, arch in list(pending.values())[: workers + 1])
            raise RuntimeError(f"A compiler process died, near one of: {left}") from error


def _settle_in(parent_pid: int) -> None:
    """A worker's first call. Triton prints what ptxas refuses; stdout belongs to the report."""
    die_with_parent(parent_pid)
    os.dup2(2, 1)


def compile_one(ops: tuple[str, ...], name: str, arch: int) -> Facts:
    return compile_case(_cases(ops)[name], arch)


def compile_case(case: Any, arch: int) -> Facts:
    """`case`: an AotCase. What the compiler refuses becomes `Facts.error`."""
    facts = {
        "name": case.name,
        "arch": arch,
        "shipped": case.shipped,
        "tensor_cores": case.tensor_cores,
        "async_copy": case.async_copy,
        "vector_bytes": case.vector_bytes,
        "spills_allowed": case.spills_allowed,
    }
    try:
        compiled = _triton_compile(case, arch)
        moves, machine = ptx.inspect(compiled.asm["ptx"]), cubin.inspect(compiled.asm["cubin"])
    except Exception as error:  # whatever the compiler raises is the finding
        return Facts(**facts, error=f"does not compile: {type(error).__name__}: {_first_line(error)}")
    return Facts(
        **facts,
        registers=machine.registers,
        spill_bytes=machine.spill_bytes,
        spills_in_loops=machine.spills_in_loops,
        shared_bytes=compiled.metadata.shared,
        scratch_bytes=compiled.metadata.global_scratch_size or 0,
        loads=moves.loads,
        tensor_core_ops=moves.tensor_core_ops,
        async_copies=moves.async_copies,
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


def _jobs(ops: tuple[str, ...], full: bool) -> list[tuple[str, int]]:
    from semipd_kernels.aot import TARGETS

    chosen = [case for case in _cases(ops).values() if full or case.shipped]
    jobs = [(case.name, arch) for case in chosen for arch in case.targets]
    newest = [(case.name, arch) for case in chosen if max(TARGETS) in case.targets for arch in REPORTED_ONLY]
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
