"""Train a few numbers beside a model that stays as it is: low-rank adapters. Hu et al., arXiv 2106.09685.

In:    a model's weights, which are frozen, and settings
Out:   adapters `layers.X.lora_a` and `layers.X.lora_b`, named and placed as weights are; weights with the adapters in them
Holds: beside the weights in one dict, the decoder computes with them; fresh ones change nothing, since `lora_b` is 0
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from dr_jax.model import layout, tensors
from dr_jax.model.decoder import Weights, WeightSpec
from dr_jax.model.decoder import describe as describe_model
from dr_jax.model.sizes import Sizes
from dr_jax.sharding import hosts, rules

Target = Literal["query", "key", "value", "out", "gate", "up", "down"]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Adapters in place of the model's own weights: only they are trained, saved, and have an optimizer.

    Args:
        rank: of each adapter; 0 is off, and the whole model is trained.
        alpha: what an adapter adds is multiplied by alpha / rank.
        targets: which matrices of a layer have one.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[Target, ...] = ("query", "key", "value", "out", "gate", "up", "down")

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(f"rank = {self.rank}, alpha = {self.alpha}; at least 0 and more than 0 are needed")
        if self.rank and (not self.targets or len(set(self.targets)) != len(self.targets)):
            raise ValueError(f"targets = {self.targets}; at least one is needed, and each once")

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by."""
        return self.alpha / self.rank


def describe(sizes: Sizes, settings: LoraSettings) -> dict[str, WeightSpec]:
    """Return shape and logical axes of every adapter: of `layers.query` [L, D, H, C] they are [L, D, R] and [L, R, H, C]."""
    described, found = describe_model(sizes), {}
    for name, (into, out) in _sides(settings).items():
        spec, rank = described[name], settings.rank
        shape, axes = spec.shape, spec.axes
        found[f"{name}.lora_a"] = WeightSpec((*(shape[i] for i in (0, *into)), rank), (*(axes[i] for i in (0, *into)), "rank"))
        found[f"{name}.lora_b"] = WeightSpec(
            (shape[0], rank, *(shape[i] for i in out)), (axes[0], "rank", *(axes[i] for i in out))
        )
    return found


def fresh(sizes: Sizes, settings: LoraSettings, seed: int, *, mesh: Mesh) -> Weights:
    """Draw adapters, float32, where they belong: `lora_a` with a variance of 1 / inputs, `lora_b` of zeros."""
    described = describe(sizes, settings)

    def drawn(key: Array) -> Weights:
        made = {}
        for name, one in zip(sorted(described), jax.random.split(key, len(described)), strict=True):
            shape = described[name].shape
            inputs = int(np.prod(shape[1:-1]))
            made[name] = (
                jnp.zeros(shape, jnp.float32)
                if name.endswith("lora_b")
                else jax.random.normal(one, shape, jnp.float32) * jnp.float32(inputs**-0.5)
            )
        return made

    return jax.jit(drawn, out_shardings=rules.shardings(described, mesh))(jax.random.key(seed))


def scaled(weights: Mapping[str, Array], settings: LoraSettings) -> Weights:
    """Return weights with adapters among them as the decoder takes them: `lora_b` times alpha / rank."""
    return {
        name: weight * _like(settings.scale, weight) if name.endswith(".lora_b") else weight for name, weight in weights.items()
    }


def merged(base: Weights, adapters: Weights, settings: LoraSettings) -> Weights:
    """Return the weights of the model that base and adapters are together, in the base's dtype.

    Those without an adapter are the base's own arrays, not copies.
    """
    names = {name.rsplit(".", 1)[0] for name in adapters}
    pairs = {name: (base[name], adapters[f"{name}.lora_a"], adapters[f"{name}.lora_b"]) for name in names}
    places = {name: base[name].sharding for name in names}
    return {**base, **jax.jit(_added, static_argnames="scale", out_shardings=places)(pairs, scale=settings.scale)}


def write_adapter(path: str | Path, sizes: Sizes, settings: LoraSettings, adapters: Mapping[str, Array], *, base: str) -> None:
    """Write adapters as PEFT's `PeftModel.from_pretrained` reads them. With several processes each must call this.

    Args:
        path: a directory, made where it is missing, or an address in a bucket.
        sizes: of the model.
        settings: that the adapters were made with.
        adapters: as `describe` lists them.
        base: name or path of the model that they belong to.
    """
    forms = {
        f"{name}.{half}": layout.Form(
            f"base_model.model.{form.name.removesuffix('.weight')}.lora_{half[-1].upper()}.weight", dims
        )
        for name, (into, out) in _sides(settings).items()
        for form in (layout.FORMS[name],)
        for half, dims in (
            ("lora_a", ((len(into),), tuple(range(len(into))))),
            ("lora_b", (tuple(range(1, len(out) + 1)), (0,))),
        )
    }
    listed = [(name, layer) for layer in range(sizes.layers) for name in forms]
    described = {forms[name].name.format(layer): forms[name].shape(tuple(adapters[name].shape[1:])) for name, layer in listed}
    place = tensors.Place(path) if hosts.index() == 0 else None
    pieces = (forms[name].theirs(hosts.whole(adapters[name][layer])) for name, layer in listed)
    tensors.write(place, "adapter_model.safetensors", described, np.dtype(np.float32), pieces)
    if place is None:
        return
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(layout.FORMS[name].name.split(".")[-2] for name in _sides(settings)),
        "inference_mode": True,
    }
    with place.writing("adapter_config.json") as file:
        file.write((json.dumps(config, indent=1) + "\n").encode())


def _sides(settings: LoraSettings) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return of every target which of our axes are its inputs and which its outputs, the layers' being 0."""
    found = {}
    for target in settings.targets:
        out, into = layout.FORMS[f"layers.{target}"].dims  # their matrices are [out, in]
        found[f"layers.{target}"] = tuple(axis + 1 for axis in into), tuple(axis + 1 for axis in out)
    return found


def _added(pairs: dict[str, tuple[Array, Array, Array]], scale: float) -> Weights:
    def one(weight: Array, a: Array, b: Array) -> Array:
        layers, rank = a.shape[0], a.shape[-1]
        # In full precision: accelerators would multiply in bfloat16, and the sampler would drift from what is trained.
        added = jnp.matmul(a.reshape(layers, -1, rank), b.reshape(layers, rank, -1), precision="highest")
        return (weight.astype(jnp.float32) + added.reshape(weight.shape) * jnp.float32(scale)).astype(weight.dtype)

    return {name: one(*pair) for name, pair in pairs.items()}


def _like(value: float, array: Array) -> Array:
    return jnp.asarray(value, array.dtype)
