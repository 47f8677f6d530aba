"""Choose how packed rows attend: with a kernel of the platform, or in plain JAX.

In:    segment ids [B, T] and what the settings ask for
Out:   an `Attend`, as `attention.segment_attention` gives it
Holds: `auto` takes what was fastest, on this device, at this shape, of all that agreed with plain JAX about outputs and
       gradients, but on one CPU its kernel, which was faster at all that were measured; what fails, disagrees or is not of
       this platform is left, and that is said once
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from dr_jax.model import cpu, native, trial
from dr_jax.model.attention import segment_attention
from dr_jax.model.decoder import Attend
from dr_jax.model.kernels import KERNELS, Kernel
from dr_jax.sharding import hosts
from dr_jax.sharding.rules import RULES

How = Literal["auto", "plain", "splash", "triton", "cudnn", "native"]
OF_PLATFORM: dict[str, tuple[str, ...]] = {"tpu": ("splash",), "gpu": ("triton", "cudnn"), "cpu": ("native",)}


@dataclass(frozen=True, slots=True)
class Form:
    """Shapes of one device's part of a layer's attention: that of queries, the heads of keys, the dtype."""

    shape: tuple[int, int, int, int]
    kv_heads: int
    dtype: str

    def __str__(self) -> str:
        rows, length, heads, channels = self.shape
        return f"{self.dtype}[{rows}, {length}, {heads} / {self.kv_heads}, {channels}]"


def packed_attention(segments_BT: Int[Array, "B T"], how: How = "auto", *, platform: str | None = None) -> Attend[Any]:
    """Return causal attention within segments.

    Args:
        segments_BT: tokens with equal ids see each other; 0 is padding, which sees only padding.
        how: the kernel, `plain`, or `auto`.
        platform: of the devices; None is the default backend's. Another one is compiled for and cannot be tried: `auto` is
            then its first kernel.
    """
    platform = platform or jax.default_backend()
    plain = segment_attention(segments_BT)
    if how == "plain" or (how == "auto" and platform not in OF_PLATFORM):
        return plain

    def here(q_BTHC: Array, k_BTKC: Array, v_BTKC: Array, segments_BT: Array) -> Array:
        kernel = KERNELS.get(chosen(how, Form(q_BTHC.shape, k_BTKC.shape[2], q_BTHC.dtype.name), platform), _plain)
        return kernel(q_BTHC, k_BTKC, v_BTKC, segments_BT)

    def attend(
        cache: Any,
        layer: Int[Array, ""],
        q_BTHC: Float[Array, "B T H C"],
        k_BTKC: Float[Array, "B T K C"],
        v_BTKC: Float[Array, "B T K C"],
    ) -> tuple[Float[Array, "B T H C"], Any]:
        if platform == "cpu" and not one_cpu(platform):  # the compiler splits plain JAX
            if how != "auto":
                trial.say(f"attention {how!r} is not for several devices of a CPU")
            return plain(cache, layer, q_BTHC, k_BTKC, v_BTKC)
        return over_devices(here, q_BTHC, k_BTKC, v_BTKC, segments_BT), cache

    return attend


def over_devices(kernel: Kernel, q_BTHC: Array, k_BTKC: Array, v_BTKC: Array, segments_BT: Array) -> Array:
    """Let each device of the mesh in use attend for its own rows and heads; kernels cannot be split by the compiler."""
    if _devices() == 1:
        return kernel(q_BTHC, k_BTKC, v_BTKC, segments_BT)
    mesh = jax.sharding.get_abstract_mesh()
    rows, heads = (_over(axis, size, mesh) for axis, size in (("row", q_BTHC.shape[0]), ("heads", q_BTHC.shape[2])))
    ways = int(np.prod([mesh.shape[axis] for axis in heads or ()]))
    k_BTKC, v_BTKC = (_divisible(x, q_BTHC.shape[2], ways) for x in (k_BTKC, v_BTKC))
    split = PartitionSpec(rows, None, heads)
    places = (split, split, split, PartitionSpec(rows))
    return jax.shard_map(kernel, in_specs=places, out_specs=split, check_vma=False)(q_BTHC, k_BTKC, v_BTKC, segments_BT)


def one_cpu(platform: str | None = None) -> bool:
    """Whether the program that is traced is for a single CPU device; None is the default backend."""
    return (platform or jax.default_backend()) == "cpu" and _devices() == 1


def _devices() -> int:
    """How many devices the program that is traced is for."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else int(mesh.size)


def _over(axis: str, size: int, mesh: jax.sharding.AbstractMesh) -> tuple[str, ...] | None:
    over = tuple(name for name in RULES[axis].over if name in mesh.axis_names)
    return over if over and size % int(np.prod([mesh.shape[name] for name in over])) == 0 else None


def _divisible(x_BTKC: Array, heads: int, ways: int) -> Array:
    """Repeat key heads, as few times as it takes, until each device gets those of its own queries."""
    kv_heads = x_BTKC.shape[2]
    times = next(n for n in range(1, heads + 1) if kv_heads * n % ways == 0 and heads % (kv_heads * n) == 0)
    return jnp.repeat(x_BTKC, times, axis=2) if times > 1 else x_BTKC


@lru_cache(maxsize=64)
def chosen(how: How, form: Form, platform: str) -> str:
    """Return the kernel to use at these shapes, or `plain`; kernels are tried where they can be run."""
    candidates = OF_PLATFORM.get(platform, ())
    if how != "auto":
        if how not in candidates:
            trial.say(f"attention {how!r} is not for {platform}")
            return "plain"
        candidates = (how,)
    if candidates == ("native",):
        return _native(form)
    if platform != jax.default_backend():
        return candidates[0]
    kernels = {name: partial(_with_gradients, KERNELS[name]) for name in candidates}
    what = f"attention in packed rows {form}, forward and backward"
    best = trial.chosen(partial(_with_gradients, _plain), kernels, arguments(form), what, race=how == "auto")
    return hosts.of_first(f"{how} {what}", best)  # the update is one program: another process may have measured another best


def _native(form: Form) -> str:
    if reason := native.refusal(form.shape[-1], form.dtype, "queries and keys"):
        trial.say(f"the kernel for packed rows cannot be used for {reason}")
        return "plain"
    try:
        cpu.load()
    except native.NoKernelError as error:
        trial.say(str(error))
        return "plain"
    return "native"


def _plain(q_BTHC: Array, k_BTKC: Array, v_BTKC: Array, segments_BT: Array) -> Array:
    return segment_attention(segments_BT)(None, jnp.int32(0), q_BTHC, k_BTKC, v_BTKC)[0]


def arguments(form: Form) -> tuple[np.ndarray, ...]:
    """Draw one row of three segments and some padding, and what comes back from above."""
    _, length, heads, channels = form.shape
    rng = np.random.default_rng(0)
    q, k, v, above = (
        rng.standard_normal((1, length, count, channels), np.float32).astype(jnp.dtype(form.dtype))
        for count in (heads, form.kv_heads, form.kv_heads, heads)
    )
    segments = 1 + np.arange(length) * 4 // length
    segments[segments == 4] = 0
    return q, k, v, segments[None].astype(np.int32), above


def _with_gradients(kernel: Kernel, q: Array, k: Array, v: Array, segments: Array, above: Array) -> tuple[Array, ...]:
    """Return output and gradients; padding is left out of both."""
    real = (segments > 0)[:, :, None, None].astype(q.dtype)
    out, pull = jax.vjp(lambda q, k, v: kernel(q, k, v, segments) * real, q, k, v)
    return (out, *pull(above))
