"""What the report compiles."""

from collections.abc import Iterator
from typing import Any

from semipd_kernels.aot import AotCase
from semipd_kernels.sampling import kernel, shape
from semipd_kernels.sampling.filters import kernel as filters
from semipd_kernels.sampling.unfiltered import kernel as unfiltered

VOCABULARIES = {"128k": 32, "152k": 38, "262k": 64}
"""Tiles of the vocabularies of Llama 3, Qwen and the largest one."""

_TYPES = {
    "adjusted_ptr": "*fp32",
    "best_ptr": "*fp32",
    "coarse_count_ptr": "*i32",
    "coarse_mass_ptr": "*i64",
    "columns_ptr": "*i32",
    "counts_ptr": "*i32",
    "edit_bias_ptr": "*fp32",
    "edit_starts_ptr": "*i32",
    "edit_tokens_ptr": "*i32",
    "edit_until_ptr": "*i64",
    "fine_count_ptr": "*i32",
    "fine_mass_ptr": "*i64",
    "frequency_ptr": "*fp32",
    "logits_stride": "i32",
    "num_slots": "i32",
    "min_p_ptr": "*fp32",
    "out_ptr": "*i64",
    "positions_ptr": "*i64",
    "presence_ptr": "*fp32",
    "repetition_ptr": "*fp32",
    "seeds_ptr": "*i64",
    "slots_ptr": "*i32",
    "state_ptr": "*i64",
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
    for name, tiles in VOCABULARIES.items():
        yield from _row_cases(name, shape.power_of_2(tiles))
        yield from _unfiltered_cases(name, shape.power_of_2(tiles))
    for last in (False, True):
        name = f"sampling/select_fine{'/last' if last else ''}"
        yield _case(name, filters.select_fine_kernel, {"LAST": last}, shape.NUM_WARPS)
    best = {"TILE": shape.TILE}
    yield _case("sampling/unfiltered/best", unfiltered.best_kernel, best, shape.NUM_WARPS)
    yield _case("sampling/select_coarse", filters.select_coarse_kernel, {}, shape.NUM_WARPS)


def _dense_cases(dtype: str, aligned: bool) -> Iterator[AotCase]:
    """`aligned` False: vocabularies that are no multiple of 16 are read element by element."""
    tile: dict[str, Any] = {"TILE": shape.TILE}
    kernels: list[tuple[str, Any, dict[str, Any]]] = [
        ("adjust", kernel.adjust_kernel, {"EDITS": shape.EDITS}),
        ("coarse", filters.coarse_kernel, {}),
        ("refine", filters.refine_kernel, {"LAST": False}),
        ("refine/last", filters.refine_kernel, {"LAST": True}),
        ("weigh", kernel.weigh_kernel, {}),
    ]
    for name, function, constexprs in kernels:
        yield _case(
            f"sampling/{name}/{dtype}{'' if aligned else '/odd'}",
            function,
            tile | constexprs,
            shape.NUM_WARPS,
            dtype=dtype,
            aligned=aligned,
        )


def _row_cases(name: str, tiles: int) -> Iterator[AotCase]:
    constexprs = {"TILES": tiles}
    yield _case(f"sampling/best/{name}", kernel.best_kernel, constexprs, shape.NUM_WARPS)
    constexprs = {"TILE": shape.TILE, "TILES": tiles}
    yield _case(f"sampling/pick/{name}", kernel.pick_kernel, constexprs, shape.NUM_WARPS)


def _unfiltered_cases(name: str, tiles: int) -> Iterator[AotCase]:
    constexprs = {"TILE": shape.TILE, "TILES": tiles}
    for step, function in (("weigh", unfiltered.weigh_kernel), ("pick", unfiltered.pick_kernel)):
        yield _case(f"sampling/unfiltered/{step}/{name}", function, constexprs, shape.NUM_WARPS)


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
