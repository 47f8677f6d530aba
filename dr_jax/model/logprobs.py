"""Log-probabilities of given tokens without ever holding logits [B, T, V].

In:    hidden states [B, T, D], the head [D, V], the tokens [B, T] whose log-probability is asked
Out:   log-probabilities and, where asked for, entropies [B, T] in float32
Holds: the logits of one chunk exist at a time, in the backward pass too, where they are computed again; a chunk is some
       places of every row, so that rows stay on their devices
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_logprobs(
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    *,
    temperature: Float[Array, ""] | float = 1.0,
    chunk: int = 1024,
    entropy: bool = True,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Compute the log-probability of each target under softmax(hidden head / temperature), and that distribution's entropy.

    Args:
        hidden_BTD: what the head is applied to.
        head_DV: see `decoder.head`.
        targets_BT: one id per place.
        temperature: divides the logits; data, not shape; no gradient flows into it.
        chunk: about how many tokens' logits are held at a time; at least one of every row.
        entropy: False returns zeros in its place and saves their cost.
    """
    rows, length = targets_BT.shape
    places = max(1, min(length, chunk // rows))
    padding = -length % places

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
        return padded.reshape(rows, -1, places, *x.shape[2:]).swapaxes(0, 1)

    inverse = jax.lax.stop_gradient(1.0 / jnp.asarray(temperature, jnp.float32))
    found = _chunked(cut(hidden_BTD), head_DV, cut(targets_BT), inverse, entropy)
    logprobs_BT, entropy_BT = (x.swapaxes(0, 1).reshape(rows, -1)[:, :length] for x in found)
    return logprobs_BT, entropy_BT


# I counts chunks, R is the tokens of one chunk: B rows times some places of each.


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(hidden_IBTD: Array, head_DV: Array, targets_IBT: Array, inverse: Array, entropy: bool) -> tuple[Array, Array]:
    return _forward(hidden_IBTD, head_DV, targets_IBT, inverse, entropy)[0]


def _forward(
    hidden_IBTD: Array, head_DV: Array, targets_IBT: Array, inverse: Array, entropy: bool
) -> tuple[tuple[Array, Array], Any]:
    def one(chunk: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        hidden_BTD, targets_BT = chunk
        logits_RV = _logits(hidden_BTD, head_DV, inverse)
        total_R = jax.nn.logsumexp(logits_RV, axis=-1)
        logprobs_R = jnp.take_along_axis(logits_RV, targets_BT.reshape(-1, 1), axis=-1)[:, 0] - total_R
        entropy_R = jnp.zeros_like(total_R)
        if entropy:
            logp_RV = logits_RV - total_R[:, None]
            entropy_R = -jnp.sum(jnp.exp(logp_RV) * logp_RV, axis=-1)
        return logprobs_R.reshape(targets_BT.shape), entropy_R.reshape(targets_BT.shape), total_R

    logprobs_IBT, entropy_IBT, total_IR = jax.lax.map(one, (hidden_IBTD, targets_IBT))
    return (logprobs_IBT, entropy_IBT), (hidden_IBTD, head_DV, targets_IBT, inverse, entropy_IBT, total_IR)


def _backward(entropy: bool, kept: Any, above: tuple[Array, Array]) -> tuple[Array, Array, None, None]:
    hidden_IBTD, head_DV, targets_IBT, inverse, entropy_IBT, total_IR = kept

    def one(dhead_DV: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
        hidden_BTD, targets_BT, entropy_BT, total_R, dlogprobs_BT, dentropy_BT = chunk
        logp_RV = _logits(hidden_BTD, head_DV, inverse) - total_R[:, None]
        shares_RV = jnp.exp(logp_RV)
        hit_RV = targets_BT.reshape(-1, 1) == jnp.arange(head_DV.shape[1], dtype=targets_BT.dtype)[None, :]
        dlogits_RV = dlogprobs_BT.reshape(-1, 1) * (hit_RV.astype(jnp.float32) - shares_RV)
        if entropy:  # dH/dlogit = -p (log p + H)
            dlogits_RV -= dentropy_BT.reshape(-1, 1) * shares_RV * (logp_RV + entropy_BT.reshape(-1, 1))
        dlogits_RV = (dlogits_RV * inverse).astype(hidden_BTD.dtype)
        dhidden_RD = dlogits_RV @ head_DV.T.astype(hidden_BTD.dtype)
        hidden_RD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        return dhead_DV + jnp.dot(hidden_RD.T, dlogits_RV, preferred_element_type=jnp.float32), dhidden_RD.reshape(
            hidden_BTD.shape
        )

    chunks = (hidden_IBTD, targets_IBT, entropy_IBT, total_IR, *above)
    dhead_DV, dhidden_IBTD = jax.lax.scan(one, jnp.zeros(head_DV.shape, jnp.float32), chunks)
    return dhidden_IBTD, dhead_DV.astype(head_DV.dtype), None, None


_chunked.defvjp(_forward, _backward)


def _logits(hidden_BTD: Array, head_DV: Array, inverse: Array) -> Float[Array, "R V"]:
    hidden_RD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    return jnp.dot(hidden_RD, head_DV.astype(hidden_RD.dtype), preferred_element_type=jnp.float32) * inverse
