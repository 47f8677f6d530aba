"""The compiled programs: prefill beside one step of decoding, decoding alone, moves of pages; pools are updated in place.

In:    weights, the pools (donated), rows of small arrays that say what to do
Out:   the pools, drawn ids and their log-probabilities
Holds: lengths, budgets, temperatures, stop ids and page tables are data, so neither shapes nor programs depend on lengths
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Bool, Float, Int

from dr_jax.engine.items import Items, Tiles
from dr_jax.engine.paged import Pools, Queries, mixed_attention, paged_attention
from dr_jax.engine.sample import Draws, draw
from dr_jax.model.decoder import Laid, head, hidden_states
from dr_jax.model.sizes import Sizes

MOVES = 16  # pages that are copied, lifted or put back in one call
_EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}


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
        lefts_B: how many ids may still be drawn, in this call and later ones; 0 is an empty row.
        stops_BE: ids that end the request, padded with -1.
        tables_BX: pages, with room for what is drawn.
        items: the blocks of pages that they meet, up to the last id of this call; None where a kernel meets them.
        draws: how; `indices_B` is that of the first id.
    """

    ids_B: Int[Array, " B"]
    lengths_B: Int[Array, " B"]
    lefts_B: Int[Array, " B"]
    stops_BE: Int[Array, "B E"]
    tables_BX: Int[Array, "B X"]
    items: Items | None
    draws: Draws


class Drawn(NamedTuple):
    """What a decode call drew: the first `counts_B` of each row."""

    ids_BN: Int[Array, "B N"]
    logprobs_BN: Float[Array, "B N"]
    counts_B: Int[Array, " B"]


class Left(NamedTuple):
    """Where a decode call left its rows, for a next one to go on before anybody has read what was drawn.

    Each is what `DecodeRows` and its `Draws` say of the next call.
    """

    ids_B: Int[Array, " B"]
    lengths_B: Int[Array, " B"]
    lefts_B: Int[Array, " B"]
    indices_B: Int[Array, " B"]


class Pages(NamedTuple):
    """Keys and values of some pages, outside of the pools: page by page, so that each can be kept for itself."""

    k_NLKWC: Float[Array, "N L K W C"]
    v_NLKWC: Float[Array, "N L K W C"]


@lru_cache(maxsize=16)
def programs(sizes: Sizes, *, tokens_per_call: int, tiles: Tiles, everywhere: Sharding, eigen: bool) -> Programs:
    """Return the programs for these constants; engines that are alike share what is compiled."""
    return Programs(sizes, tokens_per_call=tokens_per_call, tiles=tiles, everywhere=everywhere, eigen=eigen)


class Programs:
    """Every program of an engine, compiled on first use.

    Args:
        sizes: of the model.
        tokens_per_call: ids that a decode call draws per row.
        tiles: how attention is cut up.
        everywhere: where small arrays lie: on every device of the engine.
        eigen: whether decoding leaves matrix products to Eigen on a CPU, and not to the fusions that XLA makes of them.
    """

    def __init__(self, sizes: Sizes, *, tokens_per_call: int, tiles: Tiles, everywhere: Sharding, eigen: bool) -> None:
        self.sizes, self.everywhere = sizes, everywhere
        self.pools = Pools(self._pool_place(), self._pool_place())
        drawn, left = Drawn(*[everywhere] * 3), Left(*[everywhere] * 4)
        self.decode = jax.jit(
            partial(decode, sizes, tiles, tokens_per_call),
            donate_argnums=1,
            out_shardings=(self.pools, drawn, left),
            compiler_options=_EIGEN if eigen else None,
        )
        self.mixed = jax.jit(partial(mixed, sizes, tiles), donate_argnums=1, out_shardings=(self.pools, drawn, drawn, left))
        self.copy = jax.jit(copy, donate_argnums=0, out_shardings=self.pools)
        self.pages = Pages(*[self._pool_place(pages_first=True)] * 2)
        self.lift = jax.jit(lift, out_shardings=self.pages)
        self.put_back = jax.jit(put_back, donate_argnums=0, out_shardings=self.pools)

    def empty_pools(self, pages: int, page_size: int, dtype: str) -> Pools:
        """Make the pools, zeros."""
        s = self.sizes
        shape = (s.layers, s.kv_heads, pages, page_size, s.head_dim)
        pools: Pools = jax.jit(lambda: Pools(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)), out_shardings=self.pools)()
        return pools

    def place(self, rows: Any) -> Any:
        """Put small host arrays onto every device."""
        return jax.device_put(rows, self.everywhere)

    def _pool_place(self, pages_first: bool = False) -> Sharding:
        """Key heads over `tensor` where they divide, everything else on every device."""
        place = self.everywhere
        if not isinstance(place, NamedSharding) or self.sizes.kv_heads % place.mesh.shape.get("tensor", 1):
            return place
        heads = "tensor" if "tensor" in place.mesh.shape else None
        return NamedSharding(place.mesh, PartitionSpec(*[None] * (2 if pages_first else 1), heads))


def _places(rows: PrefillRows) -> tuple[Int[Array, "B Q"], Bool[Array, "B Q"]]:
    places_BQ = jnp.arange(rows.ids_BQ.shape[1], dtype=jnp.int32)[None, :]
    return rows.starts_B[:, None] + places_BQ, places_BQ < rows.counts_B[:, None]


