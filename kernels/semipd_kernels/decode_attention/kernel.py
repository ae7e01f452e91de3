"""Split-KV decode attention over the paged pool.

Online softmax as in FlashAttention-2 (arXiv 2307.08691), in base 2; partial results are merged by their
log-sum-exp as in Flash-Decoding, by whichever split of a sequence comes last.
"""

import triton
import triton.language as tl

from semipd_kernels.dependent.kernel import wait_for_earlier_kernels


@triton.jit
def count_items(tiles, chunk):
    """Work items of the whole batch when none may hold more than `chunk` tiles."""
    return tl.sum((tiles + chunk - 1) // chunk)


@triton.jit
def share_out(kv_lens_ptr, batch, num_items, TILE: tl.constexpr, BATCH_PAD: tl.constexpr):
    """Splits of every sequence, int32 [BATCH_PAD]: as even as `num_items`, at least 2 * batch, allow. A
    sequence without keys has one, which writes its zeros.

    A split holds at most `chunk` tiles, the smallest number with which the items suffice. It is at least
    total / items, which is enough for a uniform batch, and at most total / (items - batch), because rounding
    up costs each sequence less than one item.
    """
    rows = tl.arange(0, BATCH_PAD)
    tiles = (tl.load(kv_lens_ptr + rows, mask=rows < batch, other=0) + TILE - 1) // TILE
    tiles = tl.maximum(tiles, (rows < batch).to(tl.int32))
    total = tl.sum(tiles)
    spare = num_items - batch
    low = tl.maximum((total + num_items - 1) // num_items, 1)
    high = tl.where(count_items(tiles, low) <= num_items, low, (total + spare - 1) // spare)
    # Not `while`: behind one, Triton 3.9 forgets the alignment of addresses.
    for _ in range(tl.ceil(tl.log2((high - low + 1).to(tl.float32))).to(tl.int32)):
        middle = (low + high) // 2
        fits = count_items(tiles, middle) <= num_items
        high = tl.where(fits, middle, high)
        low = tl.where(fits, low, middle + 1)
    return (tiles + high - 1) // high


@triton.jit
def table_entries(table, start, num_held, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Blocks of the tile at `start`, of which `num_held` keys count; one for all where blocks are no smaller.
    `num_held` = TILE as a constant: all count, and nothing is compared."""
    first = table + start // BLOCK_SIZE
    if BLOCK_SIZE >= TILE:
        entries = tl.load(first, mask=num_held > 0, other=0)
    else:
        rows = tl.arange(0, TILE)
        entries = tl.load(first + rows // BLOCK_SIZE, mask=rows < num_held, other=0)
    return entries


@triton.jit
def tile_offsets(
    blocks, start, block_stride, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """What the tile at `start`, a multiple of TILE, adds to the addresses of its rows in block 0: int64
    [TILE, 1], in elements, or one for all."""
    offsets = blocks.to(tl.int64) * block_stride
    if BLOCK_SIZE > TILE:
        offsets += start % BLOCK_SIZE * HEAD_DIM
    if BLOCK_SIZE < TILE:
        offsets = offsets[:, None]
    return offsets


@triton.jit
def attend(acc, mass, peak, q, keys, values, num_held, scale_log2e, TILE: tl.constexpr):
    """One step of the online softmax, over the first `num_held` keys of the tile."""
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee")
    scores = tl.where((tl.arange(0, TILE) < num_held)[None, :], scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2e)
    weights = tl.exp2(scores * scale_log2e - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    mass = mass * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return acc, mass, new_peak


@triton.jit
def is_last_arrival(counter_ptr, expected):
    """Of the `expected` programs that count here, whether this one comes last. What any of them stored before
    is then visible to it, and the counter is zero again.

    The barrier puts the stores of all threads before the one thread's count, which releases them to the whole
    GPU and acquires those of the programs before it; the count's result comes to the other threads by another
    barrier. Causality order of the PTX memory model passes through all three.
    """
    tl.debug_barrier()
    is_last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == expected - 1
    if is_last:
        tl.store(counter_ptr, 0)
    return is_last


@triton.jit
def merge_splits(
    partial_out_ptr,
    partial_lse_ptr,
    out_ptr,
    num_splits,
    split_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS_AT_ONCE: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
):
    """The heads of one KV head, from their partial results to `out_ptr`. In the order of the splits, whoever
    does it: so the bits do not depend on who comes last.

    Pointers are to the first head of the first split; `split_stride` is in heads. No load is served by the L1
    cache, where an older launch's results may lie.
    """
    dims = tl.arange(0, HEAD_DIM)
    for first_head in tl.range(0, GROUP, HEADS_AT_ONCE):
        heads = first_head + tl.arange(0, HEADS_AT_ONCE)
        in_group = heads < GROUP
        peak = tl.full([HEADS_AT_ONCE], float("-inf"), tl.float32)
        mass = tl.zeros([HEADS_AT_ONCE], tl.float32)
        acc = tl.zeros([HEADS_AT_ONCE, HEAD_DIM], tl.float32)
        for start in tl.range(0, num_splits, SPLITS_AT_ONCE):
            splits = start + tl.arange(0, SPLITS_AT_ONCE)
            held = (splits < num_splits)[:, None] & in_group[None, :]
            rows = splits[:, None] * split_stride + heads[None, :]
            lse = tl.load(partial_lse_ptr + rows, mask=held, other=float("-inf"), cache_modifier=".cg")
            part_ptrs = partial_out_ptr + rows[:, :, None] * HEAD_DIM + dims[None, None, :]
            parts = tl.load(part_ptrs, mask=held[:, :, None], other=0.0, cache_modifier=".cg")
            new_peak = tl.where(in_group, tl.maximum(peak, tl.max(lse, 0)), 0.0)
            weights = tl.exp2(lse - new_peak[None, :])
            shrink = tl.exp2(peak - new_peak)
            mass = mass * shrink + tl.sum(weights, 0)
            acc = acc * shrink[:, None] + tl.sum(weights[:, :, None] * parts, 0)
            peak = new_peak
        merged = (acc / tl.where(in_group, mass, 1.0)[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + heads[:, None] * HEAD_DIM + dims[None, :], merged, mask=in_group[:, None])


@triton.jit(
    do_not_specialize=["table_stride", "batch", "num_items", "num_blocks", "num_kv_heads"],
    do_not_specialize_on_alignment=["block_tables_ptr", "kv_lens_ptr", "counters_ptr"],
)
def decode_attention_kernel(
    q_ptr,
    kv_ptr,
    kv_rows,
    block_tables_ptr,
    kv_lens_ptr,
    out_ptr,
    partial_out_ptr,
    partial_lse_ptr,
    counters_ptr,
    q_stride,
    out_stride,
    table_stride,
    batch,
    num_items,
    num_blocks,
    num_kv_heads,
    scale_log2e,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    BUFFERS: tl.constexpr,
    TMA: tl.constexpr,
    SPLIT: tl.constexpr,
    BATCH_PAD: tl.constexpr,
    HEADS_AT_ONCE: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One program: the query heads of one KV head over one contiguous range of one sequence's keys.

    Grid: num_items * num_kv_heads, KV head fastest, so that neighbours read neighbouring tiles of a block.
    With SPLIT an item is one split of some sequence and writes to row `item` of the partial results, or to
    `out` when its sequence has no other split; else item i is the whole of sequence i. The last split of a
    sequence and KV head that has written its partial result merges them all.

    `kv_rows`: with TMA a tensor descriptor of the pool as a matrix of token rows, in boxes of [TILE,
    HEAD_DIM]; a tile lies in one block, and what the last one holds behind a context counts for nothing.
    Without TMA any pointer.
    """
    wait_for_earlier_kernels(DEPENDENT)
    kv_head = tl.program_id(0) % num_kv_heads
    item = tl.program_id(0) // num_kv_heads
    seq = item
    split = 0
    num_splits = 1
    if SPLIT:
        splits = share_out(kv_lens_ptr, batch, num_items, TILE, BATCH_PAD)
        if item >= tl.sum(splits):
            return
        before = tl.cumsum(splits) <= item
        seq = tl.sum(before.to(tl.int32))
        first = tl.sum(tl.where(before, splits, 0))
        split = item - first
        num_splits = tl.sum(tl.where(tl.arange(0, BATCH_PAD) == seq, splits, 0))

    kv_len = tl.load(kv_lens_ptr + seq)
    num_tiles = (kv_len + TILE - 1) // TILE
    start = split * num_tiles // num_splits * TILE
    stop = tl.minimum((split + 1) * num_tiles // num_splits * TILE, kv_len)
    size = tl.maximum(stop - start, 0)
    # Whole tiles compare no positions. In 32 bits comparisons are few beside the products: one loop does.
    PEELED: tl.constexpr = q_ptr.dtype.element_ty.primitive_bitwidth == 16
    size_whole = size // TILE * TILE if PEELED else 0

    dims = tl.arange(0, HEAD_DIM)
    rows = tl.arange(0, GROUP_PAD)
    in_group = (rows < GROUP)[:, None]
    heads = kv_head * GROUP + rows
    row_offsets = heads[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(q_ptr + seq.to(tl.int64) * q_stride + row_offsets, mask=in_group, other=0.0)

    table = block_tables_ptr + seq.to(tl.int64) * table_stride
    block_stride = num_kv_heads * (BLOCK_SIZE * HEAD_DIM)
    slots = (tl.arange(0, TILE) % BLOCK_SIZE)[:, None]
    keys_ptr = kv_ptr + kv_head.to(tl.int64) * (BLOCK_SIZE * HEAD_DIM) + slots * HEAD_DIM + dims[None, :]
    values_ptr = keys_ptr + num_blocks.to(tl.int64) * block_stride
    rows_per_block, first_row = num_kv_heads * BLOCK_SIZE, kv_head * BLOCK_SIZE
    peak = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    mass = tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.zeros([GROUP_PAD, HEAD_DIM], tl.float32)
    # Block ids are read a tile ahead, in registers; the last turn reads its own again.
    blocks = table_entries(table, start, size_whole, TILE, BLOCK_SIZE)
    # From 0, not from `start`: with a start known only at run time Triton 3.9 forgets that the rows of keys
    # are aligned, and loads single elements. One stage computes, so these many keep BUFFERS tiles.
    for done in tl.range(0, size_whole, TILE, num_stages=BUFFERS + 1):
        held_blocks = blocks
        ahead = tl.minimum(done + TILE, size_whole - TILE)
        blocks = table_entries(table, start + ahead, TILE, TILE, BLOCK_SIZE)
        if TMA:
            row = first_row + held_blocks * rows_per_block + (start + done) % BLOCK_SIZE
            keys, values = kv_rows.load([row, 0]), kv_rows.load([row + num_blocks * rows_per_block, 0])
        else:
            offsets = tile_offsets(held_blocks, start + done, block_stride, TILE, BLOCK_SIZE, HEAD_DIM)
            keys, values = tl.load(keys_ptr + offsets), tl.load(values_ptr + offsets)
        acc, mass, peak = attend(acc, mass, peak, q, keys, values, TILE, scale_log2e, TILE)
    # One turn at most if peeled. Else block ids are loads that loads depend on: the pipeliner gives the two
    # levels half of the stages each.
    for done in tl.range(size_whole, size, TILE, num_stages=1 if PEELED else 2 * BUFFERS + 2):
        num_held = size - done
        blocks = table_entries(table, start + done, num_held, TILE, BLOCK_SIZE)
        held = (tl.arange(0, TILE) < num_held)[:, None]
        if TMA:
            row = first_row + blocks * rows_per_block + (start + done) % BLOCK_SIZE
            keys, values = kv_rows.load([row, 0]), kv_rows.load([row + num_blocks * rows_per_block, 0])
            values = tl.where(held, values, 0.0)
        else:
            offsets = tile_offsets(blocks, start + done, block_stride, TILE, BLOCK_SIZE, HEAD_DIM)
            keys = tl.load(keys_ptr + offsets, mask=held, other=0.0)
            values = tl.load(values_ptr + offsets, mask=held, other=0.0)
        acc, mass, peak = attend(acc, mass, peak, q, keys, values, num_held, scale_log2e, TILE)

    out = acc / tl.where(mass > 0, mass, 1.0)[:, None]  # without keys: zeros
    row_out_ptr = out_ptr + seq.to(tl.int64) * out_stride
    if num_splits == 1:
        tl.store(row_out_ptr + row_offsets, out.to(out_ptr.dtype.element_ty), mask=in_group)
    else:
        num_heads = num_kv_heads * GROUP
        partial = item.to(tl.int64) * num_heads
        tl.store(partial_out_ptr + partial * HEAD_DIM + row_offsets, out, mask=in_group)
        tl.store(partial_lse_ptr + partial + heads, peak + tl.log2(mass), mask=rows < GROUP)
        if is_last_arrival(counters_ptr + seq * num_kv_heads + kv_head, num_splits):
            first_head = kv_head * GROUP
            first_partial = partial - split * num_heads + first_head
            merge_splits(
                partial_out_ptr + first_partial * HEAD_DIM,
                partial_lse_ptr + first_partial,
                row_out_ptr + first_head * HEAD_DIM,
                num_splits,
                num_heads,
                GROUP,
                HEAD_DIM,
                HEADS_AT_ONCE,
                SPLITS_AT_ONCE,
            )
