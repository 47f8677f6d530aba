"""The objective: from log-probabilities of tokens to one number to minimise, and what to watch.

In:    the trainer's log-probabilities and entropies [B, T], and the batch's recorded ones
Out:   the share of the loss of one micro-batch (shares add up to the update's loss), and sums for the metrics
Holds: no term contains a token that the world wrote: those are cut out before the first exponential
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from dr_jax.learn.batch import Batch

PerToken = Float[Array, "B T"]

_FAR = 20.0  # log-ratios are cut here: exp(20) = 5e8 is clipped or thrown away anyhow, exp(100) would be infinite in float32


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What is minimised. The defaults are DeepResearcher's.

    Args:
        objective: `policy` (clipped policy gradient) or `supervised` (likelihood of the POLICY tokens).
        clip_low: the ratio is clipped at 1 - clip_low.
        clip_high: and at 1 + clip_high.
        dual_clip: bound on ratio times |advantage| where the advantage is negative, above 1; 0 is off.
        kl: estimator of the divergence from the reference policy, or `none`: no reference is needed then.
        kl_coefficient: weight of that divergence in the loss.
        entropy_coefficient: weight of the entropy, which is rewarded.
        importance: `none` clips against the sampler's log-probabilities; `truncated` clips against the trainer's own at the
            start of the update and weighs each token by the truncated ratio between the two.
        importance_cap: where that weight is truncated.
        epochs: optimizer steps per update, each over all of its tokens (PPO's epochs).
    """

    objective: Literal["policy", "supervised"] = "policy"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    kl: Literal["none", "k1", "k2", "k3"] = "k3"
    kl_coefficient: float = 0.001
    entropy_coefficient: float = 0.001
    importance: Literal["none", "truncated"] = "none"
    importance_cap: float = 2.0
    epochs: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.clip_low <= 1:
            raise ValueError(f"clip_low = {self.clip_low}; it lies in (0, 1]")
        if self.clip_high <= 0:
            raise ValueError(f"clip_high = {self.clip_high}; a positive number is needed")
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(f"dual_clip = {self.dual_clip}; 0 (off) or more than 1 is needed")
        if self.kl_coefficient < 0:
            raise ValueError(f"kl_coefficient = {self.kl_coefficient}; 0 or more is needed")
        if self.importance_cap <= 0:
            raise ValueError(f"importance_cap = {self.importance_cap}; a positive number is needed")
        if self.epochs < 1:
            raise ValueError(f"epochs = {self.epochs}; at least 1 is needed")

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen reference policy enters the loss."""
        return self.objective == "policy" and self.kl != "none"

    @property
    def needs_start(self) -> bool:
        """Whether the trainer's log-probabilities at the start of an update must be kept, because it moves in several steps."""
        return self.objective == "policy" and self.importance == "truncated" and self.epochs > 1


def clipped_surrogate(log_ratio: PerToken, advantages: PerToken, *, low: float, high: float, dual: float = 0.0) -> PerToken:
    """Compute -min(r A, clip(r, 1 - low, 1 + high) A), for negative A at most dual |A|.

    PPO: Schulman et al., arXiv 1707.06347, equation 7. Two bounds: DAPO, Yu et al., arXiv 2503.14476.
    Dual clip: Ye et al., arXiv 1912.09729.
    """
    ratio = jnp.exp(log_ratio)
    objective = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages)
    if dual:
        objective = jnp.where(advantages < 0, jnp.maximum(objective, dual * advantages), objective)
    return -objective


def kl_estimate(log_ratio: PerToken, kind: Literal["k1", "k2", "k3"]) -> PerToken:
    """Estimate KL(policy || reference) from tokens of the policy; `log_ratio` is log policy - log reference.

    k1 = log r is unbiased and noisy, k2 = (log r)² / 2 is biased and calm, k3 = exp(-log r) - 1 + log r is unbiased and
    never negative. As a loss k1 pushes nowhere on average, and k2 has the gradient of the exact divergence on-policy.
    Schulman, "Approximating KL divergence" (2020); GRPO uses k3: arXiv 2402.03300, equation 4.
    """
    match kind:
        case "k1":
            return log_ratio
        case "k2":
            return 0.5 * jnp.square(log_ratio)
        case "k3":
            return jnp.expm1(-log_ratio) + log_ratio


def truncated_importance(log_ratio: PerToken, cap: float) -> PerToken:
    """Compute min(proximal / behaviour, cap), a constant weight that corrects for who really drew the token.

    Decoupled objective: Hilton et al., arXiv 2110.00641. Truncation: IMPALA, Espeholt et al., arXiv 1802.01561.
    """
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_ratio), cap))


class Tally(NamedTuple):
    """Sums and maxima over trained tokens, from which the metrics of an update are made."""

    sums: dict[str, Float[Array, ""]]
    maxima: dict[str, Float[Array, ""]]


