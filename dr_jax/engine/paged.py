"""Attention over pages of keys and values, in plain JAX: it runs anywhere, and is what kernels are held against.

In:    the pools, the pages of each row, queries at known positions
Out:   what each query gathered, and the pools with the new keys and values in them
Holds: who decodes pays for the blocks of pages that each row has, who prefills for those of the longest row; a block that a row
       does not need adds exactly nothing to it, and what a row gathers does not depend on the other rows
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dr_jax.engine.kernels import Decoding
from dr_jax.engine.pages import SCRATCH
from dr_jax.model.decoder import Attend

_HIDDEN = -1e30  # finite, so that the difference of two is not NaN


class Tiles(NamedTuple):
    """How attention is cut up; what is gathered does not depend on it but for rounding.

    Args:
        tokens: of a block of keys, a multiple of the page size.
        at_once: blocks that single queries meet in one step.
        kernel: how single queries meet pages; None is plain JAX.
        flat: read a page as one stretch of numbers, which is quicker on a CPU; a TPU would copy the pools to lay them out so.
    """

    tokens: int
    at_once: int
    kernel: Decoding | None = None
    flat: bool = True


class Pools(NamedTuple):
    """Keys and values of every page of every layer; heads come before pages, so they can be split over devices."""

    k_LKPWC: Float[Array, "L K P W C"]
    v_LKPWC: Float[Array, "L K P W C"]


class Items(NamedTuple):
    """Every block of every row, row after row.

    Args:
        rows_N: the row of each item; N is the most that there can be.
        blocks_N: which block of its row it is.
        firsts_B: the first item of each row.
        counts_B: how many items a row has.
    """

    rows_N: Int[Array, " N"]
    blocks_N: Int[Array, " N"]
    firsts_B: Int[Array, " B"]
    counts_B: Int[Array, " B"]


def paged_attention(
    pools: Pools, tables_BX: Int[Array, "B X"], positions_BQ: Int[Array, "B Q"], valid_BQ: Bool[Array, "B Q"], tiles: Tiles
) -> Attend[Pools]:
    """Return attention that first writes the new keys and values to their pages, then reads all pages of each row.

    Blocks of keys are met with a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867): stretches of
    queries meet them one after the other, as many as the longest valid row has; single queries meet those that their own row
    has, all rows' blocks in one list (as in Flash-Decoding, Dao et al. 2023).
    """
    page_size = pools.k_LKPWC.shape[3]
    single, kernel = positions_BQ.shape[1] == 1, tiles.kernel
    lengths_B = jnp.where(valid_BQ[:, 0], positions_BQ[:, 0] + 1, 0)
    items = _listed(lengths_B, tables_BX.shape[1] * page_size, tiles) if single and kernel is None else None

    def attend(
        cache: Pools,
        layer: Int[Array, ""],
        q_BTHC: Float[Array, "B T H C"],
        k_BTKC: Float[Array, "B T K C"],
        v_BTKC: Float[Array, "B T K C"],
    ) -> tuple[Float[Array, "B T H C"], Pools]:
        pages_BQ = jnp.take_along_axis(tables_BX, positions_BQ // page_size, axis=1, mode="clip")
        pages_BQ = jnp.where(valid_BQ, pages_BQ, SCRATCH)
        write = partial(_written, layer=layer, pages_BQ=pages_BQ, offsets_BQ=positions_BQ % page_size)
        pools = Pools(write(cache.k_LKPWC, k_BTKC), write(cache.v_LKPWC, v_BTKC))
        if single and kernel is not None:  # where a row has no place, the kernel would gather what lies in its memory
            return kernel(q_BTHC, pools, layer, tables_BX, jnp.maximum(lengths_B, 1)), pools
        if items is not None:
            return _met_each(q_BTHC, pools, layer, tables_BX, positions_BQ[:, 0], items, tiles), pools
        longest = jnp.max(jnp.where(valid_BQ, positions_BQ, 0)) + 1
        blocks = (longest + tiles.tokens - 1) // tiles.tokens
        return _met(q_BTHC, pools, layer, tables_BX, positions_BQ, blocks, tiles), pools

    return attend


def _written(pool_LKPWC: Array, new_BQKC: Array, *, layer: Array, pages_BQ: Array, offsets_BQ: Array) -> Array:
    return pool_LKPWC.at[layer, :, pages_BQ, offsets_BQ].set(new_BQKC.astype(pool_LKPWC.dtype), mode="promise_in_bounds")


def _read(pool_LKPWC: Array, layer: Int[Array, ""], pages_BX: Int[Array, "B X"], flat: bool) -> Float[Array, "K B T C"]:
    """Gather the pages of each row, T = X W tokens, one after the other."""
    kv_heads, channels = pool_LKPWC.shape[1], pool_LKPWC.shape[-1]
    pages_LKPN = pool_LKPWC.reshape(*pool_LKPWC.shape[:3], -1) if flat else pool_LKPWC
    take: Callable[[Array], Array] = lambda pages_LPN: pages_LPN.at[layer, pages_BX].get(mode="promise_in_bounds")  # noqa: E731
    return jax.vmap(take, in_axes=1)(pages_LKPN).reshape(kv_heads, len(pages_BX), -1, channels)


def _met(
    q_BQHC: Float[Array, "B Q H C"],
    pools: Pools,
    layer: Int[Array, ""],
    tables_BX: Int[Array, "B X"],
    positions_BQ: Int[Array, "B Q"],
    blocks: Int[Array, ""],
    tiles: Tiles,
) -> Float[Array, "B Q H C"]:
    rows, queries, heads, channels = q_BQHC.shape
    kv_heads, page_size = pools.k_LKPWC.shape[1], pools.k_LKPWC.shape[3]
    groups = heads // kv_heads
    scaled = (q_BQHC.astype(jnp.float32) * channels**-0.5).astype(pools.k_LKPWC.dtype)
    # The queries of all heads that share a key head, side by side: R = G Q.
    q_KBRC = scaled.reshape(rows, queries, kv_heads, groups, channels).transpose(2, 0, 3, 1, 4)
    q_KBRC = q_KBRC.reshape(kv_heads, rows, groups * queries, channels)
    positions_BR = jnp.tile(positions_BQ, (1, groups))
    block, wide = tiles.tokens, tiles.tokens // page_size
    tables_BX = jnp.pad(tables_BX, ((0, 0), (0, -tables_BX.shape[1] % wide)))

    def meet(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        best_KBR, total_KBR, out_KBRC = carry
        pages_BX = jax.lax.dynamic_slice_in_dim(tables_BX, index * wide, wide, axis=1)
        # Queries last: a CPU's vector units take maxima and sums of many queries at once, but not of many keys.
        scores = jnp.einsum(
            "KBTC,KBRC->KBTR", _read(pools.k_LKPWC, layer, pages_BX, tiles.flat), q_KBRC, preferred_element_type=jnp.float32
        )
        places_T = index * block + jnp.arange(block, dtype=jnp.int32)
        seen_BTR = places_T[None, :, None] <= positions_BR[:, None, :]
        scores = jnp.where(seen_BTR[None], scores, jnp.float32(_HIDDEN))
        best = jnp.maximum(best_KBR, scores.max(axis=2))
        weights, shrink = jnp.exp(scores - best[:, :, None]), jnp.exp(best_KBR - best)
        values = _read(pools.v_LKPWC, layer, pages_BX, tiles.flat)
        out = jnp.einsum("KBTR,KBTC->KBRC", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return best, total_KBR * shrink + weights.sum(axis=2), out_KBRC * shrink[..., None] + out

    shape = q_KBRC.shape[:3]
    empty = (jnp.full(shape, _HIDDEN, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(q_KBRC.shape, jnp.float32))
    _, total_KBR, out_KBRC = jax.lax.fori_loop(0, blocks, meet, empty)
    out = (out_KBRC / total_KBR[..., None]).reshape(kv_heads, rows, groups, queries, channels)
    return out.transpose(1, 3, 0, 2, 4).reshape(q_BQHC.shape).astype(q_BQHC.dtype)


def _listed(lengths_B: Int[Array, " B"], most: int, tiles: Tiles) -> Items:
    block, at_once = tiles.tokens, tiles.at_once
    counts_B = (lengths_B + block - 1) // block
    ends_B = jnp.cumsum(counts_B)
    items_N = jnp.arange(-(-len(lengths_B) * -(-most // block) // at_once) * at_once, dtype=jnp.int32)
    rows_N = jnp.minimum(jnp.sum(items_N[:, None] >= ends_B[None, :], axis=1), len(lengths_B) - 1).astype(jnp.int32)
    firsts_B = ends_B - counts_B
    return Items(rows_N, items_N - firsts_B[rows_N], firsts_B, counts_B)


def _met_each(
    q_B1HC: Float[Array, "B 1 H C"],
    pools: Pools,
    layer: Int[Array, ""],
    tables_BX: Int[Array, "B X"],
    positions_B: Int[Array, " B"],
    items: Items,
    tiles: Tiles,
) -> Float[Array, "B 1 H C"]:
    (rows, _, heads, channels), block, at_once = q_B1HC.shape, tiles.tokens, tiles.at_once
    kv_heads, page_size = pools.k_LKPWC.shape[1], pools.k_LKPWC.shape[3]
    groups, wide, count = heads // kv_heads, block // page_size, len(items.rows_N)
    scaled = (q_B1HC.astype(jnp.float32) * channels**-0.5).astype(pools.k_LKPWC.dtype)
    q_KBGC = scaled.reshape(rows, kv_heads, groups, channels).transpose(1, 0, 2, 3)
    tables_BIX = jnp.pad(tables_BX, ((0, 0), (0, -tables_BX.shape[1] % wide))).reshape(rows, -1, wide)

    def meet(step: Array, met: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        start = step * at_once
        rows_M, blocks_M = (jax.lax.dynamic_slice_in_dim(one, start, at_once) for one in (items.rows_N, items.blocks_N))
        blocks_M = jnp.minimum(blocks_M, tables_BIX.shape[1] - 1)  # what comes after the last item
        pages_MX = tables_BIX[rows_M, blocks_M]
        keys = _read(pools.k_LKPWC, layer, pages_MX, tiles.flat)
        scores = jnp.einsum("KMGC,KMTC->KMGT", q_KBGC[:, rows_M], keys, preferred_element_type=jnp.float32)
        places_MT = blocks_M[:, None] * block + jnp.arange(block, dtype=jnp.int32)[None]
        seen_MT = places_MT <= positions_B[rows_M][:, None]
        scores = jnp.where(seen_MT[None, :, None, :], scores, jnp.float32(_HIDDEN))
        best_KMG = scores.max(axis=-1)
        weights = jnp.exp(scores - best_KMG[..., None])
        values = _read(pools.v_LKPWC, layer, pages_MX, tiles.flat)
        out = jnp.einsum("KMGT,KMTC->KMGC", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        found = best_KMG, weights.sum(axis=-1), out
        return tuple(jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1) for old, new in zip(met, found, strict=True))

    shape = (kv_heads, count, groups)
    empty = (jnp.full(shape, _HIDDEN, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros((*shape, channels), jnp.float32))
    steps = (items.counts_B.sum() + at_once - 1) // at_once
    best_KNG, total_KNG, out_KNGC = jax.lax.fori_loop(0, steps, meet, empty)
    # Each row's blocks, in their order: what a row gathers does not depend on where its items stand in the list.
    places_1I = jnp.arange(tables_BIX.shape[1], dtype=jnp.int32)[None]
    items_BI = jnp.minimum(items.firsts_B[:, None] + places_1I, count - 1)
    there_BI = (places_1I < items.counts_B[:, None])[None, :, :, None]
    best_KBIG = jnp.where(there_BI, best_KNG[:, items_BI], jnp.float32(_HIDDEN))
    share_KBIG = jnp.where(there_BI, jnp.exp(best_KBIG - best_KBIG.max(axis=2, keepdims=True)), 0.0)
    total_KBG = (share_KBIG * total_KNG[:, items_BI]).sum(axis=2)
    out_KBGC = jnp.einsum("KBIG,KBIGC->KBGC", share_KBIG, out_KNGC[:, items_BI])
    out_KBGC = out_KBGC / jnp.maximum(total_KBG, jnp.finfo(jnp.float32).tiny)[..., None]  # a row that is over gathers nothing
    return out_KBGC.transpose(1, 0, 2, 3).reshape(q_B1HC.shape).astype(q_B1HC.dtype)
