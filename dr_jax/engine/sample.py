"""Draw one id per row on the device.

In:    logits [B, V]; per row a key, the index of the id in its request, temperature, top-p, top-k
Out:   ids [B], and their log-probabilities under the distribution that they were drawn from
Holds: what is drawn depends on a row's logits, key and index, never on the other rows
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32


class Draws(NamedTuple):
    """How each row is drawn; all of it data, so that nothing compiles again."""

    keys_B2: UInt32[Array, "B 2"]
    indices_B: Int[Array, " B"]
    temperatures_B: Float[Array, " B"]
    top_ps_B: Float[Array, " B"]
    top_ks_B: Int[Array, " B"]


def draw(logits_BV: Float[Array, "B V"], how: Draws) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Draw by inverting the distribution function at one uniform number per row (Devroye 1986, chapter 2).

    A temperature of 0 takes the largest logit, and its log-probability is that of the untempered distribution. Otherwise
    logits are divided by the temperature, all but the top k are dropped, then all but the smallest set that holds a mass of
    top-p (Holtzman et al., arXiv 1904.09751), and the log-probability is of what is left, renormalised.
    """
    greedy_B = how.temperatures_B == 0
    scaled_BV = logits_BV / jnp.where(greedy_B, 1.0, how.temperatures_B)[:, None]
    top_ps_B = jnp.where(greedy_B, 1.0, how.top_ps_B)
    top_ks_B = jnp.where(greedy_B | (how.top_ks_B == 0), logits_BV.shape[-1], how.top_ks_B)
    asked = jnp.any((top_ps_B < 1) | (top_ks_B < logits_BV.shape[-1]))  # sorting the vocabulary is dear, and rarely wanted
    kept_BV = jax.lax.cond(asked, _truncated, lambda logits_BV, *_: logits_BV, scaled_BV, top_ps_B, top_ks_B)
    best_B = jnp.argmax(kept_BV, axis=-1).astype(jnp.int32)
    above_B1 = jnp.take_along_axis(kept_BV, best_B[:, None], axis=-1)
    drawn_B, total_B = _inverted(jnp.exp(kept_BV - above_B1), jax.vmap(_uniform)(how.keys_B2, how.indices_B))
    ids_B = jnp.where(greedy_B, best_B, drawn_B)
    chosen_B = (jnp.take_along_axis(kept_BV, ids_B[:, None], axis=-1) - above_B1)[:, 0]
    return ids_B, chosen_B - jnp.log(total_B)


def _uniform(key_2: UInt32[Array, " 2"], index: Int[Array, ""]) -> Float[Array, ""]:
    return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key_2, impl="threefry2x32"), index), (), jnp.float32)


def _inverted(mass_BV: Float[Array, "B V"], uniform_B: Float[Array, " B"]) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Return the first id whose cumulated mass passes the uniform share of the total, and that total.

    In two steps, of blocks and within one, so that neither sum is long: noise for every id would cost more than the head.
    """
    vocab = mass_BV.shape[-1]
    width = 1 << max(5, (vocab.bit_length() + 1) // 2)
    mass_BNW = jnp.pad(mass_BV, ((0, 0), (0, -vocab % width))).reshape(len(mass_BV), -1, width)
    sums_BN = mass_BNW.sum(axis=-1)
    block_B, left_B, total_B = _passed(sums_BN, uniform_B[:, None])
    inside_BW = jnp.take_along_axis(mass_BNW, block_B[:, None, None], axis=1)[:, 0]
    place_B, _, _ = _passed(
        inside_BW, jnp.clip(left_B / jnp.take_along_axis(sums_BN, block_B[:, None], axis=1)[:, 0], 0, 1)[:, None]
    )
    return block_B * width + place_B, total_B


def _passed(
    mass_BN: Float[Array, "B N"], share_B1: Float[Array, "B 1"]
) -> tuple[Int[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """Return where the cumulated mass passes a share of the total, by how much the share passes what is before, the total."""
    until_BN = jnp.cumsum(mass_BN, axis=-1)
    target_B1 = share_B1 * until_BN[:, -1:]
    # Rounding may put the target at the very end, where an id without mass could stand.
    last_B1 = jnp.max(jnp.where(mass_BN > 0, jnp.arange(mass_BN.shape[-1])[None], 0), axis=-1, keepdims=True)
    place_B1 = jnp.minimum(jnp.sum(until_BN <= target_B1, axis=-1, keepdims=True), last_B1).astype(jnp.int32)
    before_B1 = jnp.take_along_axis(until_BN - mass_BN, place_B1, axis=-1)
    return place_B1[:, 0], (target_B1 - before_B1)[:, 0], until_BN[:, -1]


def _truncated(logits_BV: Float[Array, "B V"], top_ps_B: Float[Array, " B"], top_ks_B: Int[Array, " B"]) -> Float[Array, "B V"]:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    within_BV = jnp.arange(logits_BV.shape[-1])[None, :] < top_ks_B[:, None]
    shares_BV = jax.nn.softmax(jnp.where(within_BV, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(shares_BV, axis=-1) - shares_BV
    # Rounding may let the sum reach 1 early; a row that did not ask for top-p keeps every id all the same.
    in_nucleus_BV = (before_BV < top_ps_B[:, None]) | (top_ps_B >= 1)[:, None]
    last_B = jnp.maximum(jnp.sum(within_BV & in_nucleus_BV, axis=-1), 1) - 1
    threshold_B1 = jnp.take_along_axis(sorted_BV, last_B[:, None], axis=-1)
    return jnp.where(logits_BV >= threshold_B1, logits_BV, -jnp.inf)
