"""Arithmetic that a reader can do in the head, then what XLA counts of a program without loops."""

import jax
import jax.numpy as jnp
import pytest

from dr_jax.model.decoder import abstract, apart, head, hidden_states
from dr_jax.model.flops import causal_pairs, forward_flops, update_flops
from dr_jax.model.sizes import Sizes, parameter_count

SMALL = Sizes(vocab=10, width=4, layers=1, heads=2, kv_heads=1, head_dim=2, ff=3)


def test_one_token_by_hand() -> None:
    # query 4x4, key 4x2, value 4x2, out 4x4: 48 products; gate, up and down 4x3: 36; head 4x10: 40. Attention: 2 heads of 2
    # channels, scores and values: 8.
    assert forward_flops(SMALL, 1, 1) == 2 * (48 + 36 + 40 + 8)
    assert forward_flops(SMALL, 1, 1, logits=0) == 2 * (48 + 36 + 8)
    assert update_flops(SMALL, 5, 15) == 3 * forward_flops(SMALL, 5, 15)
    assert causal_pairs(4) == 1 + 2 + 3 + 4


def test_long_sequences_aside_it_is_two_for_each_weight() -> None:
    sizes = Sizes(1000, 64, 3, 4, 2, 16, 128)
    norms = 64 * (2 * 3 + 1)
    assert forward_flops(sizes, 1, 0) == 2 * (parameter_count(sizes) - norms)


def test_xla_counts_about_as_much() -> None:
    sizes, rows, length = Sizes(512, 64, 2, 4, 2, 16, 128), 2, 64

    def attend(cache, layer, q, k, v):  # type: ignore[no-untyped-def]
        q = q.reshape(*q.shape[:2], 2, 2, 16)
        scores = jnp.einsum("btkgc,bskc->bkgts", q, k)
        return jnp.einsum("bkgts,bskc->btkgc", scores, v).reshape(rows, length, 4, 16), cache

    def logits(weights, ids):  # type: ignore[no-untyped-def]
        hidden, _ = hidden_states(apart(weights), sizes, ids, ids, attend)
        return hidden @ head(weights, sizes)

    shapes = abstract(sizes), jax.ShapeDtypeStruct((rows, length), jnp.int32)
    counted = jax.jit(logits).lower(*shapes).cost_analysis()["flops"]
    assert counted == pytest.approx(forward_flops(sizes, rows * length, rows * length**2), rel=0.05)
