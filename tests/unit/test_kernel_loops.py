"""Loops and loads are read from assembly text as a reader would."""

import pytest
from kernellib.report import cubin, ptx
from kernellib.report.loops import UnclearFlowError, control_flow, innermost_loops


def loops_of(text: str) -> list[list[str]]:
    return [[statement.split()[0].rstrip(";") for statement in loop] for loop in innermost_loops(text)]


STRAIGHT = """
.version 8.7
.visible .entry copy(
	.param .u64 copy_param_0
)
.reqntid 128
{
	.reg .b32 	%r<9>;
	ld.param.b64 	%rd1, [copy_param_0];   // no: loop
	@%p1 bra 	$L__BB0_2;
	add.s32 	%r1, %r2, %r3;
$L__BB0_2:
	ret;
}
"""

NESTED = """
{
	mov.b32 	%r1, 0;
$L__BB0_1:                              // =>This Loop Header: Depth=1
	add.s32 	%r1, %r1, 1;
	bra.uni 	$L__BB0_3;
$L__BB0_2:
	sub.s32 	%r2, %r2, 1;
$L__BB0_3:
	mul.lo.s32 	%r3, %r3, 2;
	setp.lt.s32 	%p1, %r2, 5;
	@%p1 bra 	$L__BB0_2;
	@!%p2 bra 	$L__BB0_1;
	or.b32 	%r4, %r4, 1;
	ret;
}
"""


def test_a_forward_branch_is_no_loop() -> None:
    assert innermost_loops(STRAIGHT) == []
    assert [sorted(block.targets) for block in control_flow(STRAIGHT)] == [[], [2, 3], [3], [], []]


def test_only_the_innermost_loop_counts() -> None:
    assert loops_of(NESTED) == [["sub.s32", "mul.lo.s32", "setp.lt.s32", "@%p1"]]


def test_two_loops_side_by_side_and_one_block_loops() -> None:
    text = "A: add.s32 %r1, %r1, 1; @%p1 bra A; B: sub.s32 %r1, %r1, 1; @%p1 bra B; ret;"
    assert loops_of(text) == [["add.s32", "@%p1"], ["sub.s32", "@%p1"]]


def test_a_body_placed_behind_the_end_belongs_to_its_loop() -> None:
    text = """
    H: setp.lt.s32 %p1, %r1, %r2;
    @%p1 bra BODY;
    xor.b32 %r4, %r4, 1;
    ret;
    BODY: add.s32 %r1, %r1, 1;
    bra.uni H;
    """
    assert loops_of(text) == [["setp.lt.s32", "@%p1", "add.s32", "bra.uni"]]


def test_labels_of_inline_assembly_are_local() -> None:
    wait = """
    {
    .reg .pred complete; waitLoop:
    mbarrier.try_wait.parity.shared::cta.b64 complete, [%r1], %r2;
    @!complete bra.uni waitLoop;
    }
    """
    text = f"{{ L: {wait} add.s32 %r1, %r1, 1; {wait} @%p1 bra L; ret; }}"
    waiting = ["mbarrier.try_wait.parity.shared::cta.b64", "@!complete"]
    assert loops_of(text) == [[*waiting, "add.s32", *waiting, "@%p1"]]
    assert len(loops_of(text.replace("mbarrier.try_wait", "ld.global"))) == 2


def test_waiting_for_a_barrier_is_no_loop() -> None:
    text = (
        "A: add.s32 %r1, %r1, 1; B: mbarrier.test_wait.shared.b64 %p1, [%r1], %r2; @!%p1 bra B; @%p2 bra A;"
    )
    assert [len(loop) for loop in innermost_loops(text)] == [4]
    wait = ".L_2: SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4]; @!P0 BRA `(.L_2);"
    sass = f".L_1: LDL R1, [R2]; {wait} @P1 BRA `(.L_1); EXIT;"
    assert cubin.spills_in_loops(sass) == 1


def test_instructions_may_span_lines() -> None:
    text = "A: mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32\n{ %r1, %r2 },\n{ %r3 };\n@%p1 bra A; ret;"
    assert innermost_loops(text) == [
        ["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1, %r2 }, { %r3 };", "@%p1 bra A;"]
    ]


