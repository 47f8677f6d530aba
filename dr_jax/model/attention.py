"""Attention inside packed rows: each token sees itself and what came before it in its own segment.

In:    segment ids [B, T]; 0 is padding
Out:   an `Attend` that keeps nothing
Holds: rows are in order, so causality is by index; queries go block by block against the keys up to their own block, so
       scores [B, H, T, T] are never held for long rows; keys and values are never repeated for their group of heads
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dr_jax.model.decoder import Attend

_BLOCK = 256


def segment_attention(segments_BT: Int[Array, "B T"], *, block: int = _BLOCK) -> Attend[Any]:
    """Return causal attention within segments.

    Args:
        segments_BT: tokens with equal ids see each other; 0 is padding, which sees only padding.
        block: how many queries are scored at a time.
    """

    def attend(
        cache: Any,
        layer: Int[Array, ""],
        q_BTHC: Float[Array, "B T H C"],
        k_BTKC: Float[Array, "B T K C"],
        v_BTKC: Float[Array, "B T K C"],
    ) -> tuple[Float[Array, "B T H C"], Any]:
        length = q_BTHC.shape[1]
        out = []
        for start in range(0, length, block):
            end = min(start + block, length)
            causal_QT = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
            seen_BQT = causal_QT[None] & (segments_BT[:, start:end, None] == segments_BT[:, None, :end])
            out.append(attended(q_BTHC[:, start:end], k_BTKC[:, :end], v_BTKC[:, :end], seen_BQT))
        return jnp.concatenate(out, axis=1), cache

    return attend


def attended(
    q_BQHC: Float[Array, "B Q H C"],
    k_BTKC: Float[Array, "B T K C"],
    v_BTKC: Float[Array, "B T K C"],
    seen_BQT: Bool[Array, "B Q T"],
) -> Float[Array, "B Q H C"]:
    """Compute softmax(q k / sqrt(C)) v over the keys that each query sees, the softmax in float32.

    Vaswani et al., arXiv 1706.03762, equation 1; grouped queries: Ainslie et al., arXiv 2305.13245.
    """
    rows, queries, heads, channels = q_BQHC.shape
    groups = k_BTKC.shape[2]
    q_BQKGC = q_BQHC.reshape(rows, queries, groups, heads // groups, channels)
    scores = jnp.einsum("BQKGC,BTKC->BKGQT", q_BQKGC, k_BTKC, preferred_element_type=jnp.float32)
    scores = jnp.where(seen_BQT[:, None, None], scores * jnp.float32(channels**-0.5), jnp.finfo(jnp.float32).min)
    shares = jax.nn.softmax(scores, axis=-1).astype(v_BTKC.dtype)
    return jnp.einsum("BKGQT,BTKC->BQKGC", shares, v_BTKC).reshape(q_BQHC.shape)
