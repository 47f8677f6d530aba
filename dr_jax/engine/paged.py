"""Attention over pages of keys and values, in plain JAX: it runs anywhere, and is what kernels are held against.

In:    the pools, the pages of each row, queries at known positions
Out:   what each query gathered, and the pools with the new keys and values in them
Holds: who decodes pays for the blocks of pages that each row has, who prefills for those of the longest row; a block that a row
       does not need adds exactly nothing to it, and what a row gathers does not depend on the other rows, but for rounding
       where a product of several rows is computed in another order than that of one (not with XLA's own on a CPU)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dr_jax.engine.items import Blocks, Items, Tiles
from dr_jax.engine.pages import SCRATCH
from dr_jax.model.decoder import Attend

_HIDDEN = -1e30  # finite, so that the difference of two is not NaN


class Pools(NamedTuple):
    """Keys and values of every page of every layer; heads come before pages, so they can be split over devices."""

    k_LKPWC: Float[Array, "L K P W C"]
    v_LKPWC: Float[Array, "L K P W C"]


class Queries(NamedTuple):
    """Where queries stand.

    Args:
        tables_BX: pages of each row.
        positions_BQ: of the queries.
        valid_BQ: which of them are looked at.
    """

    tables_BX: Int[Array, "B X"]
    positions_BQ: Int[Array, "B Q"]
    valid_BQ: Bool[Array, "B Q"]


def paged_attention(
    pools: Pools,
    tables_BX: Int[Array, "B X"],
    positions_BQ: Int[Array, "B Q"],
    valid_BQ: Bool[Array, "B Q"],
    tiles: Tiles,
    items: Items | None = None,
) -> Attend[Pools]:
    """Return attention that first writes the new keys and values to their pages, then reads all pages of each row.

    Blocks of keys are met with a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867): stretches of
    queries meet them one after the other, as many as the longest valid row has; single queries meet those that their own row
    has, all rows' blocks in one list (as in Flash-Decoding, Dao et al. 2023), what several rows share once (as in Hydragen,
    Juravsky et al., arXiv 2402.05099).

    Args:
        pools: where the pages are.
        tables_BX: pages of each row.
        positions_BQ: of the queries.
        valid_BQ: which of them are looked at.
        tiles: how blocks are cut.
        items: the blocks of single queries (Q = 1); None where there are stretches of them, or a kernel.
    """
    queries = Queries(tables_BX, positions_BQ, valid_BQ)
    pages_BQ, offsets_BQ = _places(queries, pools.k_LKPWC.shape[3])

    def attend(
        cache: Pools,
        layer: Int[Array, ""],
        q_BTHC: Float[Array, "B T H C"],
        k_BTKC: Float[Array, "B T K C"],
        v_BTKC: Float[Array, "B T K C"],
    ) -> tuple[Float[Array, "B T H C"], Pools]:
        write = partial(_written, flat=tiles.flat, layer=layer, pages_BQ=pages_BQ, offsets_BQ=offsets_BQ)
        pools = Pools(write(cache.k_LKPWC, k_BTKC), write(cache.v_LKPWC, v_BTKC))
        return _gathered(q_BTHC, pools, layer, queries, tiles, items), pools

    return attend


def mixed_attention(pools: Pools, stretches: Queries, singles: Queries, tiles: Tiles, items: Items | None) -> Attend[Pools]:
    """Return attention of stretches of queries and of single ones, in one batch of tokens with one token in a row.

    All that is new is written before any of it is read, so that the pools stay where they are.

    Args:
        pools: where the pages are.
        stretches: the first tokens, row after row.
        singles: the tokens after them.
        tiles: how blocks are cut.
        items: the blocks of the single ones; None where there is a kernel.
    """
    page_size, shape = pools.k_LKPWC.shape[3], stretches.positions_BQ.shape
    count = stretches.positions_BQ.size
    both = (_places(stretches, page_size), _places(singles, page_size))
    pages_N1, offsets_N1 = (jnp.concatenate([one.reshape(-1, 1), other]) for one, other in zip(*both, strict=True))

    def attend(
        cache: Pools,
        layer: Int[Array, ""],
        q_BTHC: Float[Array, "B T H C"],
        k_BTKC: Float[Array, "B T K C"],
        v_BTKC: Float[Array, "B T K C"],
    ) -> tuple[Float[Array, "B T H C"], Pools]:
        write = partial(_written, flat=tiles.flat, layer=layer, pages_BQ=pages_N1, offsets_BQ=offsets_N1)
        pools = Pools(write(cache.k_LKPWC, k_BTKC), write(cache.v_LKPWC, v_BTKC))
        q_BQHC = q_BTHC[:count].reshape(*shape, *q_BTHC.shape[2:])
        out_BQHC = _gathered(q_BQHC, pools, layer, stretches, tiles, None)
        out_B1HC = _gathered(q_BTHC[count:], pools, layer, singles, tiles, items)
        return jnp.concatenate([out_BQHC.reshape(count, 1, *out_BQHC.shape[2:]), out_B1HC]), pools

    return attend


def _places(queries: Queries, page_size: int) -> tuple[Int[Array, "B Q"], Int[Array, "B Q"]]:
    """Return the page of each query, and its place in it."""
    pages_BQ = jnp.take_along_axis(queries.tables_BX, queries.positions_BQ // page_size, axis=1, mode="clip")
    return jnp.where(queries.valid_BQ, pages_BQ, SCRATCH), queries.positions_BQ % page_size


def _gathered(
    q_BQHC: Float[Array, "B Q H C"],
    pools: Pools,
    layer: Int[Array, ""],
    queries: Queries,
    tiles: Tiles,
    items: Items | None,
) -> Float[Array, "B Q H C"]:
    tables_BX, positions_BQ, valid_BQ = queries
    if tiles.kernel is not None and (tiles.kernel.stretches or positions_BQ.shape[1] == 1):
        return tiles.kernel(q_BQHC, pools, layer, tables_BX, jnp.where(valid_BQ, positions_BQ + 1, 0))
    if items is not None:
        return _met_each(q_BQHC, pools, layer, positions_BQ[:, 0], items, tiles)
    longest = jnp.max(jnp.where(valid_BQ, positions_BQ, 0)) + 1
    blocks = (longest + tiles.tokens - 1) // tiles.tokens
    return _met(q_BQHC, pools, layer, tables_BX, positions_BQ, blocks, tiles)


def _written(
    pool_LKPWC: Array, new_BQKC: Array, *, flat: bool, layer: Array, pages_BQ: Array, offsets_BQ: Array
) -> Float[Array, "L K P W C"]:
    new_BQKC = new_BQKC.astype(pool_LKPWC.dtype)
    if flat:
        return pool_LKPWC.at[layer, :, pages_BQ, offsets_BQ].set(new_BQKC, mode="promise_in_bounds")
    heads_K = jnp.arange(pool_LKPWC.shape[1], dtype=jnp.int32)[None, None]
    at = (layer, heads_K, pages_BQ[..., None], offsets_BQ[..., None])
    return pool_LKPWC.at[at].set(new_BQKC, mode="promise_in_bounds")


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


def _met_each(
    q_B1HC: Float[Array, "B 1 H C"],
    pools: Pools,
    layer: Int[Array, ""],
    positions_B: Int[Array, " B"],
    items: Items,
    tiles: Tiles,
) -> Float[Array, "B 1 H C"]:
    rows, _, heads, channels = q_B1HC.shape
    kv_heads = pools.k_LKPWC.shape[1]
    groups = heads // kv_heads
    scaled = (q_B1HC.astype(jnp.float32) * channels**-0.5).astype(pools.k_LKPWC.dtype)
    q_KBGC = scaled.reshape(rows, kv_heads, groups, channels).transpose(1, 0, 2, 3)
    meet = partial(_met_blocks, q_KBGC, positions_B, pools, layer, tiles)
    count = items.shared.rows_NS.size + items.alone.rows_NS.size
    shape = (kv_heads, count, groups)
    met = (jnp.full(shape, _HIDDEN, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros((*shape, channels), jnp.float32))
    met = meet(items.shared, 0, met)
    best_KNG, total_KNG, out_KNGC = meet(items.alone, items.shared.rows_NS.size, met)
    # Each row's blocks, in their order: what a row gathers does not depend on where its items stand in the list.
    there_BI = items.there_BI[None, :, :, None]
    best_KBIG = jnp.where(there_BI, best_KNG[:, items.places_BI], jnp.float32(_HIDDEN))
    share_KBIG = jnp.where(there_BI, jnp.exp(best_KBIG - best_KBIG.max(axis=2, keepdims=True)), 0.0)
    total_KBG = (share_KBIG * total_KNG[:, items.places_BI]).sum(axis=2)
    # A row that is over gathers nothing. A sum, not a product of matrices: XLA's CPU backend fuses the lookup into it.
    share_KBIG = share_KBIG / jnp.maximum(total_KBG, jnp.finfo(jnp.float32).tiny)[:, :, None]
    out_KBGC = (share_KBIG[..., None] * out_KNGC[:, items.places_BI]).sum(axis=2)
    return out_KBGC.transpose(1, 0, 2, 3).reshape(q_B1HC.shape).astype(q_B1HC.dtype)


def _met_blocks(
    q_KBGC: Float[Array, "K B G C"],
    positions_B: Int[Array, " B"],
    pools: Pools,
    layer: Int[Array, ""],
    tiles: Tiles,
    blocks: Blocks,
    first: int,
    met: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    """Let every block meet the queries of its rows; note maximum, sum and what was gathered from place `first` on."""
    (kv_heads, _, groups, channels), members, at_once = q_KBGC.shape, blocks.rows_NS.shape[1], tiles.at_once
    at_once = max(at_once // members, 1)

    def meet(step: Array, met: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        cut: Callable[[Array], Array] = lambda one: jax.lax.dynamic_slice_in_dim(one, step * at_once, at_once)  # noqa: E731
        pages_MX, starts_M, rows_MS = cut(blocks.pages_NX), cut(blocks.starts_N), cut(blocks.rows_NS)
        q_KMRC = q_KBGC[:, rows_MS].reshape(kv_heads, at_once, members * groups, channels)
        scores = jnp.einsum(
            "KMRC,KMTC->KMRT", q_KMRC, _read(pools.k_LKPWC, layer, pages_MX, tiles.flat), preferred_element_type=jnp.float32
        )
        places_MT = starts_M[:, None] + jnp.arange(tiles.tokens, dtype=jnp.int32)[None]
        seen_MST = places_MT[:, None] <= positions_B[rows_MS][:, :, None]
        seen_MRT = jnp.repeat(seen_MST, groups, axis=1)
        scores = jnp.where(seen_MRT[None], scores, jnp.float32(_HIDDEN))
        best_KMR = scores.max(axis=-1)
        weights = jnp.exp(scores - best_KMR[..., None])
        values = _read(pools.v_LKPWC, layer, pages_MX, tiles.flat)
        out = jnp.einsum("KMRT,KMTC->KMRC", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        place = first + step * (at_once * members)
        shaped: Callable[[Array], Array] = lambda one: one.reshape(kv_heads, at_once * members, groups, *one.shape[3:])  # noqa: E731
        found = shaped(best_KMR), shaped(weights.sum(axis=-1)), shaped(out)
        return tuple(jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=1) for old, new in zip(met, found, strict=True))

    return jax.lax.fori_loop(0, (blocks.used + at_once - 1) // at_once, meet, met)
