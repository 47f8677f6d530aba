"""Make better weights out of micro-batches.

In:    State, the micro-batches of one update, optionally the reference policy's weights
Out:   the next State (the given one is donated: its buffers are gone) and a flat dict of numbers
Holds: micro-batches are added up before anything is decided, so any split gives the gradient of the whole; the number of
       micro-batches, temperature, version and learning rate are data: one compiled program per row length, whatever they are
Skips: an update whose gradient is not finite; counted as `update/skipped`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Int

from dr_jax.learn import losses
from dr_jax.learn.batch import Batch
from dr_jax.learn.losses import LossSettings, Tally
from dr_jax.model.decoder import Remat, apart, head, hidden_states
from dr_jax.model.logprobs import token_logprobs
from dr_jax.model.lora import LoraSettings, scaled
from dr_jax.model.packed import How, one_cpu, packed_attention
from dr_jax.model.sizes import Sizes
from dr_jax.model.stretches import rolled, stretched_attention, stretches

Weights = dict[str, Array]
PerToken = Float[Array, "B T"]
UNROLLED = 8  # layers of a model that is computed without a scan on a CPU: the update of a small one is a tenth faster
CHUNK = 1024  # tokens whose logits are held at a time


class Forward(Protocol):
    """The model, as the update sees it."""

    def __call__(self, weights: Weights, batch: Batch, temperature: Float[Array, ""]) -> tuple[PerToken, PerToken]:
        """Return log-probability and entropy [B, T] at each token's own place; any value where nothing is trained."""
        ...


def through(
    sizes: Sizes,
    *,
    remat: Remat = "none",
    chunk: int = CHUNK,
    compute_dtype: DTypeLike | None = None,
    attention: How = "auto",
    platform: str | None = None,
    lora: LoraSettings | None = None,
) -> Forward:
    """Read log-probabilities off a decoder of these sizes.

    Args:
        sizes: of the decoder.
        remat: what of each layer the backward pass computes again instead of keeping it; see `model.decoder`.
        chunk: tokens whose logits are held at a time; [B, T, V] never is.
        compute_dtype: of the matrix products; None means that of the weights.
        attention: the kernel; see `model.packed`.
        platform: what is compiled for; None is the default backend.
        lora: what the adapters among the weights were made with; None where there are none.
    """

    def forward(weights: Weights, batch: Batch, temperature: Float[Array, ""]) -> tuple[PerToken, PerToken]:
        weights = scaled(weights, lora) if lora is not None else weights
        # Only where nothing is computed again: without a scan XLA would find it the same as before, and keep that.
        unrolled = sizes.layers <= UNROLLED and one_cpu(platform) and remat == "none"
        laid = apart(weights) if unrolled else weights
        if stretches() == 1:
            attend = packed_attention(batch.segments, attention, platform=platform)
        else:
            attend = stretched_attention(batch.segments)
        hidden_BTD, _ = hidden_states(laid, sizes, batch.ids, batch.positions, attend, remat=remat, compute_dtype=compute_dtype)
        # The hidden state at a token predicts the next one. What wraps around falls on a row's first token, never trained.
        next_BT, asked_BT = rolled(batch.ids, -1), rolled(batch.trained, -1)
        found = token_logprobs(
            hidden_BTD, head(weights, sizes), next_BT, temperature=temperature, chunk=chunk, asked_BT=asked_BT
        )
        logprobs_BT, entropy_BT = (rolled(values_BT, 1) for values_BT in found)
        return logprobs_BT, entropy_BT

    return forward


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class State:
    """Everything that learning changes.

    Args:
        weights: float32, by name.
        optimizer: optax's state.
        step: how many updates made these weights; it is also the policy's version.
    """

    weights: Weights
    optimizer: Any
    step: Any


