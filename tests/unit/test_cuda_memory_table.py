"""Sizing the KV pool on a GPU, and the table that says where the memory goes."""

import random
from dataclasses import replace

import pytest

from semipd.core.errors import SemipdError
from semipd.devices.cuda.start.memory_table import GpuMemoryDemand
from semipd.steps.sizing import num_kv_blocks

GIB = 2**30

H200 = GpuMemoryDemand(
    total_bytes=141 * GIB,
    free_bytes=123 * GIB,
    weights_bytes=15 * GIB,
    buffers_bytes=2 * GIB,
    graphs_bytes=GIB,
    transients_bytes=GIB,
    reserve_bytes=GIB,
    block_size=16,
    block_bytes=2 * 2**20,
    kv_bytes=0,
    kv_fraction=0.9,
    max_num_blocks=0,
    max_model_len=8192,
)


def test_a_share_of_what_is_left() -> None:
    assert num_kv_blocks(H200) == int(120 * GIB * 0.9) // (2 * 2**20)


def test_bytes_and_blocks_that_were_asked_for() -> None:
    assert num_kv_blocks(replace(H200, kv_bytes=4 * GIB)) == 2048
    assert num_kv_blocks(replace(H200, max_num_blocks=600)) == 600
    assert num_kv_blocks(replace(H200, kv_bytes=4 * GIB, max_num_blocks=5000)) == 2048


def test_the_rows_add_up_to_the_device() -> None:
    rows = H200.rows(1000)
    assert sum(rows.values()) == H200.total_bytes
    assert rows["others"] == GIB
    assert rows["kv_pool"] == 1000 * 2 * 2**20


def test_the_table_in_words() -> None:
    assert H200.table(num_kv_blocks(H200)).splitlines() == [
        "  weights       15.00 GiB",
        "  buffers        2.00 GiB",
        "  graphs         1.00 GiB  estimate",
        "  transients     1.00 GiB  steps with log-probabilities, at their largest",
        "  kv_pool      108.00 GiB  55296 blocks of 16 tokens, 2097152 bytes each",
        "  reserve        1.00 GiB",
        "  others         1.00 GiB  CUDA context, libraries, other processes",
        "  free          12.00 GiB",
        "  total        141.00 GiB",
    ]


def random_demand(rng: random.Random) -> GpuMemoryDemand:
    """From far too little to plenty; small numbers, so that limits are met exactly."""
    weights, buffers = rng.randrange(50), rng.randrange(20)
    free = rng.randrange(200)
    return GpuMemoryDemand(
        total_bytes=weights + buffers + free + rng.randrange(10),
        free_bytes=free,
        weights_bytes=weights,
        buffers_bytes=buffers,
        graphs_bytes=rng.randrange(20),
        transients_bytes=rng.randrange(10),
        reserve_bytes=rng.randrange(30),
        block_bytes=rng.randrange(1, 12),
        kv_bytes=rng.choice([0, 0, rng.randrange(1, 200)]),
        kv_fraction=rng.choice([0.1, 0.5, 0.9, 1.0]),
        max_num_blocks=rng.choice([0, 0, rng.randrange(1, 40)]),
        block_size=rng.choice([16, 64]),
        max_model_len=rng.randrange(1, 320),
    )


def largest_by_search(demand: GpuMemoryDemand) -> int | None:
    """The most blocks that every limit allows, tried one by one; None when that is too few, or more than is
    left."""
    allowed = [
        blocks
        for blocks in range(250)
        if blocks * demand.block_bytes <= (demand.kv_bytes or int(demand.left_bytes * demand.kv_fraction))
        and not (demand.max_num_blocks and blocks > demand.max_num_blocks)
    ]
    if not allowed or allowed[-1] * demand.block_bytes > demand.left_bytes:
        return None
    return allowed[-1] if (allowed[-1] - 1) * demand.block_size >= demand.max_model_len else None


def test_the_size_is_the_largest_that_fits_or_the_hint_helps() -> None:
    rng = random.Random(0)
    outcomes = {"fits": 0, "hint": 0, "hopeless": 0}
    for _ in range(4000):
        demand = random_demand(rng)
        expected = largest_by_search(demand)
        if expected is not None:
            assert num_kv_blocks(demand) == expected, demand
            outcomes["fits"] += 1
            continue
        with pytest.raises(SemipdError) as raised:
            num_kv_blocks(demand)
        assert raised.value.code == "insufficient_memory"
        outcomes["hint" if follow(raised.value.hint, demand) else "hopeless"] += 1
    assert min(outcomes.values()) > 100, outcomes


def follow(hint: str, demand: GpuMemoryDemand) -> bool:
    """Every alternative of the hint gives a pool; False when there is none."""
    if not hint.startswith("Set "):
        assert demand.left_bytes < 2 * demand.block_bytes
        return False
    for option in hint.removeprefix("Set ").removesuffix(".").split(" or "):
        changes = {part.split()[0]: int(part.split()[-1]) for part in option.split(" and ")}
        assert num_kv_blocks(replace(demand, **changes)) >= 2, (option, demand)
    return True


def test_the_refusal_shows_the_numbers_and_the_settings() -> None:
    with pytest.raises(SemipdError) as raised:
        num_kv_blocks(replace(H200, free_bytes=11 * GIB, kv_bytes=20 * GIB))
    text = str(raised.value)
    assert f"kv_bytes {20 * GIB}, max_model_len 8192" in text
    assert "kv_pool       20.00 GiB" in text
    assert "free         -12.00 GiB" in text
    assert "or max_model_len" not in text  # shorter sequences do not make 20 GiB fit
