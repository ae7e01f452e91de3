"""Repeated launches reach the launcher with the arguments of ordinary ones, without entering Triton again."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import bench_launch
import pytest
import torch
from kernellib.noop_triton import NoopDriver, noop_triton
from semipd_kernels import launches
from semipd_kernels.decode_attention import decode_attention, decode_workspace
from semipd_kernels.embedding import embedding
from semipd_kernels.launches import Launch, LaunchCache
from semipd_kernels.prefill_attention import plan_prefill, prefill_attention
from semipd_kernels.rms_norm import add_rms_norm, rms_norm
from semipd_kernels.rms_norm.kernel import rms_norm_kernel
from semipd_kernels.rope_write import rope_write
from semipd_kernels.sampling import SamplingWorkspace, sample
from semipd_kernels.sampling.workspace import SamplingMemory
from semipd_kernels.silu_mul import silu_mul
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd.core.sampling import SamplingParams
from semipd.sampling.parameters import RowParams, column_values
from semipd.sampling.stages import StagePlan

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Call = Callable[[], object]


@pytest.fixture
def noop() -> Iterator[NoopDriver]:
    with noop_triton() as driver:
        yield driver


class Draw:
    """Calls of operations over tensors in memory of their own: of random dtypes and sizes, with rows at any
    stride, beginning anywhere. `seed` decides about the tensors, `other_seed` about everything else."""

    def __init__(self, seed: int, other_seed: int) -> None:
        self.rng, self.others = random.Random(seed), random.Random(other_seed)
        self.dependent = self.others.random() < 0.3
        self.dtype = self.rng.choice(DTYPES)
        self.num_rows = self.rng.choice((1, 2, 16, 17))
        self.width = self.rng.choice((64, 96, 33))

    def rows(self, num_rows: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
        gap, start = self.rng.choice((0, 0, 16, 3)), self.rng.choice((0, 0, 16, 1))
        memory = torch.zeros(start + num_rows * (width + gap), dtype=dtype or self.dtype)
        return memory[start:].view(num_rows, width + gap)[:, :width]

    def vector(self, size: int, dtype: torch.dtype) -> Tensor:
        start = self.rng.choice((0, 0, 1, 4))
        return torch.zeros(start + size, dtype=dtype)[start:]

    def rms_norm(self) -> Call:
        x, residual, out = (self.rows(self.num_rows, self.width) for _ in range(3))
        weight, eps = self.vector(self.width, self.rng.choice(DTYPES)), self.others.choice((1e-5, 1e-6))
        if self.others.random() < 0.5:
            return lambda: rms_norm(x, weight, eps, out, dependent=self.dependent)
        return lambda: add_rms_norm(x, residual, weight, eps, out, dependent=self.dependent)

    def silu_mul(self) -> Call:
        gate_up, out = self.rows(self.num_rows, 2 * self.width), self.rows(self.num_rows, self.width)
        return lambda: silu_mul(gate_up, out, dependent=self.dependent)

    def embedding(self) -> Call:
        ids = self.vector(self.num_rows, self.rng.choice((torch.int32, torch.int64)))
        table, out = self.rows(self.rng.choice((1, 7)), self.width), self.rows(self.num_rows, self.width)
        return lambda: embedding(ids, table, out, dependent=self.dependent)

    def rope_write(self) -> Call:
        kv_heads, head_dim = self.rng.choice((1, 2)), self.rng.choice((64, 128))
        heads = 6 * kv_heads
        qkv = self.rows(self.num_rows, heads * head_dim).unflatten(1, (heads, head_dim))
        positions, slots = (self.vector(self.num_rows, torch.int32) for _ in range(2))
        frequencies = self.vector(head_dim // 2, torch.float32)
        pool = torch.zeros(2, self.rng.choice((1, 16)), kv_heads, 16, head_dim, dtype=self.dtype)
        norm = torch.ones(5 * kv_heads, head_dim) if self.rng.random() < 0.5 else None
        scale, dependent = self.others.choice((1.0, 0.5)), self.dependent
        return lambda: rope_write(
            qkv, positions, frequencies, scale, slots, pool, norm, 1e-6, dependent=dependent
        )

    def paged(self, seqs: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pool, block tables, lengths."""
        pool = torch.zeros(2, self.rng.choice((1, 16)), 2, 16, 64, dtype=self.dtype)
        return pool, self.rows(seqs, 3, torch.int32), self.vector(seqs, torch.int32)

    def decode_attention(self) -> Call:
        batch, num_sms = self.num_rows, self.others.choice((2, 132))
        pool, tables, lens = self.paged(batch)
        q, out = (self.rows(batch, 4 * 64).unflatten(1, (4, 64)) for _ in range(2))
        workspace = decode_workspace(batch, 4, 2, 64, 4 * batch, q.device)
        return lambda: decode_attention(
            q,
            pool,
            tables,
            lens,
            num_sms=num_sms,
            num_splits=4,
            out=out,
            workspace=workspace,
            dependent=self.dependent,
        )

    def prefill_attention(self) -> Call:
        pool, tables, lens = self.paged(1)
        starts, num_rows = self.vector(2, torch.int32), self.num_rows
        q, out = (self.rows(num_rows, 4 * 64).unflatten(1, (4, 64)) for _ in range(2))
        num_sms, lengths = self.others.choice((1, 132)), [num_rows]
        plan = plan_prefill(
            lengths, lengths, num_heads=4, num_kv_heads=2, head_dim=64, dtype=self.dtype, num_sms=num_sms
        )
        return lambda: prefill_attention(q, pool, tables, starts, lens, out, plan, num_sms=num_sms)


