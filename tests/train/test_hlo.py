"""What a compiled program does is counted from its text, loops run to their end."""

import jax
import jax.numpy as jnp
import pytest

from dr_jax.train.hlo import Collective, Kernel, counted

# A loop of 6 in steps of 2: each time a product [8, 4] x [4, 2] and a sum over groups of 4; then a loop of unknown bound with a
# product whose matrix has 3 heads of 5 channels, and one call of a kernel.
TEXT = """\
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p0: f32[8,4], p1: f32[6,4,2], p2: s32[]) -> f32[8,2] {
  %p0 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %p1 = f32[6,4,2]{2,1,0:T(8,128)} parameter(1)
  %p2 = s32[]{:T(128)} parameter(2)
  %slice = f32[1,4,2]{2,1,0:T(8,128)} dynamic-slice(%p1, %p2), dynamic_slice_sizes={1,4,2}
  %matrix = f32[4,2]{1,0:T(8,128)} bitcast(%slice)
  ROOT %product = f32[8,2]{1,0:T(8,128)} convolution(%p0, %matrix), dim_labels=bf_io->bf
}

%body (t: (s32[], f32[8,4], f32[6,4,2])) -> (s32[], f32[8,4], f32[6,4,2]) {
  %t = (s32[], f32[8,4]{1,0}, /*index=2*/f32[6,4,2]{2,1,0}) parameter(0)
  %two = s32[] constant(2)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%t), index=1
  %w = f32[6,4,2]{2,1,0:T(8,128)} get-tuple-element(%t), index=2
  %out = f32[8,2]{1,0:T(8,128)S(1)} fusion(%x, %w, %i), kind=kOutput, calls=%fused
  %reduced = f32[8,2]{1,0:T(8,128)S(1)} all-reduce(%out), replica_groups=[2,4]<=[8], to_apply=%add
  %next = s32[] add(%i, %two)
  ROOT %made = (s32[], f32[8,4], f32[6,4,2]) tuple(%next, %x, %w)
}

%condition (t: (s32[], f32[8,4], f32[6,4,2])) -> pred[] {
  %t = (s32[], f32[8,4]{1,0}, f32[6,4,2]{2,1,0}) parameter(0)
  %six = s32[] constant(6)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%i, %six), direction=LT
}

%body2 (t: (s32[], s32[], bf16[8,3,5], bf16[3,5,2])) -> (s32[], s32[], bf16[8,3,5], bf16[3,5,2]) {
  %t = (s32[], s32[], bf16[8,3,5]{2,1,0}, bf16[3,5,2]{2,1,0}) parameter(0)
  %one = s32[] constant(1)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] get-tuple-element(%t), index=1
  %x = bf16[8,3,5]{2,1,0:T(8,128)} get-tuple-element(%t), index=2
  %w = bf16[3,5,2]{2,1,0:T(8,128)} get-tuple-element(%t), index=3
  %out = bf16[8,2,1]{1,0,2:T(8,128)S(1)} convolution(%x, %w), window={size=3}, dim_labels=b0f_0io->bf0
  %next = s32[] add(%i, %one)
  ROOT %made = (s32[], s32[], bf16[8,3,5], bf16[3,5,2]) tuple(%next, %n, %x, %w)
}

%condition2 (t: (s32[], s32[], bf16[8,3,5], bf16[3,5,2])) -> pred[] {
  %t = (s32[], s32[], bf16[8,3,5]{2,1,0}, bf16[3,5,2]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] get-tuple-element(%t), index=1
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (q: bf16[7,64,128]) -> bf16[7,64,128] {
  %q = bf16[7,64,128]{2,1,0:T(8,128)} parameter(0)
  %t = (s32[], f32[8,4]{1,0}, f32[6,4,2]{2,1,0}) tuple()
  %first = (s32[], f32[8,4]{1,0}, f32[6,4,2]{2,1,0}) while(%t), condition=%condition, body=%body
  %u = (s32[], s32[], bf16[8,3,5]{2,1,0}, bf16[3,5,2]{2,1,0}) tuple()
  %second = (s32[], s32[], bf16[8,3,5]{2,1,0}, bf16[3,5,2]{2,1,0}) while(%u), condition=%condition2, body=%body2
  ROOT %attend.3 = bf16[7,64,128]{2,1,0:T(8,128)} custom-call(%q), custom_call_target="tpu_custom_call"
}
"""


def test_loops_run_to_their_end() -> None:
    found = counted(TEXT, unbound=10)
    product, heads = 2 * 8 * 4 * 2, 2 * 8 * 15 * 2
    assert (found.loops, found.unbound) == ([3], 1)
    assert (found.flops, found.flops_once) == (3 * product + 10 * heads, product + heads)
    # A ring of 4 passes 64 bytes on twice, but for a quarter.
    assert found.collectives == {"all-reduce": Collective(3, 3 * 2 * 64 * 3 / 4)}
    assert found.kernels == [Kernel("attend", ((7, 64, 128),), 1)]


def test_bytes_are_those_of_main_memory_and_of_the_part_that_is_cut_out() -> None:
    # The first loop reads [8, 4], one of six [4, 2] and a counter, in float32, and writes elsewhere; counters too.
    first, second = 4 * (32 + 8 + 1) + 3 * 4, 2 * (8 * 15 + 15 * 2) + 3 * 4
    assert counted(TEXT, unbound=10).bytes == 3 * first + 10 * second


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all-gather(%x), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", ("all-gather", 64.0)),
        ("all-gather-start(%x), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}", ("all-gather", 192.0)),
        ("reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}", ("reduce-scatter", 48.0)),
        ("reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, dimensions={0}", ("reduce-scatter", 56.0)),
        ("collective-permute(%x), source_target_pairs={{0,1},{1,0}}", ("collective-permute", 64.0)),
    ],
)
def test_what_a_device_sends_depends_on_how_many_take_part(text: str, expected: tuple[str, float]) -> None:
    lines = [
        "ENTRY %main (x: f32[16]) -> f32[16] {",
        "  %x = f32[16]{0:T(128)} parameter(0)",
        f"  ROOT %y = f32[16]{{0}} {text}",
        "}",
    ]
    ((kind, found),) = counted("\n".join(lines)).collectives.items()
    assert (kind, found) == (expected[0], Collective(1, expected[1]))


def test_a_compiled_scan_is_counted_as_often_as_it_runs() -> None:
    def five(x: jax.Array, matrices: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, matrix: (jnp.tanh(x @ matrix), None), x, matrices)[0]

    shapes = jax.ShapeDtypeStruct((128, 64), jnp.float32), jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    compiled = jax.jit(five, compiler_options=options).trace(*shapes).lower().compile()
    found = counted(compiled.as_text())
    assert (found.loops, found.flops) == ([5], 5 * 2 * 128 * 64 * 64)
    assert found.flops_once == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)