def begin(weights: Weights, optimizer: optax.GradientTransformation, *, step: int = 0) -> State:
    """Start from a copy of the weights: the given ones stay valid when the state is donated.

    The optimizer's moments lie where their weights lie; what has no place of its own lies on every device.
    """
    home = next(iter(weights.values())).sharding
    everywhere = NamedSharding(home.mesh, PartitionSpec()) if isinstance(home, NamedSharding) else home

    def placed(leaf: Array) -> Array:  # placed explicitly, as the update's results are: a second compilation otherwise
        return jax.device_put(leaf, leaf.sharding if leaf.sharding.device_set == home.device_set and leaf.ndim else everywhere)

    copy = {name: placed(jnp.copy(weight)) for name, weight in weights.items()}
    return State(copy, jax.tree.map(placed, optimizer.init(copy)), placed(jnp.asarray(step, jnp.int32)))


def scoring(forward: Forward) -> Any:
    """Return the program of `make_score`, not compiled."""
    return jax.jit(lambda weights, batch, temperature: forward(weights, batch, temperature)[0])


def make_score(forward: Forward) -> Callable[[Weights, Batch, float], PerToken]:
    """Compile `score(weights, batch, temperature) -> logprobs_BT`, without gradients."""

    score = scoring(forward)

    def run(weights: Weights, batch: Batch, temperature: float) -> PerToken:
        with _mesh_of(weights):
            return score(weights, batch, _divisor(temperature))

    return run


def _divisor(temperature: float) -> np.float32:
    """What logits are divided by: greedy samples carry log-probabilities of the untempered distribution."""
    return np.float32(temperature or 1.0)


def _mesh_of(weights: Weights) -> AbstractContextManager[Any]:
    """Enter the mesh that the weights lie on, so that the model can keep activations with their rows."""
    home = next(iter(weights.values())).sharding
    return jax.set_mesh(home.mesh) if isinstance(home, NamedSharding) else nullcontext()


def _compiled_for(weights: Weights) -> dict[str, str]:
    """Return options of the compiler: XLA's fused matrix products on CPUs (YNNPACK's) take a quarter longer than Eigen's."""
    platform = next(iter(next(iter(weights.values())).sharding.device_set)).platform
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if platform == "cpu" else {}


Check = Callable[[float], None]


class Update(Protocol):
    """One policy update."""

    def __call__(
        self,
        state: State,
        batches: Sequence[Batch],
        *,
        temperature: float = 1.0,
        reference_weights: Weights | None = None,
        check: Check | None = None,
    ) -> tuple[State, dict[str, float]]:
        """Return the next state and what is worth watching.

        Args:
            state: donated; use the returned one from here on.
            batches: all micro-batches of this update, on the host or placed.
            temperature: that the tokens were sampled with; logits are divided by it, unless it is 0 (greedy).
            reference_weights: the frozen policy of the divergence term.
            check: told the largest mismatch of an on-policy token before any weight moves; what it raises leaves `state` valid.

        Raises:
            ValueError: there is no micro-batch, or a reference is needed and missing.
        """
        ...