OPS: dict[str, Callable[[Draw], Call]] = {
    "rms_norm": Draw.rms_norm,
    "silu_mul": Draw.silu_mul,
    "embedding": Draw.embedding,
    "rope_write": Draw.rope_write,
    "decode_attention": Draw.decode_attention,
    "prefill_attention": Draw.prefill_attention,
}


@pytest.mark.parametrize("op", OPS)
def test_repeated_launches_pass_what_ordinary_ones_do(
    op: str, noop: NoopDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each class comes about three times, at other addresses each time; the order mixes the classes."""
    rng = random.Random(op)
    calls = [OPS[op](Draw(rng.randrange(15), rng.randrange(3))) for _ in range(120)]
    entered = entries(monkeypatch)
    for call in calls:
        call()
    got = list(noop.launched)
    assert len(entered) < len(got) / 2
    monkeypatch.setattr(launches, "KNOWN_TRITON", ())
    launches.forget_launches()
    entered.clear()
    noop.launched.clear()
    for call in calls:
        call()
    assert got == noop.launched
    assert len(entered) == len(got)


def entries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels that were launched by Triton's own way, as it happens."""
    from triton.runtime.jit import JITFunction

    entered, original = list[str](), JITFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        entered.append(self.fn.__name__)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "run", run)
    return entered


