"""Costs of HLO texts made by hand, in the ways of writing that the TPU compiler has; every
number is worked out beside it.
"""

import pytest

from p2o_jax.plan import cost, hlo
from p2o_jax.plan.cost import Collective

EIGHT = (tuple(range(8)),)


def program(entry, others=""):
    return (
        f"HloModule jit_f, is_scheduled=true, num_partitions=8\n\n{others}\nENTRY %main (p:"
        f" f32[4,8]) -> f32[4,8] {{\n{entry}\n}}\n"
    )


def test_an_instruction_is_read():
    line = (
        "  ROOT %all-gather-start.2 = (bf16[2,128]{1,0:T(8,128)(2,1)},"
        " /*index=1*/bf16[16,128]{1,0:T(8,128)(2,1)S(1)}) all-gather-start(%copy.1), channel_id=7,"
        ' replica_groups={{0,1}}, dimensions={0}, metadata={op_name="jit(f)/dot" x=%no},'
        ' backend_config={"a":"(%no)"}'
    )
    read = hlo.parse_instruction(line)
    assert (
        read.name == "all-gather-start.2"
        and read.opcode == "all-gather-start"
        and read.operands == ("copy.1",)
    )
    assert (
        read.result == (hlo.Array("bf16", (2, 128)), hlo.Array("bf16", (16, 128)))
        and read.result[1].bytes == 16 * 128 * 2
    )
    assert (
        read.attribute("channel_id") == "7"
        and read.attribute("dimensions") == "{0}"
        and read.attribute("nothing") == ""
    )


def test_a_kernel_s_attributes_may_run_over_several_lines():
    entry = """  %p = f32[4,8]{1,0} parameter(0)
  %splash_fwd.3 = f32[4,8]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="x"}
  ROOT %dot.1 = f32[4,4]{1,0} dot(%splash_fwd.3, %p), lhs_contracting_dims={1}, \
rhs_contracting_dims={1}"""
    result = cost.cost(program(entry))
    assert result.flops == 2 * 4 * 4 * 8
    assert result.kernels == {cost.Kernel("splash_fwd", (hlo.Array("f32", (4, 8)),)): 1}


@pytest.mark.parametrize(
    ("left", "right", "out", "attributes", "flops"),
    [
        # [16, 1024] x [1024, 2048]
        ("16,1024", "1024,2048", "16,2048", "dim_labels=bf_io->bf", 2 * 16 * 1024 * 2048),
        # a batch of 16 x 8 products [2, 128] x [128, 2048], as holes of a dilation
        (
            "16,8,2,128",
            "16,8,2048,128",
            "16,8,2,2048",
            "window={size=16x8 stride=15x7 lhs_dilate=16x8}, dim_labels=01bf_01oi->01bf",
            2 * 16 * 8 * 2 * 128 * 2048,
        ),
        # [3072, 256] x [256, 2048], the sum split into 2 x 128 and the outputs into 16 x 128, as
        # padding
        (
            "3072,2,128,1",
            "16,128,2,128",
            "3072,16,128,1",
            "window={size=16x2 pad=15_15x0_0 rhs_reversal=1x0}, dim_labels=b1f0_0o1i->b0f1",
            2 * 3072 * 256 * 2048,
        ),
        # a real convolution of width 3 over 5 places, padded by 1: 2 + 3 + 3 + 3 + 2 taps
        (
            "1,5,4",
            "3,4,6",
            "1,5,6",
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * 4 * 6 * 13,
        ),
    ],
)
def test_products_written_as_convolutions(left, right, out, attributes, flops):
    entry = f"""  %a = bf16[{left}]{{1,0}} parameter(0)
  %b = bf16[{right}]{{1,0}} parameter(1)
  ROOT %c = bf16[{out}]{{1,0}} convolution(%a, %b), {attributes}, metadata={{op_name="x"}}"""
    assert cost.cost(program(entry)).flops == flops


def loop(condition, step, start, inside="", beside="", more=""):
    """A loop whose state is (counter, limit, weights): how often does a product of 2 * 4 * 4 * 8
    operations turn?
    """
    others = f"""%add_one (a: s32[], b: s32[]) -> s32[] {{
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %s = s32[] add(%a, %b)
}}
%body (q: (s32[], s32[], f32[4,8])) -> (s32[], s32[], f32[4,8]) {{
  %q = (s32[]{{:T(128)}}, s32[]{{:T(128)}}, f32[4,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%q), index=0
  %n = s32[] get-tuple-element(%q), index=1
  %w = f32[4,8]{{1,0}} get-tuple-element(%q), index=2
  %step = s32[] constant({step})
  %next = s32[] fusion(%i, %step), kind=kLoop, calls=%add_one
  %dot.2 = f32[4,4]{{1,0}} dot(%w, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{1}}
{inside}
  ROOT %t = (s32[], s32[], f32[4,8]) tuple(%next, %n, %w)
}}
%cond (q.1: (s32[], s32[], f32[4,8])) -> pred[] {{
  %q.1 = (s32[], s32[], f32[4,8]{{1,0}}) parameter(0)
  %i.1 = s32[] get-tuple-element(%q.1), index=0
  %n.1 = s32[] get-tuple-element(%q.1), index=1
  %five = s32[] constant(5)
  ROOT %c = pred[] {condition}
}}
{more}"""
    entry = f"""  %p = f32[4,8]{{1,0}} parameter(0)
  %limit = s32[] {start}
  %zero = s32[] constant(0)
  %first = s32[] copy(%zero)
{beside}
  %init = (s32[], s32[], f32[4,8]{{1,0}}) tuple(%first, %limit, %p)
  ROOT %while.1 = (s32[], s32[], f32[4,8]{{1,0}}) while(%init), condition=%cond, body=%body"""
    return program(entry, others)


