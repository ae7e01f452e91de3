"""The placement kernel compiles for a GPU that is not here."""

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")


@pytest.mark.parametrize("capability", [80, 90])
def test_it_reads_the_sm_and_the_clock(capability: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from semipd.devices.cuda.driver.placement_kernel import _where

    source = ASTSource(_where, {"out_ptr": "*i32", "SPIN_NS": "constexpr"}, {(1,): 200_000})
    options = {"num_warps": 1, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    assert "%smid" in ptx
    # Once before the loop and once inside: a clock that was read only once would spin for ever.
    assert ptx.count("%globaltimer") == 2
