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
    """Draw by Gumbel-max: the largest of logit plus noise is a sample of their softmax (Gumbel 1954; Maddison et al. 2014).

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
    noise_BV = jax.vmap(_noise, in_axes=(0, 0, None))(how.keys_B2, how.indices_B, logits_BV.shape[-1])
    ids_B = jnp.argmax(kept_BV + jnp.where(greedy_B[:, None], 0.0, noise_BV), axis=-1).astype(jnp.int32)
    chosen_B = jnp.take_along_axis(kept_BV, ids_B[:, None], axis=-1)[:, 0]
    return ids_B, chosen_B - jax.nn.logsumexp(kept_BV, axis=-1)


def _noise(key_2: UInt32[Array, " 2"], index: Int[Array, ""], vocab: int) -> Float[Array, " V"]:
    key = jax.random.fold_in(jax.random.wrap_key_data(key_2, impl="threefry2x32"), index)
    return jax.random.gumbel(key, (vocab,), jnp.float32)


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