ONE = 2 * 4 * 4 * 8


@pytest.mark.parametrize(
    ("condition", "step", "turns"),
    [
        ("compare(%i.1, %five), direction=LT", 1, 5),
        ("compare(%i.1, %five), direction=LE", 1, 6),
        ("compare(%i.1, %five), direction=LT", 2, 3),
        ("compare(%i.1, %n.1), direction=LT", 1, 7),  # the limit is carried along, and known
    ],
)
def test_a_counting_loop_counts_as_often_as_it_turns(condition, step, turns):
    result = cost.cost(loop(condition, step, "constant(7)"))
    assert result.flops == turns * ONE and result.loops == ()


def test_a_loop_s_length_is_the_compiler_s_where_it_notes_one():
    """JAX 0.12 draws random numbers in loops whose counter cannot be followed."""
    text = loop("compare(%i.1, %n.1), direction=LT", 1, "parameter(1)").replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    )
    result = cost.cost(text)
    assert result.flops == 3 * ONE and result.loops == ()


@pytest.mark.parametrize("start", ["parameter(1)", "partition-id()"])
def test_a_loop_of_unknown_length_is_kept_apart(start):
    result = cost.cost(loop("compare(%i.1, %n.1), direction=LT", 1, start))
    assert result.flops == 0 and [(begun, c.flops) for begun, c in result.loops] == [(1, ONE)]
    assert result.total([3.5]).flops == 3.5 * ONE
    with pytest.raises(ValueError, match="deeper"):
        result.total([])


def test_collectives_in_a_loop_count_with_it():
    inside = (
        "  %all-gather.9 = f32[32,8]{1,0} all-gather(%w), channel_id=3, replica_groups=[1,8]<=[8],"
        ' dimensions={0}, metadata={op_name="x"}'
    )
    result = cost.cost(loop("compare(%i.1, %five), direction=LT", 1, "constant(7)", inside))
    assert result.collectives == {Collective("all-gather", 32 * 8 * 4, EIGHT): 5}


PIECES = """%piece.1 (x: f32[4,8]) -> f32[32,8] {
  %x = f32[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[32,8]{1,0} all-gather(%x), channel_id=5, \
replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}
%piece.2 (y: f32[4,8]) -> f32[32,8] {
  %y = f32[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[32,8]{1,0} all-gather(%y), channel_id=5, \
replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}
"""  # of one gather


@pytest.mark.parametrize(
    ("beside", "times"),
    [("", 5), ("  %f1 = f32[32,8]{1,0} fusion(%p), kind=kCustom, calls=%piece.1", 1)],
)
def test_a_collective_done_in_pieces_by_a_loop_and_beside_it_counts_once(beside, times):
    """One that stands in a loop only is done at every turn."""
    inside = "  %f2 = f32[32,8]{1,0} fusion(%w), kind=kCustom, calls=%piece.2"
    result = cost.cost(
        loop("compare(%i.1, %five), direction=LT", 1, "constant(7)", inside, beside, PIECES)
    )
    assert result.collectives == {Collective("all-gather", 1024, EIGHT): times}


