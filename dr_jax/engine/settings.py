"""What an engine can be told, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from dr_jax.model.sizes import Sizes


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Fixed capacities; everything that differs between requests is data.

    Args:
        slots: requests that run at once.
        pages: of the pool; 0 means that all slots can reach `max_context` together.
        host_pages: pages that are kept in host memory when the pool needs their room, until a later turn asks for them; 0 is
            none: they are computed again. Of use where the device has memory of its own.
        page_size: tokens in a page; what two requests share is counted in pages, and large ones are read faster.
        max_context: most tokens of one request, prompt and what is drawn.
        tokens_per_call: ids drawn per slot in one device call; new requests and new weights wait for a call to end.
        prefill_rows: rows of the prefill programs, rising: few for one observation, many for many prompts.
        prefill_width: known ids computed per row of them.
        block: tokens that attention meets at a time; 0 chooses by backend.
        unrolled_layers: on a CPU, models of at most so many layers are computed layer by layer, not in a scan: faster, but the
            programs take longer to compile.
        max_waiting: requests that run or are queued; further callers wait before they are queued.
        dtype: of keys and values.
        attention: how queries meet pages: `auto` is the faster of what this device has, tried at the start, and on a CPU
            its kernel; `plain` is JAX without kernels; `kernel` is the kernel of the platform. Where it cannot be used, `plain`
            is.
        memory_gib: most GiB of each device for keys and values; 0 is what is free, where the device tells it.
    """

    slots: int = 32
    pages: int = 0
    host_pages: int = 0
    page_size: int = 64
    max_context: int = 2048
    tokens_per_call: int = 8
    prefill_rows: tuple[int, ...] = (2, 8, 32)
    prefill_width: int = 32
    block: int = 0
    unrolled_layers: int = 8
    max_waiting: int = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "plain", "kernel"] = "auto"
    memory_gib: float = 0.0

    def __post_init__(self) -> None:
        for name in ("slots", "page_size", "max_context", "tokens_per_call", "prefill_width", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; at least 1 is needed")
        if not self.prefill_rows or list(self.prefill_rows) != sorted(set(self.prefill_rows)) or self.prefill_rows[0] < 1:
            raise ValueError(f"prefill_rows = {self.prefill_rows}; rising numbers from 1 are needed")
        if self.pages < 0 or 0 < self.pages < 2:
            raise ValueError(f"pages = {self.pages}; 0 (enough for all slots) or at least 2 is needed")
        if self.host_pages < 0:
            raise ValueError(f"host_pages = {self.host_pages}; 0 (none) or more is needed")
        if self.memory_gib < 0:
            raise ValueError(f"memory_gib = {self.memory_gib}; 0 (what is free) or more is needed")
        if self.block % self.page_size:
            raise ValueError(f"block = {self.block} is not a multiple of page_size = {self.page_size}")

    @property
    def pages_per_request(self) -> int:
        """Pages that the longest request fills."""
        return -(-self.max_context // self.page_size)

    @property
    def page_count(self) -> int:
        """Pages of the pool, the scratch page included."""
        return self.pages or self.slots * self.pages_per_request + 1

    @property
    def context_of_all(self) -> int:
        """Tokens that every slot can have when all have as many."""
        return min(self.max_context, (self.page_count - 1) * self.page_size // self.slots)


def memory_bytes(settings: EngineSettings, sizes: Sizes) -> int:
    """Return how many bytes the pools of keys and values take, over all devices that they are split over."""
    return settings.page_count * _page_bytes(settings, sizes)


def host_bytes(settings: EngineSettings, sizes: Sizes) -> int:
    """Return how many bytes of host memory the parked pages can take."""
    return settings.host_pages * _page_bytes(settings, sizes)


def _page_bytes(settings: EngineSettings, sizes: Sizes) -> int:
    per_token = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * jnp.dtype(settings.dtype).itemsize
    return settings.page_size * per_token