def make_update(
    forward: Forward,
    loss: LossSettings,
    optimizer: optax.GradientTransformation,
    state: State,
    frozen: Weights | None = None,
) -> Update:
    """Compile the update.

    Args:
        forward: weights and batch to log-probabilities.
        loss: the objective.
        optimizer: what turns a gradient into a step; it clips the gradient where that is wanted.
        state: an example of the states to come: sums of gradients lie where its weights lie.
        frozen: weights that the model has beside those of the state; they are not trained and have no gradient.
    """
    beside = frozen or {}
    programs = Programs(forward, loss, optimizer, state)
    score = make_score(forward)

    def update(
        state: State,
        batches: Sequence[Batch],
        *,
        temperature: float = 1.0,
        reference_weights: Weights | None = None,
        check: Check | None = None,
    ) -> tuple[State, dict[str, float]]:
        if not batches:
            raise ValueError("an update needs at least one micro-batch; skip the step when packing found nothing to train")
        if loss.needs_reference and reference_weights is None:
            raise ValueError(f"loss.kl = {loss.kl!r} needs the weights of a reference policy")

        def scored(weights: Weights | None) -> list[PerToken | None]:
            return [None if weights is None else score({**beside, **weights}, batch, temperature) for batch in batches]

        with _mesh_of(state.weights):
            references = scored(reference_weights if loss.needs_reference else None)
            proximals = scored(state.weights if loss.needs_start else None)
            weights, moments = state.weights, state.optimizer
            passes: list[dict[str, float]] = []
            for _ in range(loss.epochs):
                gradient, tallies = programs.nothing(weights), []
                for batch, reference_BT, proximal_BT in zip(batches, references, proximals, strict=True):
                    gradient, tally = programs.add(
                        gradient, weights, beside, batch, reference_BT, proximal_BT, state.step, _divisor(temperature)
                    )
                    tallies.append(tally)
                found = losses.report(jax.device_get(tallies))
                if check is not None and not passes:
                    check(found["mismatch_max"])
                weights, moments, norms = programs.apply(weights, moments, gradient)
                passes.append(found | {name: float(norm) for name, norm in norms.items()})
        return State(weights, moments, state.step + 1), _told(passes)

    return update


class Programs:
    """The compiled parts of an update; where their results lie is read off an example of the state."""

    def __init__(self, forward: Forward, loss: LossSettings, optimizer: optax.GradientTransformation, example: State) -> None:
        places = jax.tree.map(lambda leaf: leaf.sharding, example)

        def nothing(weights: Weights) -> Weights:
            return jax.tree.map(lambda weight: jnp.zeros(weight.shape, jnp.float32), weights)

        def add_gradient(
            gradient: Weights,
            weights: Weights,
            frozen: Weights,
            batch: Batch,
            reference_BT: PerToken | None,
            proximal_BT: PerToken | None,
            version: Int[Array, ""],
            temperature: Float[Array, ""],
        ) -> tuple[Weights, Tally]:
            def share(weights: Weights) -> tuple[Float[Array, ""], Tally]:
                logprobs_BT, entropy_BT = forward({**frozen, **weights}, batch, temperature)
                given = {"version": version, "reference_BT": reference_BT, "proximal_BT": proximal_BT}
                return losses.loss(logprobs_BT, entropy_BT, batch, loss, **given)

            found, tally = jax.grad(share, has_aux=True)(weights)
            return jax.tree.map(lambda total, one: total + one.astype(jnp.float32), gradient, found), tally

        def apply(weights: Weights, moments: Any, gradient: Weights) -> tuple[Weights, Any, dict[str, Float[Array, ""]]]:
            norm = optax.tree.norm(gradient)
            finite = jnp.isfinite(norm)
            steps, after = optimizer.update(gradient, moments, weights)
            moved = optax.apply_updates(weights, steps)
            weights, moments = jax.tree.map(partial(jnp.where, finite), (moved, after), (weights, moments))
            norms = {"gradient_norm": norm, "step_norm": optax.tree.norm(steps), "skipped": 1.0 - finite.astype(jnp.float32)}
            return weights, moments, norms

        self.nothing = jax.jit(nothing, out_shardings=places.weights)
        options = _compiled_for(example.weights)
        self.add = jax.jit(
            add_gradient, donate_argnums=(0,), out_shardings=(places.weights, places.step), compiler_options=options
        )
        self.apply = jax.jit(apply, donate_argnums=(0, 1), out_shardings=(places.weights, places.optimizer, places.step))


def _told(passes: Sequence[dict[str, float]]) -> dict[str, float]:
    """Tell the last pass, but the mismatch of the first, before anything moved, and all skipped steps."""
    told = passes[-1] | {name: value for name, value in passes[0].items() if name.startswith("mismatch")}
    told["skipped"] = sum(one["skipped"] for one in passes)
    return {f"update/{name}": value for name, value in told.items()}
