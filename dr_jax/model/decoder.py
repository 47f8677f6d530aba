"""The decoder: Flax NNX modules say which weights there are, plain functions compute with them.

In:    weights as one flat dict, ids [B, T], positions [B, T], and a way to attend
Out:   hidden states [B, T, D] after the final norm, and the attention's own cache
Holds: every layer's weights are stacked on a leading axis and scanned, so compile time does not grow with depth; the
       cache is carried through the scan, so pages of keys and values are updated in place
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, assert_never, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from dr_jax.model import rope
from dr_jax.model.sizes import Sizes
from dr_jax.sharding.rules import split

Weights = dict[str, Array]
Laid = Mapping[str, Any]  # Weights, or what `merged` and `apart` make of them
Cache = TypeVar("Cache")
# What of a layer the backward pass computes again: nothing; all but the results of its matrix products, which are attention,
# norms and what acts on single numbers; everything.
Remat = Literal["none", "products", "full"]
# Rows from here on lie between layers in as many parts as heads do (Korthikanti et al., arXiv 2205.05198): of 16 rows of 32,768
# tokens a model of 7B has 26 GiB of activations on each of 16 chips, and 50 otherwise. Chips send each other more for it: with
# rows of 8,192 tokens on 64 chips 76 GB instead of 24, to save one GiB.
LONG = 16_384


@runtime_checkable
class Attend(Protocol[Cache]):
    """How queries of one layer meet keys and values, now and remembered ones."""

    def __call__(
        self,
        cache: Cache,
        layer: Int[Array, ""],
        q_BTHC: Float[Array, "B T H C"],
        k_BTKC: Float[Array, "B T K C"],
        v_BTKC: Float[Array, "B T K C"],
    ) -> tuple[Float[Array, "B T H C"], Cache]:
        """Return what each query gathered, and the cache after this layer.

        Queries and keys are normalised and turned already; dividing the scores by sqrt(C) is done here.
        """
        ...


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """Shape of one weight and the logical name of each of its axes."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]