def loss(
    logprobs_BT: PerToken,
    entropy_BT: PerToken,
    batch: Batch,
    settings: LossSettings,
    *,
    version: Int[Array, ""] | int,
    reference_BT: PerToken | None = None,
    proximal_BT: PerToken | None = None,
) -> tuple[Float[Array, ""], Tally]:
    """Compute one micro-batch's share of the update's loss.

    Args:
        logprobs_BT: the trainer's log-probability of the token at each place; read only where the token is trained.
        entropy_BT: of the distribution that each token was drawn from.
        batch: the micro-batch.
        settings: the objective.
        version: of the trainer's weights; tokens drawn with this version, context included, are on-policy.
        reference_BT: log-probabilities under the reference policy, needed when `settings.needs_reference`.
        proximal_BT: log-probabilities at the start of the update; None means that the update starts here.
    """
    trained, tally = batch.trained, dict[str, Shaped[Array, "B T"]]()
    logprobs_BT, entropy_BT = jnp.where(trained, logprobs_BT, 0.0), jnp.where(trained, entropy_BT, 0.0)
    if settings.objective == "supervised":
        per_token = -logprobs_BT
    else:
        per_token, tally = _policy(logprobs_BT, batch, settings, proximal_BT)
    if settings.needs_reference:
        if reference_BT is None:
            raise ValueError(f"kl = {settings.kl!r} needs log-probabilities of a reference policy")
        assert settings.kl != "none"
        log_ratio = _log_ratio(logprobs_BT, reference_BT, trained)
        divergence = kl_estimate(log_ratio, settings.kl)
        per_token = per_token + settings.kl_coefficient * divergence
        tally["kl"] = divergence
    if settings.objective == "policy" and settings.entropy_coefficient:
        per_token = per_token - settings.entropy_coefficient * entropy_BT
    weighted = batch.weights * per_token
    tally |= {"loss": weighted, "entropy": entropy_BT, "logprob": logprobs_BT, "tokens": jnp.ones_like(entropy_BT)}
    drawn_now = trained & batch.pure & (batch.versions == version) & (settings.objective == "policy")
    gap = jnp.where(drawn_now, jnp.abs(logprobs_BT - batch.sampled_logprobs), 0.0)
    return jnp.sum(weighted), jax.lax.stop_gradient(_tally(tally, trained, drawn_now, gap))


def _policy(
    logprobs_BT: PerToken, batch: Batch, settings: LossSettings, proximal_BT: PerToken | None
) -> tuple[PerToken, dict[str, Shaped[Array, "B T"]]]:
    trained = batch.trained
    tally: dict[str, Shaped[Array, "B T"]] = {}
    if settings.importance == "truncated":
        start_BT = jax.lax.stop_gradient(logprobs_BT if proximal_BT is None else proximal_BT)
        weight = truncated_importance(_log_ratio(start_BT, batch.sampled_logprobs, trained), settings.importance_cap)
        tally["importance"] = weight
    else:
        start_BT, weight = batch.sampled_logprobs, None
    log_ratio = _log_ratio(logprobs_BT, start_BT, trained)
    advantages = jnp.where(trained, batch.advantages, 0.0)
    per_token = clipped_surrogate(
        log_ratio, advantages, low=settings.clip_low, high=settings.clip_high, dual=settings.dual_clip
    )
    ratio = jnp.exp(log_ratio)
    tally |= {
        "ratio": ratio,
        "clip_low": (ratio < 1 - settings.clip_low) & (advantages < 0),
        "clip_high": (ratio > 1 + settings.clip_high) & (advantages > 0),
        "advantage": advantages,
    }
    return (per_token if weight is None else weight * per_token), tally


def _log_ratio(above_BT: PerToken, below_BT: PerToken, trained: Bool[Array, "B T"]) -> PerToken:
    return jnp.clip(jnp.where(trained, above_BT - below_BT, 0.0), -_FAR, _FAR)


def _tally(
    per_token: dict[str, Shaped[Array, "B T"]], trained: Bool[Array, "B T"], drawn_now: Bool[Array, "B T"], gap: PerToken
) -> Tally:
    sums = {name: jnp.sum(jnp.where(trained, value.astype(jnp.float32), 0.0)) for name, value in per_token.items()}
    sums |= {"mismatch": jnp.sum(gap), "on_policy": jnp.sum(drawn_now.astype(jnp.float32))}
    maxima = {"mismatch": jnp.max(gap)}
    if "ratio" in per_token:
        maxima["ratio"] = jnp.max(jnp.where(trained, per_token["ratio"], 0.0))
    return Tally(sums, maxima)


def report(tallies: Sequence[Tally]) -> dict[str, float]:
    """Turn what the micro-batches of one update counted into means over trained tokens, maxima, and the loss itself."""
    sums = {name: sum(float(tally.sums[name]) for tally in tallies) for name in tallies[0].sums}
    maxima = {name: float(np.max([tally.maxima[name] for tally in tallies])) for name in tallies[0].maxima}
    loss, tokens, mismatch, on_policy = (sums.pop(name) for name in ("loss", "tokens", "mismatch", "on_policy"))
    return {
        "loss": loss,
        "trained_tokens": tokens,
        "on_policy": on_policy / max(tokens, 1.0),
        "mismatch_mean": mismatch / max(on_policy, 1.0),
        **{f"{name}_mean": total / max(tokens, 1.0) for name, total in sums.items()},
        **{f"{name}_max": value for name, value in maxima.items()},
    }
