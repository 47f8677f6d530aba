"""Attention inside packed rows: each token sees itself and what came before it in its own segment.

In:    segment ids [B, T]; 0 is padding
Out:   an `Attend` that keeps nothing
Holds: rows are in order, so causality is by index; scores exist for one pair of blocks at a time, forward and backward,
       so memory grows with T and not with its square; pairs of blocks that share no segment are skipped; keys and values
       are never repeated for their group of heads
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dr_jax.model.decoder import Attend

_HIDDEN = -1e30  # a score that no key wins with; finite, so that a difference of two is not NaN


def segment_attention(segments_BT: Int[Array, "B T"], *, block: int | None = None) -> Attend[Any]:
    """Return causal attention within segments.

    Args:
        segments_BT: tokens with equal ids see each other; 0 is padding, which sees only padding.
        block: how many queries meet how many keys at a time; None chooses: few where scores should stay in a processor's
            cache, many where each step costs a kernel's launch.
    """
    size = min(block or (128 if jax.default_backend() == "cpu" else 1024), segments_BT.shape[1])
    padding = -segments_BT.shape[1] % size
    segments = jnp.pad(segments_BT, ((0, 0), (0, padding)))
    # Padding gets the largest id: then ids never fall along a row, and two blocks share a segment iff their ranges meet.
    segments = jnp.where(segments == 0, jnp.iinfo(segments.dtype).max, segments)

    def attend(
        cache: Any,
        layer: Int[Array, ""],
        q_BTHC: Float[Array, "B T H C"],
        k_BTKC: Float[Array, "B T K C"],
        v_BTKC: Float[Array, "B T K C"],
    ) -> tuple[Float[Array, "B T H C"], Any]:
        q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_BTHC, k_BTKC, v_BTKC))
        return _gather(q, k, v, segments, size)[:, : q_BTHC.shape[1]], cache

    return attend


# softmax(q k / sqrt(C)) v, block by block with its own backward pass: Dao, arXiv 2307.08691, in plain JAX; the softmax is in
# float32. I counts blocks, S the places of one block, and R is the queries of one block by all heads that share a key head
# (grouped queries: Ainslie et al., arXiv 2305.13245).


class _Blocks(NamedTuple):
    q_IBKRC: Float[Array, "I B K R C"]  # divided by sqrt(C) already
    k_IBKSC: Float[Array, "I B K S C"]
    v_IBKSC: Float[Array, "I B K S C"]
    segments_IBS: Int[Array, "I B S"]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _gather(q: Array, k: Array, v: Array, segments: Array, size: int) -> Array:
    return _gather_forward(q, k, v, segments, size)[0]


def _gather_forward(q: Array, k: Array, v: Array, segments: Array, size: int) -> tuple[Array, tuple[Array, ...]]:
    blocks = _cut(q, k, v, segments, size)
    first_I, _ = _ranges(blocks.segments_IBS)

    def one(query: Array) -> tuple[Array, Array]:
        def meet(key: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            before_BKR, total_BKR, out_BKRC = carry
            scores = _scores(blocks, query, key)
            best_BKR = jnp.maximum(before_BKR, scores.max(axis=-1))
            weights, shrink = jnp.exp(scores - best_BKR[..., None]), jnp.exp(before_BKR - best_BKR)
            out = _product("BKRS,BKSC->BKRC", weights, blocks.v_IBKSC[key])
            return best_BKR, total_BKR * shrink + weights.sum(axis=-1), out_BKRC * shrink[..., None] + out

        rows = blocks.q_IBKRC.shape[1:-1]
        empty = (jnp.full(rows, _HIDDEN), jnp.zeros(rows), jnp.zeros(blocks.q_IBKRC.shape[1:], jnp.float32))
        best, total, out_BKRC = jax.lax.fori_loop(first_I[query], query + 1, meet, empty)
        return out_BKRC / total[..., None], best + jnp.log(total)

    out_IBKRC, total_IBKR = jax.lax.map(one, jnp.arange(blocks.q_IBKRC.shape[0], dtype=jnp.int32))
    out = _joined(out_IBKRC, q.shape).astype(q.dtype)
    return out, (q, k, v, segments, out, total_IBKR)


def _gather_backward(size: int, kept: tuple[Array, ...], above: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, segments, out, total_IBKR = kept
    blocks = _cut(q, k, v, segments, size)
    above_IBKRC = _split(above, size, k.shape[2])
    along_IBKR = jnp.sum(_split(above.astype(jnp.float32) * out.astype(jnp.float32), size, k.shape[2]), axis=-1)
    _, last_I = _ranges(blocks.segments_IBS)

    def one(dq_IBKRC: Array, key: Array) -> tuple[Array, tuple[Array, Array]]:
        def meet(query: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            dq_IBKRC, dk_BKCS, dv_BKCS = carry  # turned: their products run faster so
            shares = jnp.exp(_scores(blocks, query, key) - total_IBKR[query][..., None])
            rise = _product("BKRC,BKSC->BKRS", above_IBKRC[query], blocks.v_IBKSC[key])
            dscores = shares * (rise - along_IBKR[query][..., None])
            return (
                dq_IBKRC.at[query].add(_product("BKRS,BKSC->BKRC", dscores, blocks.k_IBKSC[key])),
                dk_BKCS + _product("BKRC,BKRS->BKCS", blocks.q_IBKRC[query], dscores),
                dv_BKCS + _product("BKRC,BKRS->BKCS", above_IBKRC[query], shares),
            )

        shape = (*blocks.k_IBKSC.shape[1:-2], blocks.k_IBKSC.shape[-1], size)
        dq_IBKRC, *turned = jax.lax.fori_loop(key, last_I[key] + 1, meet, (dq_IBKRC, jnp.zeros(shape), jnp.zeros(shape)))
        return dq_IBKRC, tuple(turned)

    numbers = jnp.arange(blocks.q_IBKRC.shape[0], dtype=jnp.int32)
    dq, (dk, dv) = jax.lax.scan(one, jnp.zeros(blocks.q_IBKRC.shape), numbers)
    dk, dv = dk.swapaxes(-1, -2), dv.swapaxes(-1, -2)
    dq = _joined(dq * jnp.float32(q.shape[-1] ** -0.5), q.shape)
    return dq.astype(q.dtype), _joined(dk, k.shape).astype(k.dtype), _joined(dv, v.shape).astype(v.dtype), None


_gather.defvjp(_gather_forward, _gather_backward)


def _ranges(segments_IBS: Int[Array, "I B S"]) -> tuple[Int[Array, " I"], Int[Array, " I"]]:
    """Find the first block of keys that each block of queries meets, and the last block of queries that each of keys meets.

    Segments never fall along a row, so the blocks that share one with a given block lie side by side. What lies between for
    the sake of another row is masked: a query's own block comes last and holds its own key, by which whatever it gathered
    where it sees nothing is shrunk to zero.
    """
    lowest_IB, highest_IB = segments_IBS.min(axis=-1), segments_IBS.max(axis=-1)
    meets_II = jnp.any(highest_IB[None] >= lowest_IB[:, None], axis=-1)  # [query, key]; true from some key on
    first_I = jnp.argmax(meets_II, axis=1)
    last_I = segments_IBS.shape[0] - 1 - jnp.argmax(meets_II[::-1], axis=0)
    return first_I.astype(jnp.int32), last_I.astype(jnp.int32)


def _scores(blocks: _Blocks, query: Array, key: Array) -> Float[Array, "B K R S"]:
    scores = _product("BKRC,BKSC->BKRS", blocks.q_IBKRC[query], blocks.k_IBKSC[key])
    size = scores.shape[-1]
    place = jnp.arange(size)
    causal_SS = (query > key) | (place[:, None] >= place[None, :])
    seen_BSS = causal_SS[None] & (blocks.segments_IBS[query][:, :, None] == blocks.segments_IBS[key][:, None, :])
    apart = scores.reshape(*scores.shape[:2], -1, size, size)
    return jnp.where(seen_BSS[:, None, None], apart, jnp.float32(_HIDDEN)).reshape(scores.shape)


def _product(letters: str, left: Array, right: Array) -> Array:
    return jnp.einsum(letters, left.astype(right.dtype), right, preferred_element_type=jnp.float32)


def _cut(q: Array, k: Array, v: Array, segments: Array, size: int) -> _Blocks:
    groups = k.shape[2]
    scaled = (q.astype(jnp.float32) * jnp.float32(q.shape[-1] ** -0.5)).astype(q.dtype)
    cut_segments = segments.reshape(segments.shape[0], -1, size).swapaxes(0, 1)
    return _Blocks(_split(scaled, size, groups), _split(k, size, groups), _split(v, size, groups), cut_segments)


def _split(x_BTHC: Array, size: int, groups: int) -> Float[Array, "I B K R C"]:
    rows, length, heads, channels = x_BTHC.shape
    apart = x_BTHC.reshape(rows, length // size, size, groups, heads // groups, channels)
    return apart.transpose(1, 0, 3, 4, 2, 5).reshape(length // size, rows, groups, heads // groups * size, channels)


def _joined(x_IBKRC: Array, shape: tuple[int, ...]) -> Float[Array, "B T H C"]:
    rows, length, heads, channels = shape
    count, _, groups, _, _ = x_IBKRC.shape
    apart = x_IBKRC.reshape(count, rows, groups, heads // groups, length // count, channels)
    return apart.transpose(1, 0, 4, 2, 3, 5).reshape(shape)