def test_pieces_of_one_collective_count_once_and_others_each():
    """A gather that is done piece by piece stands in several fusions; manual collectives may all
    have the same channel.
    """
    others = (
        PIECES
        + """%all-reduce-scatter.4 (z: f32[4,8]) -> f32[1,8] {
  %z = f32[4,8]{1,0} parameter(0)
  %all-reduce.3 = f32[4,8]{1,0} all-reduce(%z), channel_id=6, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  ROOT %mine = f32[1,8]{1,0} slice(%all-reduce.3), slice={[0:1], [0:8]}
}
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}
"""
    )
    entry = """  %p = f32[4,8]{1,0} parameter(0)
  %f1 = f32[32,8]{1,0} fusion(%p), kind=kCustom, calls=%piece.1
  %f2 = f32[32,8]{1,0} fusion(%p), kind=kCustom, calls=%piece.2
  %f3 = f32[1,8]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.4
  %f4 = f32[1,8]{1,0} fusion(%f3), kind=kCustom, calls=%all-reduce-scatter.4
  %pmax.1 = s32[] all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
  %permute = (f32[4,8]{1,0}, f32[4,8]{1,0}, u32[], u32[]) collective-permute-start(%p), \
channel_id=2, source_target_pairs={{0,1},{1,0}}
  %done = f32[4,8]{1,0} collective-permute-done(%permute)
  ROOT %pmax.2 = s32[] all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, \
to_apply=%sum"""
    assert cost.cost(program(entry, others)).collectives == {
        Collective("all-gather", 1024, EIGHT): 1,
        Collective("reduce-scatter", 128, ((0, 1, 2, 3), (4, 5, 6, 7))): 2,
        Collective("all-reduce", 128, EIGHT): 2,
        Collective("collective-permute", 128, ((0, 1), (1, 0))): 1,
    }


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x=1", ((0, 2), (1, 3))),
        ("replica_groups=[2,2]<=[4], x=1", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x=1", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x=1", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x=1", ((0, 1, 2, 3),)),
        ("replica_groups={}, x=1", ((0, 1, 2, 3),)),
    ],
)
def test_groups_in_every_notation(text, groups):
    assert hlo.groups(text, 4) == groups


def test_what_a_chip_sends():
    assert Collective("all-gather", 800, EIGHT).wire_bytes == 700
    assert Collective("reduce-scatter", 800, EIGHT).wire_bytes == 700
    assert Collective("all-reduce", 800, EIGHT).wire_bytes == 1400
    assert Collective("collective-permute", 800, ((0, 1), (1, 0))).wire_bytes == 800
    slices = [0, 0, 0, 0, 1, 1, 1, 1]
    assert Collective("all-reduce", 8, EIGHT).crosses(slices)
    assert not Collective("all-reduce", 8, ((0, 1, 2, 3), (4, 5, 6, 7))).crosses(slices)


def test_what_slices_send_each_other_is_no_host_transfer():
    """As the compiler writes a sum over slices: every chip sends its part through its host, and
    gets the sum back.
    """
    attributes = (
        '_xla_host_transfer_handler_name="xla_megascale_runtime"'
        ',_xla_megascale_transfer_type="ALL_REDUCE"'
    )
    method = f"is_host_transfer=true, frontend_attributes={{{attributes}}}"
    entry = f"""  %p = f32[4,8]{{1,0}} parameter(0)
  %after = token[] after-all()
  %send = (f32[4,8]{{1,0}}, u32[], token[]) send(%p, %after), channel_id=2, {method}
  %recv = (f32[4,8]{{1,0}}, u32[], token[]) recv(%after), channel_id=1, {method}
  ROOT %done = token[] send-done(%send), channel_id=2, is_host_transfer=true"""
    result = cost.cost(program(entry))
    sent = Collective("between-slices-all-reduce", 128, ())
    assert result.collectives == {sent: 1} and result.host_transfers == 0
    assert sent.wire_bytes == 128 and sent.crosses([0] * 8)


def test_the_dearest_branch_and_host_transfers_count():
    others = """%cheap (x: f32[4,8]) -> f32[4,8] {
  ROOT %x = f32[4,8]{1,0} parameter(0)
}
%dear (y: f32[4,8]) -> f32[4,4] {
  %y = f32[4,8]{1,0} parameter(0)
  ROOT %dot = f32[4,4]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}
"""
    entry = """  %p = f32[4,8]{1,0} parameter(0)
  %which = s32[] constant(1)
  %c = f32[4,8]{1,0} conditional(%which, %p, %p), branch_computations={%cheap, %dear}
  %out = (f32[4,8]{1,0:S(5)}, f32[4,8]{1,0}, u32[]) copy-start(%p)
  ROOT %o = token[] outfeed(%p, %p), outfeed_config="x\""""
    result = cost.cost(program(entry, others))
    assert result.flops == ONE and result.host_transfers == 2


def test_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        cost.cost("nothing")


def test_computations_of_a_sparse_core_end_where_they_end():
    """Those have the name of their thread after the brace; what follows is read as usual."""
    text = """HloModule m, num_partitions=2

%inner (p.0: f32[8]) -> f32[8] {
  ROOT %p.0 = f32[8] parameter(0)
}, execution_thread="sparsecore"

%doubled (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8] parameter(0)
  ROOT %add.1 = f32[8] add(%p.1, %p.1)
}

ENTRY %main (p.2: f32[8]) -> f32[8] {
  %p.2 = f32[8] parameter(0)
  ROOT %f = f32[8] fusion(%p.2), kind=kLoop, calls=%doubled
}
"""
    module = hlo.parse(text)
    assert set(module.computations) == {"inner", "doubled", "main"}
    assert module.computations["inner"].root.opcode == "parameter"
    assert cost.cost(text).flops == 0
