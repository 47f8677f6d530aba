"""Log-probabilities of given tokens without ever holding logits [B, T, V].

In:    hidden states [B, T, D], the head [D, V], the tokens [B, T] whose log-probability is asked
Out:   log-probabilities and, where wanted, entropies [B, T] in float32
Holds: the logits of one chunk exist at a time, in the backward pass too, where they are computed again; a chunk is some
       places of every row, so that rows stay on their devices; the head is gathered before the first chunk, and its gradient
       added up over devices after the last one
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dr_jax.sharding.rules import split, ways


def token_logprobs(
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    *,
    temperature: Float[Array, ""] | float = 1.0,
    chunk: int = 1024,
    entropy: bool = True,
    asked_BT: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Compute the log-probability of each target under softmax(hidden head / temperature), and that distribution's entropy.

    Args:
        hidden_BTD: what the head is applied to.
        head_DV: see `decoder.head`.
        targets_BT: one id per place.
        temperature: divides the logits; data, not shape; no gradient flows into it.
        chunk: about how many tokens' logits a device holds at a time; at least one of each of its rows.
        entropy: False returns zeros in its place and saves their cost.
        asked_BT: places whose answer matters; None is all of them. The time grows with the largest number of them in a row:
            they are moved to its front, and the chunks behind them are left out. Elsewhere the answers are any finite value.
    """
    rows, length = targets_BT.shape
    apart = ways("row") if rows % ways("row") == 0 else 1
    places = max(1, min(length, chunk * apart // rows))
    padding = -length % places
    most = jnp.int32(length) if asked_BT is None else jnp.max(jnp.sum(asked_BT, axis=1, dtype=jnp.int32))
    if asked_BT is not None:
        order_BT = jnp.argsort(~asked_BT, axis=1, stable=True)
        back_BT = jnp.argsort(order_BT, axis=1)
        hidden_BTD = _reordered(hidden_BTD, order_BT, back_BT)
        targets_BT = jnp.take_along_axis(targets_BT, order_BT, axis=1)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
        return padded.reshape(rows, -1, places, *x.shape[2:]).swapaxes(0, 1)

    # Whole tokens, and a whole head but for the words of other devices: otherwise each chunk would gather them again.
    hidden_BTD, head_DV = split(hidden_BTD, "row", None, None), split(head_DV, None, "vocab")
    inverse = jax.lax.stop_gradient(1.0 / jnp.asarray(temperature, jnp.float32))
    found = _chunked(cut(hidden_BTD), head_DV, cut(targets_BT), inverse, -(-most // places), entropy, apart)
    logprobs_BT, entropy_BT = (x.swapaxes(0, 1).reshape(rows, -1)[:, :length] for x in found)
    if asked_BT is None:
        return logprobs_BT, entropy_BT
    return jnp.take_along_axis(logprobs_BT, back_BT, axis=1), jnp.take_along_axis(entropy_BT, back_BT, axis=1)


@partial(jax.custom_vjp, nondiff_argnums=())
def _reordered(x_BTD: Array, order_BT: Array, back_BT: Array) -> Array:
    """Move the tokens of each row; the gradient is moved back, where autodiff would scatter it."""
    return jnp.take_along_axis(x_BTD, order_BT[:, :, None], axis=1)


_reordered.defvjp(
    lambda x_BTD, order_BT, back_BT: (_reordered(x_BTD, order_BT, back_BT), (order_BT, back_BT)),
    lambda kept, above_BTD: (_reordered(above_BTD, kept[1], kept[0]), None, None),
)


# I counts chunks, of which the first `count` are computed; R is the tokens of one chunk: B rows times some places of each. Rows
# lie on A devices; each adds up a gradient of the head of its own.


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _chunked(
    hidden_IBTD: Array, head_DV: Array, targets_IBT: Array, inverse: Array, count: Array, entropy: bool, apart: int
) -> tuple[Array, Array]:
    return _forward(hidden_IBTD, head_DV, targets_IBT, inverse, count, entropy, apart)[0]


def _forward(
    hidden_IBTD: Array, head_DV: Array, targets_IBT: Array, inverse: Array, count: Array, entropy: bool, apart: int
) -> tuple[tuple[Array, Array], Any]:
    def one(at: Array, found: tuple[Array, ...]) -> tuple[Array, ...]:
        targets_BT = targets_IBT[at]
        logits_RV = _logits(hidden_IBTD[at], head_DV, inverse)
        total_R = jax.nn.logsumexp(logits_RV, axis=-1)
        logprobs_R = jnp.take_along_axis(logits_RV, targets_BT.reshape(-1, 1), axis=-1)[:, 0] - total_R
        entropy_R = jnp.zeros_like(total_R)
        if entropy:
            logp_RV = logits_RV - total_R[:, None]
            entropy_R = -jnp.sum(jnp.exp(logp_RV) * logp_RV, axis=-1)
        told = (logprobs_R.reshape(targets_BT.shape), entropy_R.reshape(targets_BT.shape), total_R)
        return tuple(all_I.at[at].set(value) for all_I, value in zip(found, told, strict=True))

    nothing_IBT = jnp.zeros(targets_IBT.shape, jnp.float32)
    nothing = (nothing_IBT, nothing_IBT, nothing_IBT.reshape(nothing_IBT.shape[0], -1))
    logprobs_IBT, entropy_IBT, total_IR = jax.lax.fori_loop(0, count, one, nothing)
    return (logprobs_IBT, entropy_IBT), (hidden_IBTD, head_DV, targets_IBT, inverse, count, entropy_IBT, total_IR)


def _backward(entropy: bool, apart: int, kept: Any, above: tuple[Array, Array]) -> tuple[Array, Array, None, None, None]:
    hidden_IBTD, head_DV, targets_IBT, inverse, count, entropy_IBT, total_IR = kept
    dlogprobs_IBT, dentropy_IBT = above

    def one(at: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        dhead_ADV, dhidden_IBTD = found
        hidden_BTD = hidden_IBTD[at]
        logp_RV = _logits(hidden_BTD, head_DV, inverse) - total_IR[at][:, None]
        shares_RV = jnp.exp(logp_RV)
        hit_RV = targets_IBT[at].reshape(-1, 1) == jnp.arange(head_DV.shape[1], dtype=targets_IBT.dtype)[None, :]
        dlogits_RV = dlogprobs_IBT[at].reshape(-1, 1) * (hit_RV.astype(jnp.float32) - shares_RV)
        if entropy:  # dH/dlogit = -p (log p + H)
            dlogits_RV -= dentropy_IBT[at].reshape(-1, 1) * shares_RV * (logp_RV + entropy_IBT[at].reshape(-1, 1))
        dlogits_RV = (dlogits_RV * inverse).astype(hidden_BTD.dtype)
        dhidden_RD = dlogits_RV @ head_DV.T.astype(hidden_BTD.dtype)
        dhead_ADV += _own_products(hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), dlogits_RV, apart)
        return dhead_ADV, dhidden_IBTD.at[at].set(dhidden_RD.reshape(hidden_BTD.shape))

    nothing_ADV = split(jnp.zeros((apart, *head_DV.shape), jnp.float32), "row", None, "vocab")
    dhead_ADV, dhidden_IBTD = jax.lax.fori_loop(0, count, one, (nothing_ADV, jnp.zeros_like(hidden_IBTD)))
    return dhidden_IBTD, dhead_ADV.sum(axis=0).astype(head_DV.dtype), None, None, None


def _own_products(hidden_RD: Array, dlogits_RV: Array, apart: int) -> Float[Array, "A D V"]:
    """Multiply what lies on each device, and add nothing up between them."""
    if apart == 1:
        return jnp.dot(hidden_RD.T, dlogits_RV, preferred_element_type=jnp.float32)[None]
    cut = lambda x: x.reshape(apart, -1, x.shape[-1])  # noqa: E731
    found_ADV = jnp.einsum("ARD,ARV->ADV", cut(hidden_RD), cut(dlogits_RV), preferred_element_type=jnp.float32)
    return split(found_ADV, "row", None, "vocab")


_chunked.defvjp(_forward, _backward)


def _logits(hidden_BTD: Array, head_DV: Array, inverse: Array) -> Float[Array, "R V"]:
    hidden_RD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    return jnp.dot(hidden_RD, head_DV.astype(hidden_RD.dtype), preferred_element_type=jnp.float32) * inverse