def rows(num_rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(num_rows, 64), torch.ones(64), torch.zeros(num_rows, 64)


def test_triton_is_entered_once_for_a_class(noop: NoopDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = entries(monkeypatch)
    for num_rows in (4, 4, 5, 4, 5):
        x, weight, out = rows(num_rows)
        rms_norm(x, weight, 1e-5, out)
    assert len(entered) == 2
    assert len(noop.launched) == 5
    assert len(noop.compiled) == 1, "the number of rows is a grid, not a kernel"


def test_dependent_launches_are_told_to_triton(noop: NoopDriver) -> None:
    x, weight, out = rows()
    for dependent in (False, True):
        rms_norm(x, weight, 1e-5, out, dependent=dependent)
    off, on = (launched.specialization for launched in noop.launched)
    assert "launch_pdl" not in off
    assert "'launch_pdl': True" in on


def test_what_an_operation_refuses_it_refuses_again(noop: NoopDriver) -> None:
    x, weight, out = rows()
    rms_norm(x, weight, 1e-5, out)
    for _ in range(2):
        with pytest.raises(SemipdError, match="as many contiguous weights"):
            rms_norm(x, weight[:63], 1e-5, out)
    assert len(noop.launched) == 1


def test_no_rows_launch_nothing(noop: NoopDriver) -> None:
    for _ in range(2):
        x, weight, out = rows(0)
        rms_norm(x, weight, 1e-5, out)
    assert not noop.launched


def test_a_profilers_hooks_see_every_launch(noop: NoopDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    x, weight, out = rows()
    rms_norm(x, weight, 1e-5, out)
    entered = entries(monkeypatch)
    monkeypatch.setattr(knobs.runtime.launch_enter_hook, "calls", [lambda metadata: None])
    rms_norm(x, weight, 1e-5, out)
    assert len(entered) == 1


def test_an_unknown_triton_launches_in_its_own_way(noop: NoopDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "KNOWN_TRITON", ((0, 0),))
    entered = entries(monkeypatch)
    for _ in range(3):
        x, weight, out = rows()
        rms_norm(x, weight, 1e-5, out)
    assert len(entered) == 3


def test_no_more_classes_are_kept_than_allowed(noop: NoopDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "MAX_CLASSES", 3)
    for num_rows in range(1, 9):
        x, weight, out = rows(num_rows)
        rms_norm(x, weight, 1e-5, out)
    assert max(len(cache._known) for cache in launches._CACHES) <= 3


def test_the_interpreter_computes_the_same_for_dependent_launches() -> None:
    x, weight = torch.randn(2, 64), torch.randn(64)
    plain, dependent = (rms_norm(x, weight, 1e-5, dependent=dependent) for dependent in (False, True))
    assert plain.isfinite().all()
    assert torch.equal(plain, dependent)


def test_the_benchmark_compares_both_ways(noop: NoopDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_launch, "REPEATS", 1)
    costs = [bench_launch.measure(op, 4, noop) for op in ("rms_norm", "decode_attention", "prefill_layer")]
    assert [cost.launches for cost in costs] == [1, 1, 5]
    assert "| decode_attention | 1 |" in bench_launch.table(costs)


def plan_of(views: Callable[[Tensor, Tensor], Sequence[Tensor]]) -> LaunchCache:
    """One launch of the norm, on what `views` makes of the operation's two tensors."""
    constants = {"ADD": False, "TILE": 64, "ONE_TILE": True, "num_warps": 1, "enable_fp_fusion": True}
    constants["DEPENDENT"] = False

    def plan(first: Tensor, second: Tensor) -> Sequence[Launch]:
        return [Launch(rms_norm_kernel, 1, (*views(first, second), 64, 64, 64, 64, 1e-5), constants)]

    return LaunchCache(plan)


def test_a_view_moves_with_what_it_is_a_view_of(noop: NoopDriver) -> None:
    cache = plan_of(lambda first, second: (first, first[2], second, second[1]))
    for _ in range(2):
        first, second = torch.zeros(3, 64), torch.zeros(2, 64)
        cache.run((first, second))
        expected = (first.data_ptr(), first[2].data_ptr(), second.data_ptr(), second[1].data_ptr())
        assert noop.launched[-1].args[:4] == expected


def test_a_descriptor_moves_with_the_tensor_it_describes(
    noop: NoopDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As layer after layer comes with a pool of its own. The launcher encodes what it gets."""
    entered, q = entries(monkeypatch), torch.zeros(2, 4, 64, dtype=torch.bfloat16)
    tables, lens, out = torch.zeros(2, 3).int(), torch.zeros(2).int(), torch.empty_like(q)
    pools = [torch.zeros(2, 4, 2, 64, 64, dtype=torch.bfloat16) for _ in range(3)]
    for pool in (*pools, *pools):
        decode_attention(q, pool, tables, lens, num_sms=8, out=out, tma=True)
        rows = 2 * 4 * 2 * 64
        assert noop.launched[-1].args[1:3] == (pool.data_ptr(), (pool.data_ptr(), rows, 64, 64, 1, 64, 64))
    assert len(entered) == 1


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_p": 0.9, "top_k": 5}, {"temperature": 0.0}])
def test_sampling_repeats_all_its_launches(
    filters: dict[str, float], noop: NoopDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an argument is an address, both calls have that of the same tensor of theirs."""
    vocab_size, num_rows, entered = 5000, 3, entries(monkeypatch)
    work = SamplingWorkspace(4, vocab_size, 4, torch.device("cpu"))
    params = [SamplingParams(max_tokens=4, seed=seed, **filters) for seed in range(num_rows)]  # type: ignore[arg-type]
    named = []
    for _ in range(2):
        logits, counts = torch.zeros(num_rows, vocab_size), torch.zeros(4, vocab_size, dtype=torch.int32)
        columns = torch.tensor([column_values(p, [1, 2]) for p in params], dtype=torch.int32)
        rows, out = RowParams.of(columns.t().contiguous()), torch.zeros(num_rows, dtype=torch.int64)
        stages = StagePlan([(p, 2, 2) for p in params], vocab_size).bind({})
        entered.clear()
        noop.launched.clear()
        sample(logits, rows, stages, torch.arange(num_rows), counts, work, out=out)
        parts = (getattr(rows, field.name) for field in dataclasses.fields(rows))
        memory = (getattr(work, name) for name in SamplingMemory._fields)
        names = {t.data_ptr(): name for name, t in enumerate((logits, counts, out, *parts, *memory))}
        calls = [(call.specialization, call.grid, call.args) for call in noop.launched]
        named.append(
            [(key, grid, [names.get(arg, min(arg, 2**30)) for arg in args]) for key, grid, args in calls]
        )
    assert named[0] == named[1]
    assert (len(named[0]) >= 2, entered) == (True, [])


def test_memory_that_is_nobodys_or_two_tensors_own_is_not_repeated(
    noop: NoopDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, both = torch.zeros(64), torch.zeros(4, 64)
    entered = entries(monkeypatch)
    for cache in (
        plan_of(lambda first, second: (first, second, second, other)),
        plan_of(lambda first, second: (first, second, second, first[1])),
    ):
        entered.clear()
        for _ in range(3):
            cache.run((both[:3], both[1:]))
        assert len(entered) == 3
