"""Norm, rotation and KV write against the decoder's own functions and against double precision."""

import math
import random
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from semipd_kernels.rope_write import rope_write
from semipd_kernels.rope_write.kernel import cos_sin
from semipd_kernels.rope_write.reference import rope_write_reference
from support.kernels import DTYPES, RELATIVE_LIMITS, assert_close, randn
from torch import Tensor
from torch.nn import functional

from semipd.core.errors import SemipdError
from semipd.network.config import RopeConfig
from semipd.network.rope import inverse_frequencies, rotate, rotation

EPS = 1e-6
ROPES = [
    RopeConfig("default", 10_000.0),
    RopeConfig("linear", 10_000.0, factor=4.0),
    RopeConfig("llama3", 500_000.0, factor=8.0, original_context_tokens=8192),
    RopeConfig("yarn", 1_000_000.0, factor=4.0, original_context_tokens=32768),
]


class Case:
    """Inputs with everything that must not be touched poisoned."""

    def __init__(
        self,
        *,
        num_q: int = 4,
        num_kv: int = 2,
        head_dim: int = 64,
        dtype: torch.dtype = torch.float32,
        rope: RopeConfig = ROPES[0],
        rows: int = 5,
        block_size: int = 16,
        norm: bool = False,
        index_dtype: torch.dtype = torch.int64,
        max_position: int = 4000,
        seed: int = 0,
    ) -> None:
        rng = random.Random(seed)
        heads = num_q + 2 * num_kv
        wide = torch.full((rows, heads * head_dim + 8), torch.nan, dtype=dtype)
        self.qkv = wide[:, : heads * head_dim].unflatten(1, (heads, head_dim))
        self.qkv.copy_(randn(self.qkv.shape, dtype, seed=seed))
        self.gap = wide[:, heads * head_dim :]
        self.pool = torch.full((2, 6, num_kv, block_size, head_dim), torch.nan, dtype=dtype)
        slots = rng.sample(range(block_size, 6 * block_size), rows)
        self.slots = torch.tensor(slots, dtype=index_dtype)
        positions = [rng.randrange(max_position) for _ in range(rows)]
        self.positions = torch.tensor(positions, dtype=index_dtype)
        self.frequencies, self.scale = inverse_frequencies(rope, head_dim)
        self.norm = randn((num_q + num_kv, head_dim), torch.float32, seed=seed + 1) if norm else None
        self.num_q, self.num_kv = num_q, num_kv

    def run(self) -> None:
        rope_write(
            self.qkv,
            self.positions,
            self.frequencies,
            self.scale,
            self.slots,
            self.pool,
            self.norm,
            EPS,
        )

    def expected_by_the_decoder(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values [T, heads, head_dim] as semipd.network.rope computes them."""
        wide = self.qkv[:, : self.num_q + self.num_kv].float()
        if self.norm is not None:
            wide = functional.rms_norm(wide, (wide.shape[-1],), eps=EPS) * self.norm
        rotated = rotate(wide, *rotation(self.positions, self.frequencies, self.scale)).to(self.qkv.dtype)
        q, k = rotated.split((self.num_q, self.num_kv), dim=1)
        return q, k, self.qkv[:, self.num_q + self.num_kv :].clone()

    def written(self) -> Tensor:
        """Keys and values [2, T, kv heads, head_dim] at the slots, which then become NaN."""
        size = self.pool.shape[3]
        taken = torch.stack([self.pool[:, s // size, :, s % size] for s in self.slots.tolist()], dim=1)
        for slot in self.slots.tolist():
            self.pool[:, slot // size, :, slot % size] = torch.nan
        return taken


def check(case: Case) -> None:
    q, k, v = case.expected_by_the_decoder()
    keys_before = case.qkv[:, case.num_q :].clone()
    case.run()
    limit = RELATIVE_LIMITS[case.qkv.dtype]
    assert_close(case.qkv[:, : case.num_q], q, limit)
    written = case.written()
    assert_close(written[0], k, limit)
    assert torch.equal(written[1], v)
    assert torch.equal(case.qkv[:, case.num_q :], keys_before)
    assert case.pool.isnan().all(), "a slot of no row was written"
    assert case.gap.isnan().all(), "written behind a row of qkv"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("num_q", "num_kv", "head_dim"), [(14, 2, 64), (32, 8, 128), (9, 3, 128), (4, 1, 256)]
)
def test_matches_the_decoder(num_q: int, num_kv: int, head_dim: int, norm: bool, dtype: torch.dtype) -> None:
    check(Case(num_q=num_q, num_kv=num_kv, head_dim=head_dim, dtype=dtype, norm=norm, rows=2, seed=head_dim))


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope.kind)
def test_every_rope_variant(rope: RopeConfig) -> None:
    check(Case(rope=rope, norm=True, max_position=100_000, rows=4, seed=3))


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_block_sizes_and_index_types(block_size: int, index_dtype: torch.dtype) -> None:
    check(Case(block_size=block_size, index_dtype=index_dtype, rows=8, seed=4))


def test_positions_up_to_a_million() -> None:
    """Both round position * frequency to fp32 alike; what remains is the precision of the cosine."""
    check(Case(rows=8, max_position=2**20, head_dim=128, rope=ROPES[3], seed=5))


@triton.jit  # type: ignore[untyped-decorator]
def _cos_sin_kernel(angles_ptr, cos_ptr, sin_ptr, count: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.arange(0, count)
    cos, sin = cos_sin(tl.load(angles_ptr + index))
    tl.store(cos_ptr + index, cos)
    tl.store(sin_ptr + index, sin)


@pytest.mark.parametrize("largest", [4.0, 1e3, 105_615.0, 2.0**20, 2.0**22])
def test_cosine_and_sine_within_their_stated_error(largest: float) -> None:
    count = 1 << 15
    angles = torch.rand(count, generator=torch.Generator().manual_seed(int(largest))) * largest
    # The hardest arguments lie next to multiples of pi / 2.
    multiples = torch.arange(0, count // 2, dtype=torch.float64)
    step = max(1.0, largest / (count // 2) / (math.pi / 2))
    angles[: count // 2] = ((multiples * step).floor() * (math.pi / 2)).clamp(max=largest).float()
    cos, sin = torch.empty_like(angles), torch.empty_like(angles)
    _cos_sin_kernel[(1,)](angles, cos, sin, count=count)
    exact = angles.double()
    assert float((cos - exact.cos()).abs().max()) < 2.5e-7
    assert float((sin - exact.sin()).abs().max()) < 2.5e-7


@pytest.mark.parametrize("run", [rope_write, rope_write_reference])
def test_rows_without_a_slot_are_skipped(run) -> None:  # type: ignore[no-untyped-def]
    case = Case(rows=6, seed=6)
    num_slots = case.pool.shape[1] * case.pool.shape[3]
    case.slots[torch.tensor([1, 3, 4])] = torch.tensor([-1, num_slots, -(2**62)])
    case.qkv[[1, 3, 4]] = torch.nan
    before = case.qkv.clone()
    q, k, _ = case.expected_by_the_decoder()
    run(case.qkv, case.positions, case.frequencies, case.scale, case.slots, case.pool, None, EPS)
    kept = torch.tensor([0, 2, 5])
    assert case.qkv[[1, 3, 4]].isnan().all()
    assert_close(case.qkv[kept, :4], q[kept])
    assert torch.equal(case.qkv[kept, 4:], before[kept, 4:])
    case.slots = case.slots[kept]
    assert_close(case.written()[0], k[kept])
    assert case.pool.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_against_a_scalar_oracle(dtype: torch.dtype) -> None:
    case = Case(num_q=2, num_kv=1, rows=3, dtype=dtype, norm=True, rope=ROPES[3], seed=7)
    assert case.norm is not None
    source = case.qkv.clone()
    rope_write_reference(
        case.qkv, case.positions, case.frequencies, case.scale, case.slots, case.pool, case.norm, EPS
    )
    keys = case.written()[0]
    for row in range(3):
        for head in range(3):
            values = [float(v) for v in source[row, head]]
            rms = math.sqrt(sum(v * v for v in values) / 64 + EPS)
            values = [v / rms * float(w) for v, w in zip(values, case.norm[head], strict=True)]
            expected = [0.0] * 64
            for pair in range(32):
                angle = float(torch.tensor(float(case.positions[row])) * case.frequencies[pair])
                cos, sin = math.cos(angle) * case.scale, math.sin(angle) * case.scale
                expected[pair] = values[pair] * cos - values[pair + 32] * sin
                expected[pair + 32] = values[pair + 32] * cos + values[pair] * sin
            got = case.qkv[row, head] if head < 2 else keys[row, 0]
            assert_close(got, torch.tensor(expected, dtype=torch.float64), RELATIVE_LIMITS[dtype])


def broken(**changes: Tensor) -> dict[str, Tensor]:
    case = Case(rows=2)
    inputs = {
        "qkv": case.qkv,
        "positions": case.positions,
        "frequencies": case.frequencies,
        "slot_mapping": case.slots,
        "kv_pool": case.pool,
    }
    return {**inputs, **changes}


@pytest.mark.parametrize(
    "inputs",
    [
        broken(qkv=torch.zeros(2, 8, 96)),
        broken(qkv=torch.zeros(2, 8, 64, dtype=torch.float16)),
        broken(qkv=torch.zeros(2, 8, 128)[:, :, :64]),
        broken(qkv=torch.zeros(2, 4, 64)),
        broken(positions=torch.zeros(2)),
        broken(positions=torch.zeros(3, dtype=torch.int64)),
        broken(slot_mapping=torch.zeros(4, dtype=torch.int64)[::2]),
        broken(frequencies=torch.zeros(32, dtype=torch.float64)),
        broken(kv_pool=torch.zeros(6, 2, 2, 16, 64).transpose(0, 1)),
        broken(qk_norm=torch.zeros(6, 64, dtype=torch.bfloat16)),
        broken(qk_norm=torch.zeros(8, 64)),
    ],
)
def test_refuses_what_it_cannot_do(inputs: dict[str, Any]) -> None:
    with pytest.raises(SemipdError) as raised:
        rope_write(rope_scale=1.0, **inputs)
    assert raised.value.code == "unsupported_kernel"
