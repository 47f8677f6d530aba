"""Turn the rewards of siblings into advantages: how much better each attempt was than the others of its question.

In:    groups of rewarded episodes; rewards per group, ragged
Out:   one advantage per episode, and one addition per generation when there are step rewards
Drops: groups that teach nothing (all rewards equal, or fewer than two trainable episodes); counted

A recipe is one pure function from rewards to advantages. The config names one of `RECIPES`, or `module:function` for one
in a file of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from dr_jax.base import plugin
from dr_jax.base.errors import ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.tokens.trajectory import Episode, Group

Values = Float[np.ndarray, "_"]  # one per sibling; groups differ in size
Advantage = Callable[[Sequence[Values]], list[Values]]


def standardized(rewards_NG: Sequence[Values]) -> list[Values]:
    """Compute (r - mean) / (std + 1e-6) within each group, with the sample standard deviation.

    GRPO: Shao et al., "DeepSeekMath", arXiv 2402.03300; DeepResearcher uses it.
    """
    return [(r - r.mean()) / (r.std(ddof=1) + 1e-6) for r in rewards_NG]


def centered(rewards_NG: Sequence[Values]) -> list[Values]:
    """Compute r - mean within each group: hard and easy questions are not blown up by their small deviation.

    Dr. GRPO: Liu et al., "Understanding R1-Zero-like training", arXiv 2503.20783.
    """
    return [r - r.mean() for r in rewards_NG]


RECIPES: dict[str, Advantage] = {"standardized": standardized, "centered": centered}


def named(name: str) -> Advantage:
    """Find a recipe by its name in `RECIPES`, or import it from `module:function`.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    if ":" not in name:
        known = ", ".join(sorted(RECIPES))
        raise ConfigError(
            f"There is no advantage {name!r}", needed=f"one of {known}, or module:function", fix="correct the name"
        )
    recipe: Advantage = plugin.named(name)
    return recipe


def informative(groups: Iterable[Group], metrics: Metrics | None = None) -> list[Group]:
    """Keep the groups whose siblings differ in reward; flat ones have advantage zero everywhere.

    Counts `batch/groups`, `batch/flat_groups` (all rewards equal) and `batch/thin_groups` (fewer than two trainable episodes).
    """
    kept, metrics = [], metrics or Metrics()
    for group in groups:
        metrics.add("batch/groups")
        rewards = {(episode.reward, episode.step_rewards) for episode in group.trainable}
        if len(group.trainable) < 2:
            metrics.add("batch/thin_groups")
        elif len(rewards) == 1 and len(set(next(iter(rewards))[1])) <= 1:
            metrics.add("batch/flat_groups")
        else:
            kept.append(group)
    return kept


def episode_advantages(groups: Sequence[Group], advantage: Advantage) -> list[Values]:
    """Apply a recipe to the rewards of each group's trainable episodes, in their order.

    Raises:
        ValueError: a group has fewer than two trainable episodes, or the recipe's answer does not fit the question.
    """
    thin = [group.question_id for group in groups if len(group.trainable) < 2]
    if thin:
        raise ValueError(f"groups {thin} have fewer than two trainable episodes; `informative` drops such groups")
    rewards_NG = [np.asarray([episode.reward for episode in group.trainable], np.float64) for group in groups]
    found = advantage(rewards_NG)
    if [np.shape(values) for values in found] != [values.shape for values in rewards_NG]:
        raise ValueError("the advantage recipe must return one value per trainable episode of each group")
    if not all(np.isfinite(values).all() for values in found):
        raise ValueError("the advantage recipe returned a value that is not finite")
    return found


def step_advantages(episodes: Sequence[Episode]) -> list[tuple[float, ...]]:
    """Compute what each generation adds to the advantage of its own tokens: its step reward minus the group's mean step reward.

    The mean is over every generation of all siblings that have step rewards, so a bonus that every turn earns changes
    nothing. An addition lands on the tokens of its own turn only; the episode's advantage covers the credit of the rest.
    Episodes without step rewards add nothing.
    """
    steps = [reward for episode in episodes for reward in episode.step_rewards]
    mean = float(np.mean(steps)) if steps else 0.0
    return [tuple(reward - mean for reward in episode.step_rewards) for episode in episodes]
