"""Choose how a gradient becomes a step.

In:    settings, the logical axes of every weight, the length of the run
Out:   an optax transformation; one learning rate serves `adamw` and `muon`
Holds: norms and biases do not decay; muon orthogonalises each layer of a stacked weight by itself
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from optax.contrib import MuonDimensionNumbers

Axes = Mapping[str, tuple[str | None, ...]]

LAYER, WIDTH, VOCABULARY, RANK = "layer", "width", "vocab", "rank"  # the logical axes that decide what a weight is


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """How a gradient becomes a step. The defaults are DeepResearcher's, for a model of billions of weights.

    Args:
        name: `adamw`, or `muon`: orthogonalised momentum for the layers' matrices, Adam for everything else.
        learning_rate: at its highest.
        schedule: after the warm-up: `constant`, or down to `final` x learning_rate by `cosine` or `linear`.
        warmup: updates over which the rate rises linearly.
        final: fraction of the learning rate at the end of the run.
        b1: decay of Adam's mean.
        b2: decay of Adam's mean square.
        eps: added to Adam's denominator.
        weight_decay: decoupled; norms and biases do not decay.
        clip: the largest global norm of a gradient; 0 is off.
        momentum: muon's.
        newton_schulz: muon's iterations.
        rms: root mean square of muon's step per unit of learning rate; 0.2 is about Adam's.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-6
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0
    final: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    momentum: float = 0.95
    newton_schulz: int = 5
    rms: float = 0.2

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "rms"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}; a positive number is needed")
        for name in ("b1", "b2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; it lies in [0, 1)")
        for name in ("warmup", "final", "weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}; 0 or more is needed")
        if self.newton_schulz < 1:
            raise ValueError(f"newton_schulz = {self.newton_schulz}; at least 1 is needed")


def learning_rate(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Return the learning rate of an update by its index from 0, in a run of `steps` updates."""
    warmup, final = settings.warmup, settings.final

    def rate(count: Any) -> Array:
        done = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum(1.0, (done + 1) / (warmup + 1))
        way = jnp.clip((done - warmup) / max(1, steps - warmup), 0.0, 1.0)
        match settings.schedule:
            case "constant":
                fall = jnp.ones_like(way)
            case "linear":
                fall = 1 - (1 - final) * way
            case "cosine":
                fall = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * way))
        return settings.learning_rate * rise * fall

    return rate


def make_optimizer(settings: OptimizerSettings, axes: Axes, *, steps: int) -> optax.GradientTransformation:
    """Build the optimizer for weights with these logical axes, as `model.decoder.describe` tells them, and a run's steps.

    AdamW: Loshchilov and Hutter, arXiv 1711.05101. Muon: Jordan et al., "Muon" (2024); its step is scaled by
    rms sqrt(max(rows, columns)) so that it is as large as Adam's: Liu et al., arXiv 2502.16982, section 2.2.
    """
    adam = optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=settings.eps)
    if settings.name == "muon":
        labels = {name: "muon" if _matrix(found) else "adam" for name, found in axes.items()}
        direction = optax.partition({"muon": _muon(settings, axes), "adam": adam}, labels)
    else:
        direction = adam
    return _promoting(
        optax.chain(
            optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity(),
            direction,
            optax.add_decayed_weights(settings.weight_decay, {name: _decays(found) for name, found in axes.items()}),
            optax.scale_by_learning_rate(learning_rate(settings, steps)),
        )
    )


def _promoting(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Let optax mix integers and floats, which it does in its bias corrections, where strict promotion is on."""

    def init(weights: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return inner.init(weights)

    def update(gradient: Any, state: Any, weights: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(gradient, state, weights)

    return optax.GradientTransformation(init, update)


def _muon(settings: OptimizerSettings, axes: Axes) -> optax.GradientTransformation:
    """Orthogonalise the momentum of each layer's matrix, and give it Adam's size."""
    numbers = {name: _matrix(found) for name, found in axes.items()}

    def dimensions(updates: dict[str, Any]) -> dict[str, Any]:  # what is not muon's arrives masked, and stays so
        return {name: update if isinstance(update, optax.MaskedNode) else numbers[name] for name, update in updates.items()}

    def sized(updates: dict[str, Any], _: Any) -> dict[str, Any]:
        return {
            name: update if isinstance(update, optax.MaskedNode) else update * _size(update, numbers[name], settings.rms)
            for name, update in updates.items()
        }

    orthogonal = optax.contrib.scale_by_muon(
        beta=settings.momentum, ns_steps=settings.newton_schulz, weight_dimension_numbers=dimensions
    )
    return optax.chain(orthogonal, optax.stateless(sized))


def _size(update: Array, numbers: MuonDimensionNumbers, rms: float) -> float:
    def extent(where: tuple[int, ...]) -> int:
        product = 1
        for axis in where:
            product *= update.shape[axis]
        return product

    return rms * max(extent(numbers.reduction_axis), extent(numbers.output_axis)) ** 0.5


def _matrix(axes: tuple[str | None, ...]) -> MuonDimensionNumbers | None:
    """Find how a weight multiplies: from the residual stream or into it; None when it is no matrix of a layer.

    A projection of the attention has two axes on its far side (heads, channels of a head), taken together.
    """
    if LAYER not in axes or WIDTH not in axes or len(axes) < 3:
        return None
    width = axes.index(WIDTH)
    far = tuple(at for at, name in enumerate(axes) if name not in (LAYER, WIDTH))
    return MuonDimensionNumbers((width,), far) if width < far[0] else MuonDimensionNumbers(far, (width,))


def _decays(axes: tuple[str | None, ...]) -> bool:
    return VOCABULARY in axes or RANK in axes or _matrix(axes) is not None
