"""Count the useful arithmetic of a decoder: what its equations take, not what a program does.

In:    sizes, tokens, pairs of a query and a key that it sees
Out:   floating point operations; a multiplication and an addition are two
Holds: nothing is counted that is thrown away: hidden scores, padding, layers computed again in the backward pass
"""

from __future__ import annotations

from dr_jax.model.decoder import Remat
from dr_jax.model.sizes import Sizes


def forward_flops(sizes: Sizes, tokens: int, pairs: int, *, logits: int | None = None) -> int:
    """Count a forward pass.

    Args:
        sizes: of the decoder.
        tokens: that go through the layers.
        pairs: of a query and a key that it sees, in one layer.
        logits: tokens whose logits are computed; None is all.
    """
    s = sizes
    layer = 2 * s.width * s.head_dim * (s.heads + s.kv_heads) + 3 * s.width * s.ff
    products = tokens * s.layers * layer + (tokens if logits is None else logits) * s.width * s.vocab
    return 2 * products + 4 * pairs * s.layers * s.heads * s.head_dim


def update_flops(sizes: Sizes, tokens: int, pairs: int) -> int:
    """Count forward and backward: each product has a gradient for either of its factors."""
    return 3 * forward_flops(sizes, tokens, pairs)


def update_products(sizes: Sizes, tokens: int, *, remat: Remat) -> int:
    """Count the matrix products of a whole gradient program, attention left out.

    Logits are computed again in the backward pass, and with `remat = "full"` the layers are, but for their last product.
    """
    s = sizes
    layer = 2 * s.width * s.head_dim * (s.heads + s.kv_heads) + 3 * s.width * s.ff
    again = layer - s.width * s.ff if remat == "full" else 0
    return 2 * tokens * (s.layers * (3 * layer + again) + 4 * s.width * s.vocab)


def causal_pairs(length: int) -> int:
    """Count what the tokens of one sequence see: themselves and what came before."""
    return length * (length + 1) // 2
