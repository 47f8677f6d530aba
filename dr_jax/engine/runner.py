"""The compiled programs: prefill, decode and copy, over pools of pages that they update in place.

In:    weights, the pools (donated), rows of small arrays that say what to do
Out:   the pools, drawn ids and their log-probabilities
Holds: lengths, budgets, temperatures, stop ids and page tables are data; attention walks over as many blocks of pages as
       the longest row needs, so neither shapes nor programs depend on lengths, and a block that a row does not need adds
       exactly nothing to it
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Bool, Float, Int

from dr_jax.engine.pages import SCRATCH
from dr_jax.engine.sample import Draws, draw
from dr_jax.model.decoder import Attend, Weights, head, hidden_states
from dr_jax.model.sizes import Sizes

_HIDDEN = -1e30  # finite, so that the difference of two is not NaN
COPIES = 16  # page copies in one call


class Pools(NamedTuple):
    """Keys and values of every page of every layer; heads come before pages, so they can be split over devices."""

    k_LKPWC: Float[Array, "L K P W C"]
    v_LKPWC: Float[Array, "L K P W C"]


class PrefillRows(NamedTuple):
    """Stretches of ids to compute. Several rows may be stretches of one request.

    Args:
        ids_BQ: the ids; anything after `counts_B` of them.
        starts_B: position of the first.
        counts_B: how many there are; 0 is an empty row.
        tables_BX: pages of the row's request.
        draws: how to draw the id that follows the last one.
    """

    ids_BQ: Int[Array, "B Q"]
    starts_B: Int[Array, " B"]
    counts_B: Int[Array, " B"]
    tables_BX: Int[Array, "B X"]
    draws: Draws


class DecodeRows(NamedTuple):
    """Requests to draw ids for.

    Args:
        ids_B: the last id of each, not computed yet.
        lengths_B: its position, which is how many tokens are in pages.
        lefts_B: how many ids may be drawn in this call; 0 is an empty row.
        stops_BE: ids that end the request, padded with -1.
        tables_BX: pages, with room for what is drawn.
        draws: how; `indices_B` is that of the first id.
    """

    ids_B: Int[Array, " B"]
    lengths_B: Int[Array, " B"]
    lefts_B: Int[Array, " B"]
    stops_BE: Int[Array, "B E"]
    tables_BX: Int[Array, "B X"]
    draws: Draws


class Drawn(NamedTuple):
    """What a decode call drew: the first `counts_B` of each row."""

    ids_BN: Int[Array, "B N"]
    logprobs_BN: Float[Array, "B N"]
    counts_B: Int[Array, " B"]


@lru_cache(maxsize=16)
def programs(sizes: Sizes, *, tokens_per_call: int, block: int, everywhere: Sharding) -> Programs:
    """Return the programs for these constants; engines that are alike share what is compiled."""
    return Programs(sizes, tokens_per_call=tokens_per_call, block=block, everywhere=everywhere)


class Programs:
    """Every program of an engine, compiled on first use.

    Args:
        sizes: of the model.
        tokens_per_call: ids that a decode call draws per row.
        block: tokens that attention meets at a time; a multiple of the page size.
        everywhere: where small arrays lie: on every device of the engine.
    """

    def __init__(self, sizes: Sizes, *, tokens_per_call: int, block: int, everywhere: Sharding) -> None:
        self.sizes, self.everywhere = sizes, everywhere
        self.pools = Pools(self._pool_place(), self._pool_place())
        drawn = Drawn(everywhere, everywhere, everywhere)
        self.prefill = jax.jit(
            partial(prefill, sizes, block), donate_argnums=1, out_shardings=(self.pools, everywhere, everywhere)
        )
        self.decode = jax.jit(
            partial(decode, sizes, block, tokens_per_call), donate_argnums=1, out_shardings=(self.pools, drawn)
        )
        self.copy = jax.jit(copy, donate_argnums=0, out_shardings=self.pools)

    def empty_pools(self, pages: int, page_size: int, dtype: str) -> Pools:
        """Make the pools, zeros."""
        s = self.sizes
        shape = (s.layers, s.kv_heads, pages, page_size, s.head_dim)
        pools: Pools = jax.jit(lambda: Pools(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)), out_shardings=self.pools)()
        return pools

    def place(self, rows: Any) -> Any:
        """Put small host arrays onto every device."""
        return jax.device_put(rows, self.everywhere)

    def _pool_place(self) -> Sharding:
        """Key heads over `tensor` where they divide, everything else on every device."""
        place = self.everywhere
        if not isinstance(place, NamedSharding) or self.sizes.kv_heads % place.mesh.shape.get("tensor", 1):
            return place
        return NamedSharding(place.mesh, PartitionSpec(None, "tensor" if "tensor" in place.mesh.shape else None))


def prefill(
    sizes: Sizes, block: int, weights: Weights, pools: Pools, rows: PrefillRows
) -> tuple[Pools, Int[Array, " B"], Float[Array, " B"]]:
    """Compute keys and values of every stretch, and draw the id that follows each."""
    places_BQ = jnp.arange(rows.ids_BQ.shape[1], dtype=jnp.int32)[None, :]
    positions_BQ = rows.starts_B[:, None] + places_BQ
    valid_BQ = places_BQ < rows.counts_B[:, None]
    attend = paged_attention(rows.tables_BX, positions_BQ, valid_BQ, block)
    hidden_BQD, pools = hidden_states(weights, sizes, rows.ids_BQ, positions_BQ, attend, pools)
    last_B11 = jnp.maximum(rows.counts_B - 1, 0)[:, None, None]
    hidden_BD = jnp.take_along_axis(hidden_BQD, last_B11, axis=1)[:, 0]
    return pools, *draw(_logits(weights, sizes, hidden_BD), rows.draws)


def decode(sizes: Sizes, block: int, tokens: int, weights: Weights, pools: Pools, rows: DecodeRows) -> tuple[Pools, Drawn]:
    """Draw up to `tokens` ids per row; a row ends at a stop id or its budget, the call when all rows did."""

    class Now(NamedTuple):
        step: Int[Array, ""]
        pools: Pools
        ids_B: Int[Array, " B"]
        lefts_B: Int[Array, " B"]
        drawn: Drawn

    def going_on(now: Now) -> Bool[Array, ""]:
        return (now.step < tokens) & jnp.any(now.lefts_B > 0)

    def step(now: Now) -> Now:
        active_B = now.lefts_B > 0
        positions_B1 = (rows.lengths_B + now.drawn.counts_B)[:, None]
        attend = paged_attention(rows.tables_BX, positions_B1, active_B[:, None], block)
        hidden_B1D, pools = hidden_states(weights, sizes, now.ids_B[:, None], positions_B1, attend, now.pools)
        how = rows.draws._replace(indices_B=rows.draws.indices_B + now.drawn.counts_B)
        ids_B, logprobs_B = draw(_logits(weights, sizes, hidden_B1D[:, 0]), how)
        stopped_B = jnp.any(ids_B[:, None] == rows.stops_BE, axis=-1)
        drawn = Drawn(
            now.drawn.ids_BN.at[:, now.step].set(ids_B),
            now.drawn.logprobs_BN.at[:, now.step].set(logprobs_B),
            now.drawn.counts_B + active_B.astype(jnp.int32),
        )
        lefts_B = jnp.where(stopped_B, 0, jnp.maximum(now.lefts_B - 1, 0))
        return Now(now.step + 1, pools, ids_B, lefts_B, drawn)

    count = rows.ids_B.shape[0]
    none = Drawn(jnp.zeros((count, tokens), jnp.int32), jnp.zeros((count, tokens), jnp.float32), jnp.zeros((count,), jnp.int32))
    end = jax.lax.while_loop(going_on, step, Now(jnp.int32(0), pools, rows.ids_B, rows.lefts_B, none))
    return end.pools, end.drawn


def copy(pools: Pools, pages_N2: Int[Array, "N 2"]) -> Pools:
    """Copy page to page, one after the other: a later copy may read or overwrite what an earlier one wrote."""

    def one(place: Int[Array, ""], pools: Pools) -> Pools:
        source, target = pages_N2[place, 0], pages_N2[place, 1]

        def copied(pool: Array) -> Array:
            page = jax.lax.dynamic_slice_in_dim(pool, source, 1, axis=2)
            return jax.lax.dynamic_update_slice_in_dim(pool, page, target, axis=2)

        return Pools(copied(pools.k_LKPWC), copied(pools.v_LKPWC))

    return jax.lax.fori_loop(0, pages_N2.shape[0], one, pools)


def paged_attention(
    tables_BX: Int[Array, "B X"], positions_BQ: Int[Array, "B Q"], valid_BQ: Bool[Array, "B Q"], block: int
) -> Attend[Pools]:
    """Return attention that first writes the new keys and values to their pages, then reads all pages of each row.

    Blocks of `block` tokens are met one after the other with a running maximum and sum (Milakov and Gimelshein,
    arXiv 1805.02867), as many as the longest valid row has.
    """

    def attend(
        cache: Pools,
        layer: Int[Array, ""],
        q_BTHC: Float[Array, "B T H C"],
        k_BTKC: Float[Array, "B T K C"],
        v_BTKC: Float[Array, "B T K C"],
    ) -> tuple[Float[Array, "B T H C"], Pools]:
        page_size = cache.k_LKPWC.shape[3]
        pages_BQ = jnp.take_along_axis(tables_BX, positions_BQ // page_size, axis=1, mode="clip")
        pages_BQ = jnp.where(valid_BQ, pages_BQ, SCRATCH)
        write = partial(_written, layer=layer, pages_BQ=pages_BQ, offsets_BQ=positions_BQ % page_size)
        pools = Pools(write(cache.k_LKPWC, k_BTKC), write(cache.v_LKPWC, v_BTKC))
        longest = jnp.max(jnp.where(valid_BQ, positions_BQ, 0)) + 1
        return _met(q_BTHC, pools, layer, tables_BX, positions_BQ, (longest + block - 1) // block, block), pools

    return attend


def _written(pool_LKPWC: Array, new_BQKC: Array, *, layer: Array, pages_BQ: Array, offsets_BQ: Array) -> Array:
    return pool_LKPWC.at[layer, :, pages_BQ, offsets_BQ].set(new_BQKC.astype(pool_LKPWC.dtype), mode="promise_in_bounds")


def _met(
    q_BQHC: Float[Array, "B Q H C"],
    pools: Pools,
    layer: Int[Array, ""],
    tables_BX: Int[Array, "B X"],
    positions_BQ: Int[Array, "B Q"],
    blocks: Int[Array, ""],
    block: int,
) -> Float[Array, "B Q H C"]:
    rows, queries, heads, channels = q_BQHC.shape
    kv_heads, page_size = pools.k_LKPWC.shape[1], pools.k_LKPWC.shape[3]
    groups = heads // kv_heads
    scaled = (q_BQHC.astype(jnp.float32) * channels**-0.5).astype(pools.k_LKPWC.dtype)
    # The queries of all heads that share a key head, side by side: R = G Q.
    q_KBRC = scaled.reshape(rows, queries, kv_heads, groups, channels).transpose(2, 0, 3, 1, 4)
    q_KBRC = q_KBRC.reshape(kv_heads, rows, groups * queries, channels)
    positions_BR = jnp.tile(positions_BQ, (1, groups))
    wide = block // page_size
    tables_BX = jnp.pad(tables_BX, ((0, 0), (0, -tables_BX.shape[1] % wide)))

    def read(pool_LKPWC: Array, pages_BX: Array) -> Float[Array, "K B T C"]:
        pool = pool_LKPWC.reshape(*pool_LKPWC.shape[:3], -1)
        take: Callable[[Array], Array] = lambda one: one.at[layer, pages_BX].get(mode="promise_in_bounds")  # noqa: E731
        return jax.vmap(take, in_axes=1)(pool).reshape(kv_heads, rows, block, channels)

    def meet(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        best_KBR, total_KBR, out_KBRC = carry
        pages_BX = jax.lax.dynamic_slice_in_dim(tables_BX, index * wide, wide, axis=1)
        scores = jnp.einsum("KBRC,KBTC->KBRT", q_KBRC, read(pools.k_LKPWC, pages_BX), preferred_element_type=jnp.float32)
        places_T = index * block + jnp.arange(block, dtype=jnp.int32)
        seen_BRT = places_T[None, None, :] <= positions_BR[:, :, None]
        scores = jnp.where(seen_BRT[None], scores, jnp.float32(_HIDDEN))
        best = jnp.maximum(best_KBR, scores.max(axis=-1))
        weights, shrink = jnp.exp(scores - best[..., None]), jnp.exp(best_KBR - best)
        values = read(pools.v_LKPWC, pages_BX)
        out = jnp.einsum("KBRT,KBTC->KBRC", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return best, total_KBR * shrink + weights.sum(axis=-1), out_KBRC * shrink[..., None] + out

    shape = q_KBRC.shape[:3]
    empty = (jnp.full(shape, _HIDDEN, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(q_KBRC.shape, jnp.float32))
    _, total_KBR, out_KBRC = jax.lax.fori_loop(0, blocks, meet, empty)
    out = (out_KBRC / total_KBR[..., None]).reshape(kv_heads, rows, groups, queries, channels)
    return out.transpose(1, 3, 0, 2, 4).reshape(q_BQHC.shape).astype(q_BQHC.dtype)


def _logits(weights: Weights, sizes: Sizes, hidden_BD: Float[Array, "B D"]) -> Float[Array, "B V"]:
    return jnp.dot(hidden_BD, head(weights, sizes).astype(hidden_BD.dtype), preferred_element_type=jnp.float32)