def _last(hidden_BQD: Float[Array, "B Q D"], rows: PrefillRows) -> Float[Array, "B D"]:
    return jnp.take_along_axis(hidden_BQD, jnp.maximum(rows.counts_B - 1, 0)[:, None, None], axis=1)[:, 0]


def decode(sizes: Sizes, tiles: Tiles, tokens: int, weights: Laid, pools: Pools, rows: DecodeRows) -> tuple[Pools, Drawn, Left]:
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
        attend = paged_attention(now.pools, rows.tables_BX, positions_B1, active_B[:, None], tiles, rows.items)
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
    counts_B = end.drawn.counts_B
    left = Left(end.ids_B, rows.lengths_B + counts_B, end.lefts_B, rows.draws.indices_B + counts_B)
    return end.pools, end.drawn, left


def mixed(
    sizes: Sizes, tiles: Tiles, weights: Laid, pools: Pools, known: PrefillRows, rows: DecodeRows
) -> tuple[Pools, Drawn, Drawn, Left]:
    """Compute stretches and draw one id per row that draws, as one batch of tokens (as in Agrawal et al., arXiv 2308.16369).

    Reading the weights is most of what drawing costs, and they are read for the stretches anyway.
    """
    positions_BQ, valid_BQ = _places(known)
    active_B = rows.lefts_B > 0
    stretches = Queries(known.tables_BX, positions_BQ, valid_BQ)
    singles = Queries(rows.tables_BX, rows.lengths_B[:, None], active_B[:, None])
    attend = mixed_attention(pools, stretches, singles, tiles, rows.items)
    ids_N, positions_N = (
        jnp.concatenate([one.reshape(-1), other]) for one, other in ((known.ids_BQ, rows.ids_B), (positions_BQ, rows.lengths_B))
    )
    hidden_N1D, pools = hidden_states(weights, sizes, ids_N[:, None], positions_N[:, None], attend, pools)
    count = positions_BQ.size
    hidden_BQD = hidden_N1D[:count].reshape(*positions_BQ.shape, -1)
    hidden_ND = jnp.concatenate([_last(hidden_BQD, known), hidden_N1D[count:, 0]])
    how = jax.tree.map(lambda one, other: jnp.concatenate([one, other]), known.draws, rows.draws)
    found = draw(_logits(weights, sizes, hidden_ND), how)
    (first_B, then_B), (first_logprobs_B, logprobs_B) = (jnp.split(one, [len(known.ids_BQ)]) for one in found)
    counts_B = active_B.astype(jnp.int32)
    stopped_B = jnp.any(then_B[:, None] == rows.stops_BE, axis=-1)
    lefts_B = jnp.where(stopped_B, 0, jnp.maximum(rows.lefts_B - 1, 0))
    return (
        pools,
        Drawn(first_B[:, None], first_logprobs_B[:, None], jnp.ones_like(first_B)),
        Drawn(then_B[:, None], logprobs_B[:, None], counts_B),
        Left(then_B, rows.lengths_B + counts_B, lefts_B, rows.draws.indices_B + counts_B),
    )


def copy(pools: Pools, pages_N2: Int[Array, "N 2"]) -> Pools:
    """Copy page to page, one after the other: a later copy may read or overwrite what an earlier one wrote."""

    def one(place: Int[Array, ""], pools: Pools) -> Pools:
        source, target = pages_N2[place, 0], pages_N2[place, 1]

        def copied(pool: Array) -> Array:
            page = jax.lax.dynamic_slice_in_dim(pool, source, 1, axis=2)
            return jax.lax.dynamic_update_slice_in_dim(pool, page, target, axis=2)

        return Pools(copied(pools.k_LKPWC), copied(pools.v_LKPWC))

    return jax.lax.fori_loop(0, pages_N2.shape[0], one, pools)


def lift(pools: Pools, pages_N: Int[Array, " N"]) -> Pages:
    """Return what is in these pages."""

    def lifted(pool: Array) -> Array:
        def one(place: Int[Array, ""], out: Array) -> Array:
            page = jax.lax.dynamic_slice_in_dim(pool, pages_N[place], 1, axis=2)
            return jax.lax.dynamic_update_slice_in_dim(out, jnp.moveaxis(page, 2, 0), place, axis=0)

        layers, heads, _, *page = pool.shape
        return jax.lax.fori_loop(0, len(pages_N), one, jnp.zeros((len(pages_N), layers, heads, *page), pool.dtype))

    return Pages(lifted(pools.k_LKPWC), lifted(pools.v_LKPWC))


def put_back(pools: Pools, pages: Pages, pages_N: Int[Array, " N"]) -> Pools:
    """Write what was lifted, or anything, to these pages."""

    def one(place: Int[Array, ""], pools: Pools) -> Pools:
        def written(pool: Array, new_NLKWC: Array) -> Array:
            page = jax.lax.dynamic_slice_in_dim(new_NLKWC, place, 1, axis=0)
            return jax.lax.dynamic_update_slice_in_dim(pool, jnp.moveaxis(page, 0, 2), pages_N[place], axis=2)

        return Pools(written(pools.k_LKPWC, pages.k_NLKWC), written(pools.v_LKPWC, pages.v_NLKWC))

    return jax.lax.fori_loop(0, pages_N.shape[0], one, pools)


def _logits(weights: Laid, sizes: Sizes, hidden_BD: Float[Array, "B D"]) -> Float[Array, "B V"]:
    return jnp.dot(hidden_BD, head(weights, sizes).astype(hidden_BD.dtype), preferred_element_type=jnp.float32)