class Declare:
    """Makes one `nnx.Param` after another, each with its axes named beside its shape."""

    def __init__(self, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        self.rngs, self.dtype = rngs, dtype

    def normal(self, deviation: float, **axes: int) -> nnx.Param:
        """Declare a matrix that starts normally distributed."""
        drawn = jax.random.normal(self.rngs.params(), tuple(axes.values()), jnp.float32) * jnp.float32(deviation)
        return nnx.Param(drawn.astype(self.dtype), axes=tuple(axes))

    def ones(self, **axes: int) -> nnx.Param:
        """Declare a gain."""
        return nnx.Param(jnp.ones(tuple(axes.values()), self.dtype), axes=tuple(axes))

    def zeros(self, **axes: int) -> nnx.Param:
        """Declare a bias."""
        return nnx.Param(jnp.zeros(tuple(axes.values()), self.dtype), axes=tuple(axes))


class Layers(nnx.Module):  # type: ignore[misc]  # flax is not followed
    """All blocks at once: attention and a gated feed-forward layer, each behind an RMS norm."""

    def __init__(self, sizes: Sizes, declare: Declare) -> None:
        s, layers, fan_in = sizes, {"layer": sizes.layers}, sizes.width**-0.5
        residual = (2 * s.layers) ** -0.5  # 2 L branches add up: GPT-2's scaling keeps the stream's variance near 1
        width, heads, kv = {"width": s.width}, {"heads": s.heads}, {"kv_heads": s.kv_heads}
        channels, ff = {"channels": s.head_dim}, {"ff": s.ff}
        self.attention_norm = declare.ones(**layers, gain=s.width)
        self.query = declare.normal(fan_in, **layers, **width, **heads, **channels)
        self.key = declare.normal(fan_in, **layers, **width, **kv, **channels)
        self.value = declare.normal(fan_in, **layers, **width, **kv, **channels)
        self.out = declare.normal((s.heads * s.head_dim) ** -0.5 * residual, **layers, **heads, **channels, **width)
        if s.qkv_bias:
            self.query_bias = declare.zeros(**layers, **heads, **channels)
            self.key_bias = declare.zeros(**layers, **kv, **channels)
            self.value_bias = declare.zeros(**layers, **kv, **channels)
        if s.qk_norm:
            self.query_norm = declare.ones(**layers, gain=s.head_dim)
            self.key_norm = declare.ones(**layers, gain=s.head_dim)
        self.ff_norm = declare.ones(**layers, gain=s.width)
        self.gate = declare.normal(fan_in, **layers, **width, **ff)
        self.up = declare.normal(fan_in, **layers, **width, **ff)
        self.down = declare.normal(s.ff**-0.5 * residual, **layers, **ff, **width)


class Decoder(nnx.Module):  # type: ignore[misc]
    """Every weight of a model, declared."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        declare = Declare(rngs, dtype)
        self.embed = declare.normal(0.02, vocab=sizes.vocab, width=sizes.width)
        self.layers = Layers(sizes, declare)
        self.final_norm = declare.ones(gain=sizes.width)
        if not sizes.tied:
            self.head = declare.normal(sizes.width**-0.5, width=sizes.width, vocab=sizes.vocab)


def initial(sizes: Sizes, key: Array, dtype: DTypeLike = jnp.float32) -> Weights:
    """Draw fresh weights. Under `jax.jit` with output shardings every device draws only its own part."""
    return {name: param.get_value() for name, param in _params(Decoder(sizes, nnx.Rngs(params=key), dtype)).items()}


def abstract(sizes: Sizes, dtype: DTypeLike = jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and dtype of every weight without making any."""
    return {name: jax.ShapeDtypeStruct(spec.shape, jnp.dtype(dtype)) for name, spec in describe(sizes).items()}


def describe(sizes: Sizes) -> dict[str, WeightSpec]:
    """Return shape and logical axes of every weight, read from the abstract module."""
    module = nnx.eval_shape(lambda: Decoder(sizes, nnx.Rngs(params=0)))
    return {name: WeightSpec(tuple(param.shape), param.get_metadata("axes")) for name, param in _params(module).items()}


def hidden_states(
    weights: Laid,
    sizes: Sizes,
    ids_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    attend: Attend[Cache],
    cache: Cache = None,  # type: ignore[assignment]
    *,
    remat: Remat = "none",
    compute_dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Run every layer.

    Args:
        weights: as `describe` lists them, or `merged` and `apart`; adapters of `lora.scaled` may be among them.
        sizes: of the model.
        ids_BT: token ids.
        positions_BT: of each token in its own sequence, from 0.
        attend: called once per layer.
        cache: a pytree that `attend` reads and replaces; None where it keeps nothing.
        remat: what of a layer the backward pass computes again instead of keeping it.
        compute_dtype: of the matrix products; None means that of the weights. Norms, rope and softmax are in float32.

    Returns:
        Hidden states after the final norm, and the cache after the last layer.
    """
    dtype = jnp.dtype(compute_dtype or weights["embed"].dtype)
    place = "place" if ids_BT.shape[1] >= LONG else None
    turned = rope.angles(positions_BT, sizes.rope, sizes.head_dim)
    stacked = {name.removeprefix("layers."): weight for name, weight in weights.items() if name.startswith("layers.")}

    def layer(
        carry: tuple[Float[Array, "B T D"], Cache], here: tuple[Int[Array, ""], Weights]
    ) -> tuple[tuple[Float[Array, "B T D"], Cache], None]:
        (x_BTD, cache), (index, raw) = carry, here
        w = {name: weight.astype(dtype) for name, weight in raw.items()}
        gathered_BTD, cache = _attention(x_BTD, w, sizes, turned, partial(attend, cache, index))
        x_BTD = split(x_BTD + gathered_BTD, "row", place, None)
        return (split(x_BTD + _feed_forward(x_BTD, w, sizes, gated), "row", place, None), cache), None

    # Of numbers by themselves, computing is quicker than keeping: a tenth of the memory of a small model's update.
    gated = jax.checkpoint(_gated) if remat == "none" else _gated
    body = _forgetting(layer, remat)

    def layers(carry: tuple[Float[Array, "B T D"], Cache]) -> tuple[Float[Array, "B T D"], Cache]:
        numbers = jnp.arange(sizes.layers, dtype=jnp.int32)
        if all(isinstance(weight, jax.Array) for weight in stacked.values()):
            carry, _ = jax.lax.scan(body, carry, (numbers, stacked))
            return carry
        alike = jax.jit(body)  # traced and lowered once for all of them: a start is seconds shorter
        for number in range(sizes.layers):
            carry, _ = alike(carry, (numbers[number], {name: weight[number] for name, weight in stacked.items()}))
        return carry

    # Activations keep their rows, so that weights move and not activations: the table is gathered before it is looked up in.
    x_BTD = split(split(weights["embed"].astype(dtype), "vocab", None)[ids_BT], "row", place, None)
    x_BTD, cache = layers((x_BTD, cache))
    return rms_norm(x_BTD, weights["final_norm"].astype(dtype), sizes.norm_eps), cache


def _forgetting(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    match remat:
        case "none":
            return layer
        case "products":
            kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable  # those of attention have one for rows and heads
            return jax.checkpoint(layer, prevent_cse=False, policy=kept)
        case "full":
            return jax.checkpoint(layer, prevent_cse=False)
    assert_never(remat)


def apart(weights: Weights) -> Laid:
    """Return weights whose layers lie each for themselves, to be computed one after the other without a scan.

    XLA's CPU backend copies a layer's weights out of the stack before it computes with them, which takes as long as a few rows
    of ids do. The programs become as long as the model is deep.
    """
    return {name: list(weight) if name.startswith("layers.") else weight for name, weight in weights.items()}


def merged(weights: Weights) -> Weights:
    """Return weights for few rows of ids: one matrix where one input meets several, and each as its product reads it.

    Query, key and value become `qkv` [L, D, (H + 2 K) C], gate and up `gate_up` [L, D, 2 F]; `out` becomes [L, H C, D], and the
    embedding that is the head, too, lies a second time as [D, V]. With 16 rows on two cores a step takes a quarter less; the
    result is for computing only.
    """
    kept = {name: weight for name, weight in weights.items() if name not in _MERGED}
    flat = lambda weight_LDHC: weight_LDHC.reshape(*weight_LDHC.shape[:2], -1)  # noqa: E731
    out_LHCD = weights["layers.out"]
    return {
        **kept,
        "layers.qkv": jnp.concatenate([flat(weights[f"layers.{name}"]) for name in ("query", "key", "value")], axis=-1),
        "layers.gate_up": jnp.concatenate([weights["layers.gate"], weights["layers.up"]], axis=-1),
        "layers.out": out_LHCD.reshape(out_LHCD.shape[0], -1, out_LHCD.shape[-1]),
        "head": weights["head"] if "head" in weights else weights["embed"].T,
    }


_MERGED = {f"layers.{name}" for name in ("query", "key", "value", "gate", "up", "out")}


def head(weights: Laid, sizes: Sizes) -> Float[Array, "D V"]:
    """Return the matrix that turns hidden states into logits."""
    return weights["head"] if "head" in weights else weights["embed"].T


def rms_norm(x: Float[Array, "... C"], gain: Float[Array, " C"], eps: float) -> Float[Array, "... C"]:
    """Divide by the root of the mean square, in float32. Zhang and Sennrich, arXiv 1910.07467."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + jnp.float32(eps))
    return (wide * scale).astype(x.dtype) * gain.reshape((1,) * (x.ndim - 1) + gain.shape)


def _attention(
    x_BTD: Float[Array, "B T D"],
    w: Weights,
    sizes: Sizes,
    turned: tuple[Float[Array, "B T R"], Float[Array, "B T R"]],
    gather: Callable[..., tuple[Float[Array, "B T H C"], Cache]],
) -> tuple[Float[Array, "B T D"], Cache]:
    h_BTD = rms_norm(x_BTD, w["attention_norm"], sizes.norm_eps)
    q_BTHC, k_BTKC, v_BTKC = _queries_keys_values(h_BTD, w, sizes)
    if sizes.qkv_bias:
        q_BTHC, k_BTKC, v_BTKC = (
            x + w[name][None, None] for x, name in ((q_BTHC, "query_bias"), (k_BTKC, "key_bias"), (v_BTKC, "value_bias"))
        )
    if sizes.qk_norm:
        q_BTHC, k_BTKC = (rms_norm(x, w[name], sizes.norm_eps) for x, name in ((q_BTHC, "query_norm"), (k_BTKC, "key_norm")))
    out_BTHC, cache = gather(rope.rotate(q_BTHC, *turned), rope.rotate(k_BTKC, *turned), v_BTKC)
    if "qkv" in w:
        return out_BTHC.reshape(*x_BTD.shape[:2], -1) @ w["out"], cache
    return _adapted(jnp.einsum("BTHC,HCD->BTD", out_BTHC, w["out"]), out_BTHC, w, "out"), cache


def _queries_keys_values(h_BTD: Float[Array, "B T D"], w: Weights, sizes: Sizes) -> list[Array]:
    if "qkv" not in w:
        names = ("query", "key", "value")
        return [_adapted(jnp.einsum("BTD,DHC->BTHC", h_BTD, w[name]), h_BTD, w, name) for name in names]
    all_BTHC = (h_BTD @ w["qkv"]).reshape(*h_BTD.shape[:2], -1, sizes.head_dim)
    return jnp.split(all_BTHC, [sizes.heads, sizes.heads + sizes.kv_heads], axis=2)


def _feed_forward(
    x_BTD: Float[Array, "B T D"], w: Weights, sizes: Sizes, gated: Callable[[Array, Array], Array]
) -> Float[Array, "B T D"]:
    # One flat axis of tokens: with two, XLA's CPU backend transposes the wide intermediates in the backward pass (1.6x time).
    h_ND = rms_norm(x_BTD, w["ff_norm"], sizes.norm_eps).reshape(-1, x_BTD.shape[-1])
    if "gate_up" in w:
        gate_NF, up_NF = jnp.split(h_ND @ w["gate_up"], 2, axis=-1)
    else:
        gate_NF, up_NF = (_adapted(h_ND @ w[name], h_ND, w, name) for name in ("gate", "up"))
    inner_NF = gated(gate_NF, up_NF)
    return _adapted(inner_NF @ w["down"], inner_NF, w, "down").reshape(x_BTD.shape)


def _gated(gate_NF: Array, up_NF: Array) -> Array:
    return jax.nn.silu(gate_NF) * up_NF


def _adapted(y: Float[Array, "*rows_and_out"], x: Float[Array, "*rows_and_in"], w: Weights, name: str) -> Array:
    """Add what a low-rank adapter makes of a product's input, where the weights have one: see `lora`."""
    if f"{name}.lora_a" not in w:
        return y
    a, b = w[f"{name}.lora_a"], w[f"{name}.lora_b"]
    return y + jnp.tensordot(jnp.tensordot(x, a, axes=a.ndim - 1), b, axes=1)


def _params(module: nnx.Module) -> dict[str, nnx.Param]:
    return {".".join(map(str, path)): param for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param))}
