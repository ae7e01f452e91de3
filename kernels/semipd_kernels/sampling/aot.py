"""What the report compiles."""

from collections.abc import Iterator
from typing import Any

from semipd_kernels.aot import AotCase
from semipd_kernels.sampling import kernel, shape
from semipd_kernels.sampling.filters import kernel as filters
from semipd_kernels.sampling.unfiltered import kernel as unfiltered

_TILES = {"TILES": shape.padded(1)}
"""Of every vocabulary up to the largest."""

_TYPES = {
    "adjusted_ptr": "*fp32",
    "candidates_ptr": "*i32",
    "columns_ptr": "*i32",
    "count_1_ptr": "*i32",
    "count_2_ptr": "*i32",
    "counts_ptr": "*i32",
    "edit_bias_ptr": "*fp32",
    "edit_starts_ptr": "*i32",
    "edit_tokens_ptr": "*i32",
    "edit_until_ptr": "*i64",
    "frequency_ptr": "*fp32",
    "interval_ptr": "*i64",
    "limits_ptr": "*i32",
    "logits_stride": "i32",
    "mass_1_ptr": "*i64",
    "mass_2_ptr": "*i64",
    "num_slots": "i32",
    "min_p_ptr": "*fp32",
    "out_ptr": "*i64",
    "positions_ptr": "*i64",
    "presence_ptr": "*fp32",
    "repetition_ptr": "*fp32",
    "seeds_ptr": "*i64",
    "slots_ptr": "*i32",
    "temperature_ptr": "*fp32",
    "tile_best_ptr": "*fp32",
    "tile_mass_ptr": "*i64",
    "tile_ties_ptr": "*i32",
    "tile_token_ptr": "*i32",
    "tiles": "i32",
    "tokens_ptr": "*i32",
    "top_k_ptr": "*i32",
    "top_p_ptr": "*fp32",
    "vocab_size": "i32",
}


def cases() -> Iterator[AotCase]:
    for dtype in ("fp32", "bf16"):
        for aligned in (True, False):
            yield from _dense_cases(dtype, aligned)
    tile = {"TILE": shape.TILE}
    yield _case("sampling/pick", kernel.pick_kernel, tile | _TILES, shape.NUM_WARPS)
    yield _case("sampling/unfiltered/best", unfiltered.best_kernel, tile, shape.NUM_WARPS)
    for step, function in (("weigh", unfiltered.weigh_kernel), ("pick", unfiltered.pick_kernel)):
        yield _case(f"sampling/unfiltered/{step}", function, tile | _TILES, shape.NUM_WARPS)


def _dense_cases(dtype: str, aligned: bool) -> Iterator[AotCase]:
    """`aligned` False: vocabularies that are no multiple of 16 are read element by element."""
    tile: dict[str, Any] = {"TILE": shape.TILE}
    narrow = tile | _TILES | {"BLOCK": min(shape.TILE, shape.BLOCK)}
    room = _TILES | {"CANDIDATES": shape.CANDIDATES}
    kernels: list[tuple[str, Any, dict[str, Any]]] = [
        ("adjust", kernel.adjust_kernel, tile | {"EDITS": shape.EDITS}),
        ("narrow/1", filters.narrow_kernel, narrow | {"ROUND": 1}),
        ("narrow/2", filters.narrow_kernel, narrow | {"ROUND": 2}),
        ("gather", filters.gather_kernel, tile | room),
        ("finish", filters.finish_kernel, room | {"BLOCK": shape.BLOCK}),
        ("weigh", kernel.weigh_kernel, tile | _TILES),
    ]
    for name, function, constexprs in kernels:
        yield _case(
            f"sampling/{name}/{dtype}{'' if aligned else '/odd'}",
            function,
            constexprs,
            shape.NUM_WARPS,
            dtype=dtype,
            aligned=aligned,
        )


def _case(
    name: str,
    function: Any,
    constexprs: dict[str, Any],
    num_warps: int,
    *,
    dtype: str = "fp32",
    aligned: bool = True,
) -> AotCase:
    types = {**_TYPES, "logits_ptr": f"*{dtype}"}
    signature = {arg: types[arg] for arg in function.arg_names if arg not in constexprs}
    divisible = {arg for arg in signature if arg.endswith("_ptr")} - {*kernel.ROW_POINTERS, "tokens_ptr"}
    if aligned:
        divisible |= signature.keys() & {"logits_stride", "vocab_size"}
    return AotCase(
        name=name,
        kernel=function,
        signature=signature,
        constexprs=constexprs,
        aligned=frozenset(divisible),
        num_warps=num_warps,
        num_stages=1,
        shipped=aligned,
        options={"enable_fp_fusion": False},
    )
