"""Choose how queries meet pages: with the kernel of the platform, or in plain JAX.

In:    what the settings ask for, the shapes of an engine, its devices
Out:   `Decoding`, or `OnCpu`, or None for plain JAX
Holds: `auto` takes what was faster on this device at these shapes, but on a CPU its kernel, which was faster at all that were
       measured; a kernel that fails, disagrees or does not suit the shapes is left, and that is said once
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from math import gcd
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from dr_jax.engine.cpu import OnCpu, load
from dr_jax.engine.items import Items, Tiles, listed
from dr_jax.engine.kernels import KERNELS, Decoding
from dr_jax.engine.paged import Pools, paged_attention
from dr_jax.engine.settings import EngineSettings
from dr_jax.model import native, trial
from dr_jax.model.native import NoKernelError
from dr_jax.model.sizes import Sizes

How = Literal["auto", "plain", "kernel"]
_SMEM = 3 << 18  # bytes for page tables in the scalar memory of a TPU core, which is 1 MiB
_TRIED = 1 << 27  # bytes of the pools that a trial reads: more than caches hold


@dataclass(frozen=True, slots=True)
class Form:
    """What decides whether a kernel can be used: of one engine, the heads those of one device.

    Args:
        slots: rows.
        heads: of queries.
        kv_heads: of keys and values.
        channels: of a head.
        page_size: tokens.
        pages: of the longest row.
        dtype: of keys and values.
    """

    slots: int
    heads: int
    kv_heads: int
    channels: int
    page_size: int
    pages: int
    dtype: str

    @classmethod
    def of(cls, settings: EngineSettings, sizes: Sizes, ways: int) -> Form:
        """Describe an engine whose heads are split over so many devices, where they divide."""
        heads, kv_heads = (count if count % ways else count // ways for count in (sizes.heads, sizes.kv_heads))
        if heads % kv_heads:  # a part of the queries, of which each has its key head somewhere among all
            kv_heads = heads // gcd(heads, sizes.heads // sizes.kv_heads)
        page_size, pages = settings.page_size, settings.pages_per_request
        return cls(settings.slots, heads, kv_heads, sizes.head_dim, page_size, pages, settings.dtype)

    def refusal(self, kernel: str) -> str:
        """Return why a kernel cannot be used, or nothing."""
        if kernel == "cpu":
            return native.refusal(self.channels, self.dtype, "keys and values")
        if kernel == "gpu":
            odd = [size for size in (self.channels, self.page_size) if size & (size - 1)]
            return f"{odd[0]} is not a power of two" if odd else ""
        if self.dtype != "bfloat16":
            return f"keys and values in {self.dtype}, which it rounds to bfloat16"
        if self.channels % 128:
            return f"heads of {self.channels} channels, not of a multiple of 128"
        if self.page_size % 16:
            return f"pages of {self.page_size} tokens, not of a multiple of 16"
        tables = 4 * self.slots * self.kv_heads * self.pages
        return (
            f"page tables of {tables:,} bytes, more than {_SMEM:,}; larger pages have smaller tables" if tables > _SMEM else ""
        )


@lru_cache(maxsize=16)
def decoding(how: How, form: Form, platform: str, mesh: Mesh | None) -> Decoding | OnCpu | None:
    """Return how to meet pages, None being plain JAX; a kernel is tried where it can be run."""
    there = platform in KERNELS or (platform == "cpu" and (mesh is None or mesh.size == 1))
    if how == "plain" or (how == "auto" and not there):
        return None
    if not there:
        devices = "several devices of a CPU" if platform == "cpu" else platform
        trial.say(f"there is no kernel for pages of keys and values on {devices}")
        return None
    if refusal := form.refusal(platform):
        trial.say(f"the kernel for pages of keys and values cannot be used for {refusal}")
        return None
    if platform == "cpu":
        try:
            load()
        except NoKernelError as error:
            trial.say(str(error))
            return None
        return OnCpu()
    if platform == jax.default_backend():
        name = trial.chosen(*_trial(platform, form), f"attention over pages {form}", race=how == "auto")
        if name == "plain":
            return None
    return Decoding(platform, mesh)


def _trial(kernel: str, form: Form) -> tuple[Any, dict[str, Any], tuple[Any, ...]]:
    """Make rows of a quarter to all of the longest context, whose pages lie anywhere in a small pool of two layers."""
    rng, dtype = np.random.default_rng(0), jnp.dtype(form.dtype)
    page, longest = (form.page_size, form.channels), form.pages * form.page_size
    count = max(1, min(form.slots * form.pages, _TRIED // (4 * form.kv_heads * page[0] * page[1] * dtype.itemsize)))

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(dtype)

    pools = Pools(*(drawn(2, form.kv_heads, count, *page) for _ in range(2)))
    q = drawn(form.slots, 1, form.heads, form.channels)
    # The same new key and value for all rows: where two rows share a page, it does not matter who writes last.
    k, v = (np.repeat(drawn(1, 1, form.kv_heads, form.channels), form.slots, axis=0) for _ in range(2))
    tables = rng.integers(0, count, (form.slots, form.pages), np.int32)
    positions = rng.integers(longest // 4, longest, (form.slots, 1)).astype(np.int32)
    cut = Tiles(min(max(512 // form.page_size, 1), form.pages) * form.page_size, 128, flat=False)
    items = listed(tables, positions[:, 0] + 1, form.page_size, cut)

    def met(with_kernel: Decoding | None, pools: Pools, tables: Array, positions: Array, items: Items, *new: Array) -> Array:
        tiles = cut._replace(kernel=with_kernel)
        return paged_attention(pools, tables, positions, positions >= 0, tiles, items)(pools, jnp.int32(1), *new)[0]

    return partial(met, None), {"kernel": partial(met, Decoding(kernel))}, (pools, tables, positions, items, q, k, v)
