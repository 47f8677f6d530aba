"""Queries meet pages of keys and values on a CPU, with the custom call in `paged.cc`.

In:    queries, the pools, which layer, the pages of each row, how many tokens each query may see
Out:   what each query gathered, as `paged.paged_attention` would but for rounding
Fails: NoKernelError: see `model.native`
Why:   XLA's own code for a CPU copies pages together and takes what is done with them apart into many small operations
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dr_jax.model import native

_CALL = "dr_jax_paged_attention"


def load() -> None:
    """Make the kernel, if that was not done before, and tell XLA of it.

    Raises:
        NoKernelError: it cannot be made or loaded.
    """
    native.load(Path(__file__).with_name("paged.cc"), _CALL)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class OnCpu:
    """How queries meet pages on one CPU device."""

    stretches: ClassVar[bool] = True

    def __call__(
        self,
        q_BQHC: Float[Array, "B Q H C"],
        pools: tuple[Float[Array, "L K P W C"], Float[Array, "L K P W C"]],
        layer: Int[Array, ""],
        tables_BX: Int[Array, "B X"],
        visible_BQ: Int[Array, "B Q"],
    ) -> Float[Array, "B Q H C"]:
        """Return what each query gathered from the first `visible_BQ` places of its row; zeros where there are none."""
        load()  # `choice.decoding` has, but not everybody asks it
        out = jax.ShapeDtypeStruct(q_BQHC.shape, jnp.float32)
        whole = (jnp.asarray(one, jnp.int32) for one in (layer, tables_BX, visible_BQ))
        met: Array = jax.ffi.ffi_call(_CALL, out)(q_BQHC.astype(jnp.float32), *pools, *whole)
        return met.astype(q_BQHC.dtype)