@pytest.mark.parametrize(
    "jump", ["brx.idx %r1, table;", "@%p1 bra NOWHERE;", "@%p1 bra [%rd1];", ":cta.b64 [%r1];"]
)
def test_unclear_jumps_are_refused(jump: str) -> None:
    with pytest.raises(UnclearFlowError):
        innermost_loops(f"A: add.s32 %r1, %r1, 1; {jump} ret;")


SASS = """
	.section	.text.keep,"ax",@progbits
.text.keep:
        /*0000*/                   LDC R1, c[0x0][0x28] ;    /* 0x00000a00ff017b82 */
        /*0010*/                   STL.64 [R1], R4 ;         /* 0x0000000000000000 */
.L_x_1:
        /*0020*/                   STL [R1+0x8], R6 ;
        /*0030*/                   LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0040*/                   LDL.LU R7, [R1+0x8] ;
        /*0050*/               @P0 BRA P1, `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2);
        /*0080*/                   NOP;
"""


def test_spills_are_told_from_loads_and_counted_in_loops() -> None:
    assert cubin.spills_in_loops(SASS) == 2
    assert cubin.spills_in_loops(SASS.replace("BRA P1, `(.L_x_1)", "BRX R2 -0x90")) is None


def test_resource_usage() -> None:
    usage = " Function copy:\n  REG:40 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:568 TEXTURE:0\n"
    assert cubin.parse_usage(usage) == (40, 16)
    with pytest.raises(RuntimeError, match="0 functions"):
        cubin.parse_usage("")


@pytest.mark.parametrize(
    ("instruction", "width"),
    [
        ("@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd3 + 0 ];", 16),
        ("ld.global.L1::evict_last.v2.b32 { %r1, %r2 }, [ %rd3 + 0 ];", 8),
        ("ld.global.nc.L1::no_allocate.b16 %rs1, [%rd3];", 2),
        ("ld.relaxed.gpu.global.u8 %rs1, [%rd3];", 1),
        ("ld.global.v8.f32 { %f1 }, [%rd3];", 32),
        ("ld.global.L2::cache_hint.v4.b32 {%r1}, [%rd1 + 0], %rd9;", 16),
        ("cp.async.cg.shared.global [ %r4 + 0 ], [ %rd7 + 0 ], 0x10, %r6;", 16),
        ("@%p2 cp.async.ca.shared.global [ %r4 + 0 ], [ %rd7 + 0 ], 0x4, 0x4;", 4),
        ("cp.async.cg.shared.global.L2::128B [%r4], [%rd7], 16;", 16),
        ("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1];", 1024),
    ],
)
def test_load_widths(instruction: str, width: int) -> None:
    assert ptx.load_widths([instruction]) == {width: 1}


@pytest.mark.parametrize(
    "instruction",
    [
        "ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r5];",
        "ld.param.b64 %rd1, [copy_param_0];",
        "st.global.b32 [ %rd1 + 0 ], { %r1 };",
        "cp.async.commit_group;",
        "cp.async.wait_group 0x2;",
        "cp.async.bulk.commit_group;",
    ],
)
def test_other_instructions_load_nothing(instruction: str) -> None:
    assert ptx.load_widths([instruction]) == {}


def test_loads_outside_loops_count_only_where_no_loop_loads() -> None:
    before = "ld.global.b16 %rs1, [%rd1];"
    loop = (
        "A: ld.global.v4.b32 {%r1}, [%rd1]; cp.async.cg.shared.global [%r1], [%rd1], 0x10; @%p1 bra A; ret;"
    )
    assert ptx.inspect(f"{before}\n{loop}").loads == ({16: 2},)
    assert ptx.inspect(f"{before}\n{loop}").async_copies == 1
    assert ptx.inspect(f"{before}\nA: add.s32 %r1, %r1, 1;\n@%p1 bra A;\nret;").loads == ({2: 1},)
    assert ptx.inspect("ret;").loads == ()


def test_cache_hints_do_not_hide_loads() -> None:
    text = "A: ld.global.L1::evict_first.v4.b32 {%r1}, [%rd1];\n@%p1 bra A;\nret;"
    assert ptx.inspect(text).loads == ({16: 1},)


