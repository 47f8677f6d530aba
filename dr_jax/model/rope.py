"""Rotary positions: each pair of channels of a query or key turns by an angle that grows with its position.

In:    positions [B, T] and a `Rope`
Out:   cosines and sines [B, T, C/2] in float32, computed once per forward pass; `rotate` applies them
Holds: channel c is paired with channel c + C/2, as in Hugging Face checkpoints (GGUF files interleave them instead)
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dr_jax.model.sizes import Rope


def frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Return radians per position for each pair of channels, and a factor on cosine and sine.

    RoFormer: Su et al., arXiv 2104.09864. YaRN: Peng et al., arXiv 2309.00071, section 3.
    """
    pairs = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    plain = rope.theta**-pairs
    match rope.kind:
        case "default":
            return plain, 1.0
        case "linear":
            return plain / rope.factor, 1.0
        case "llama3":
            turns = rope.original_context * plain / (2 * math.pi)  # over the original context
            kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
            return _between(plain / rope.factor, plain, np.clip(kept, 0.0, 1.0)), 1.0
        case "yarn":
            first, last = (_pair_that_turns(turns, rope, head_dim) for turns in (rope.beta_fast, rope.beta_slow))
            low, high = max(math.floor(first), 0), min(math.ceil(last), head_dim - 1)
            ramp = (np.arange(head_dim // 2) - low) / max(high - low, 0.001)
            scale = rope.attention_factor or (0.1 * math.log(rope.factor) + 1.0)
            return _between(plain / rope.factor, plain, 1.0 - np.clip(ramp, 0.0, 1.0)), scale


def angles(positions_BT: Int[Array, "B T"], rope: Rope, head_dim: int) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
    """Return cosine and sine of every position's angles, R = C/2."""
    radians, scale = frequencies(rope, head_dim)
    turned = positions_BT.astype(jnp.float32)[:, :, None] * jnp.asarray(radians, jnp.float32)[None, None, :]
    return jnp.cos(turned) * jnp.float32(scale), jnp.sin(turned) * jnp.float32(scale)


def rotate(
    x_BTHC: Float[Array, "B T H C"], cos_BTR: Float[Array, "B T R"], sin_BTR: Float[Array, "B T R"]
) -> Float[Array, "B T H C"]:
    """Turn the pairs (c, c + C/2) of every head, in float32; the result has the dtype of the input."""
    first, second = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTR[:, :, None, :], sin_BTR[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHC.dtype)


def _between(stretched: np.ndarray, plain: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return stretched * (1.0 - kept) + plain * kept


def _pair_that_turns(times: float, rope: Rope, head_dim: int) -> float:
    """Return the (fractional) index of the pair whose wave turns this often over the original context."""
    return head_dim * math.log(rope.original_context / (times * 2 * math.pi)) / (2 * math.log(rope.theta))
