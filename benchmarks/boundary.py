"""How near to the boundary between two ids a random number lay, when two runs drew different ones with it.

In:    a request that two runs drew differently: its key, what was before the id, the two ids
Out:   by how much of the whole probability the number would have to move for both to be right: some 1e-6, where nothing but
       rounding told the runs apart (sums of other shapes round otherwise)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dr_jax.engine.request import key_data
from dr_jax.model.attention import segment_attention
from dr_jax.model.decoder import Weights, head, hidden_states
from dr_jax.model.sizes import Sizes
from dr_jax.tokens.policy import RequestKey


class Boundary:
    """The model, computed in one pass over everything before an id, as no engine does.

    Args:
        weights: by name.
        sizes: of the model.
        context: the most ids.
    """

    def __init__(self, weights: Weights, sizes: Sizes, context: int) -> None:
        self._context = context
        self._logits = jax.jit(partial(_logits, weights, sizes))

    def gap(self, key: RequestKey, before: Sequence[int], index: int, ids: tuple[int, int]) -> float:
        """Return by how much the number that this key gives is away from where both ids would be right.

        Args:
            key: of the request, at temperature 1.
            before: ids.
            index: of the id in its request.
            ids: that were drawn.
        """
        row = np.zeros((1, self._context), np.int32)
        row[0, : len(before)] = before
        left = np.asarray(self._logits(jnp.asarray(row), jnp.int32(len(before) - 1)), np.float64)
        until = np.cumsum(np.exp(left - left.max()))
        until /= until[-1]
        word = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(key_data(key)), impl="threefry2x32"), index)
        number = float(jax.random.uniform(word, (), jnp.float32))
        low, high = sorted(ids)
        # An id is right from where the one before it ends to where it ends itself.
        return float(max(abs(number - until[low]), abs(number - until[high - 1])))


def _logits(weights: Weights, sizes: Sizes, ids_BT: Int[Array, "B T"], last: Int[Array, ""]) -> Float[Array, " V"]:
    positions_BT = jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
    segments_BT = (positions_BT <= last).astype(jnp.int32)
    hidden_BTD, _ = hidden_states(weights, sizes, ids_BT, positions_BT, segment_attention(segments_BT))
    return hidden_BTD[0, last] @ head(weights, sizes)
