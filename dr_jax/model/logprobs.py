"""Log-probabilities of given tokens without ever holding logits [B, T, V].

In:    hidden states [B, T, D], the head [D, V], the tokens [B, T] whose log-probability is asked
Out:   log-probabilities and, where asked for, entropies [B, T] in float32
Holds: the logits of one chunk of tokens exist at a time, in the backward pass too, where they are computed again
"""

from __future__ import annotations

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
        temperature: divides the logits; data, not shape.
        chunk: tokens whose logits are held at a time.
        entropy: False returns zeros in its place and saves their cost.
    """
    shape, width = targets_BT.shape, hidden_BTD.shape[-1]
    tokens = targets_BT.size
    chunk = min(chunk, tokens)
    padding = -tokens % chunk
    hidden = jnp.pad(hidden_BTD.reshape(tokens, width), ((0, padding), (0, 0))).reshape(-1, chunk, width)
    targets = jnp.pad(targets_BT.reshape(tokens), (0, padding)).reshape(-1, chunk)
    inverse = 1.0 / jnp.asarray(temperature, jnp.float32)

    def chosen(hidden_RD: Float[Array, "R D"], targets_R: Int[Array, " R"]) -> tuple[Float[Array, " R"], Float[Array, " R"]]:
        logits_RV = jnp.dot(hidden_RD, head_DV.astype(hidden_RD.dtype), preferred_element_type=jnp.float32) * inverse
        total_R = jax.nn.logsumexp(logits_RV, axis=-1)
        logprobs_R = jnp.take_along_axis(logits_RV, targets_R[:, None], axis=-1)[:, 0] - total_R
        if not entropy:
            return logprobs_R, jnp.zeros_like(logprobs_R)
        mean_R = jnp.sum(jnp.exp(logits_RV - total_R[:, None]) * logits_RV, axis=-1)
        return logprobs_R, total_R - mean_R

    logprobs, entropies = jax.lax.map(jax.checkpoint(lambda pair: chosen(*pair)), (hidden, targets))
    return logprobs.reshape(-1)[:tokens].reshape(shape), entropies.reshape(-1)[:tokens].reshape(shape)