def test_tensor_core_instructions() -> None:
    text = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r1}, {%r2};\n" * 3
    assert ptx.inspect(text).tensor_core_ops == {"mma.sync": 3}
    assert ptx.inspect("wgmma.fence.sync.aligned;").tensor_core_ops == {}


@pytest.mark.parametrize(
    ("text", "waits"),
    [
        ("ld.global.b32 {%r1}, [%rd1];", None),
        ("mov.u32 %r1, %ctaid.x;\ngriddepcontrol.wait;\nld.global.v4.b32 {%r1}, [%rd1];", True),
        ("ld.param.b64 %rd1, [p];\ngriddepcontrol.wait;", True),
        ("ld.global.b32 {%r1}, [%rd1];\ngriddepcontrol.wait;", False),
        ("@%p1 bra A;\ngriddepcontrol.wait;\nA: st.global.b32 [%rd1], {%r1};", False),
        ("atom.relaxed.gpu.global.add.s32 %r1, [%rd1], 1;\ngriddepcontrol.wait;", False),
        ("griddepcontrol.launch_dependents;\nld.global.b32 {%r1}, [%rd1];", False),
    ],
)
def test_a_dependent_kernel_waits_before_it_touches_memory(text: str, waits: bool | None) -> None:
    assert ptx.waits_first(text) is waits


def test_streaming_loops_tell_how_far_they_load_ahead() -> None:
    loop = ".L_1: DEPBAR.LE SB0, 0x2; WARPGROUP.DEPBAR.LE gsb0, 0x0; HGMMA R1; LDGSTS [R1];"
    sass = f"DEPBAR.LE SB0, 0x0; {loop} @P0 BRA `(.L_1); DEPBAR.LE SB0, 0x0; EXIT;"
    assert cubin.async_depth(sass) == 2
    assert cubin.turn_instructions(sass) == 5
    assert cubin.async_depth(sass.replace("0x2", "0x0")) == 0
    assert cubin.async_depth("DEPBAR.LE SB0, 0x0; EXIT;") is None
    filling = ".L_9: LDGSTS [R1]; DEPBAR.LE SB0, 0x0; @P0 BRA `(.L_9); "
    assert cubin.async_depth(filling + sass) == 2, "a loop that multiplies nothing only fills the pipeline"
    assert cubin.async_depth(filling) == 0


def test_turns_that_load_by_tma_are_counted_with_their_waits() -> None:
    wait = (
        ".L_2: IMAD.U32 R24, RZ, RZ, UR5; SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR10], R24; @!P2 BRA `(.L_2);"
    )
    sass = f".L_1: UTMALDG.2D [UR8], [UR24]; {wait} HMMA R1; @P0 BRA `(.L_1); EXIT;"
    assert cubin.turn_instructions(sass) == 6


@pytest.mark.parametrize(
    ("around", "found"),
    [
        (
            "bar.sync 0; @%p1 {} ; st.shared::cta.b32 [%r1], %r2; bar.sync 0; ld.global.cg.b32 %r3, [%rd1];",
            True,
        ),
        ("st.global.b32 [%rd1], %r1; @%p1 {} ; bar.sync 0;", False),
        ("bar.sync 0; @%p1 {} ; ld.global.b32 %r3, [%rd1]; bar.sync 0;", False),
        ("bar.sync 0; st.global.b32 [%rd1], %r1; @%p1 {} ; bar.sync 0;", False),
        ("bar.sync 0; @%p1 {} ;", False),
    ],
)
def test_counting_is_ordered_by_barriers_and_by_the_atomic_operation(around: str, found: bool) -> None:
    ordered = "atom.global.gpu.acq_rel.add.u32 %r0, [%rd0], 1"
    assert ptx.counts_in_order(around.format(ordered)) is found
    for weaker in ("atom.global.gpu.relaxed.add.u32 %r0, [%rd0], 1", "atom.global.cta.acq_rel.add.u32 %r0"):
        assert ptx.counts_in_order(around.format(weaker)) is False
    assert ptx.counts_in_order("bar.sync 0;") is None
