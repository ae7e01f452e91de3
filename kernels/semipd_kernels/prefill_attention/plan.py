"""The work of one step's prefill attention, cut and ordered on the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from semipd_kernels.prefill_attention.configs import PrefillConfig, choose, choose_fp32, choose_narrow

HEADER_ROWS = 2


class PaddedSize(NamedTuple):
    """Rows (tokens) and sequences of a captured pass: of at least every step that is replayed in it."""

    num_rows: int
    num_seqs: int


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """Built once a step, read by every layer, for any number of SMs.

    Attributes:
        items: [HEADER_ROWS + N, 2] int32: two counters, zero except while a launch runs; the number of items
            and a zero; then the items (sequence, first query row), longest first, and whatever a padded plan
            has room for. A query row is one head of a group at one token: row r is token r // group, head
            r % group. On the host when built; moving it to the device (pinned,
            asynchronously) is the caller's business:
            `dataclasses.replace(plan, items=plan.items.pin_memory().to(device, non_blocking=True))`.
        config: the launch configuration that the items were cut for.
        num_seqs, num_rows: sequences and rows (tokens) of the step, padding included.
    """

    items: Tensor
    config: PrefillConfig
    num_seqs: int
    num_rows: int


def plan_prefill(
    query_lens: Sequence[int],
    kv_lens: Sequence[int],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    num_sms: int,
    arch: int = 90,
    config: PrefillConfig | None = None,
    padded: PaddedSize | None = None,
) -> PrefillPlan:
    """Cut the step into items and sort them by falling cost, the number of key tiles that they read.

    Args:
        query_lens: rows of each sequence, at least 1.
        kv_lens: context of each sequence in tokens, its rows included.
        num_heads, num_kv_heads, head_dim, dtype: of the model.
        num_sms: SMs the launches are expected to fill; the plan stays right for any other number.
        arch: compute capability of the device, as 80 or 90.
        config: None: tuned or reasoned; small steps take narrower query blocks so that all SMs have work.
        padded: for a captured pass of this size. All plans of one size have the same configuration and as
            many items, whatever step they are of; those that no sequence needs are not computed. Tables,
            query starts and lengths are then of `num_seqs` sequences, the surplus ones without rows.
    """
    group = num_heads // num_kv_heads
    rows, context = np.asarray(query_lens, np.int64), np.asarray(kv_lens, np.int64)
    assert group * num_kv_heads == num_heads, (num_heads, num_kv_heads)
    assert rows.shape == context.shape == (len(query_lens),), (rows.shape, context.shape)
    assert (rows >= 1).all(), query_lens
    assert (rows <= context).all(), (query_lens, kv_lens)
    size = padded or PaddedSize(int(rows.sum()), len(query_lens))
    assert int(rows.sum()) <= size.num_rows, (query_lens, size)
    assert len(query_lens) <= size.num_seqs, (query_lens, size)
    if config is None:
        query_rows = rows if padded is None else np.array([size.num_rows])
        config = _choose(query_rows * group, num_kv_heads, head_dim, dtype, num_sms, arch)
    items = _sorted_items(rows, context, group, config)
    header = np.array(((0, 0), (len(items), 0)), np.int32)
    most = len(items) if padded is None else _most_items(size, group, config)
    room = np.zeros((most - len(items), 2), np.int32)
    every = torch.from_numpy(np.concatenate((header, items, room)))
    return PrefillPlan(every, config, size.num_seqs, size.num_rows)


def _most_items(size: PaddedSize, group: int, config: PrefillConfig) -> int:
    """Each sequence adds less than one item to those that its rows fill."""
    return size.num_rows * group // config.block_m + size.num_seqs


def _choose(
    query_rows: np.ndarray, num_kv_heads: int, head_dim: int, dtype: torch.dtype, num_sms: int, arch: int
) -> PrefillConfig:
    if dtype == torch.float32:
        return choose_fp32(head_dim=head_dim)
    wide = choose(arch=arch, head_dim=head_dim, num_sms=num_sms)
    num_units = int(_cdiv(query_rows, wide.block_m).sum()) * num_kv_heads
    if num_units >= num_sms * wide.ctas_per_sm:
        return wide
    return choose_narrow(arch=arch, head_dim=head_dim)


def _sorted_items(rows: np.ndarray, context: np.ndarray, group: int, config: PrefillConfig) -> np.ndarray:
    num_items = _cdiv(rows * group, config.block_m)
    seqs = np.repeat(np.arange(len(rows)), num_items)
    first_item = np.cumsum(num_items) - num_items
    first_rows = (np.arange(len(seqs)) - first_item[seqs]) * config.block_m
    last_token = np.minimum((first_rows + config.block_m - 1) // group + 1, rows[seqs])
    costs = _cdiv(context[seqs] - rows[seqs] + last_token, config.block_n)
    order = np.argsort(-costs, kind="stable")
    return np.stack((seqs, first_rows), axis=1)[order].astype(np.int32)


def _cdiv(numerator: np.ndarray, denominator: int) -> np.ndarray:
    return -(-numerator // denominator)
