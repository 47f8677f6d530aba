"""What an episode earned: named parts, each a function of the policy's own words and of the tool log, weighed and summed.

In:    an episode and its question
Out:   the episode with its reward parts; one that the world failed is returned as it is
Swap:  name a function of yours as `module:function` in `reward.parts`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dr_jax.base import plugin
from dr_jax.base.errors import ConfigError
from dr_jax.data.question import Question
from dr_jax.rewards import format as form
from dr_jax.tokens.trajectory import Episode, Outcome

Part = Callable[[Episode, Question], float]

PARTS: dict[str, Part] = {"f1": form.set_f1, "bag_f1": form.bag_f1, "em": form.em}


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """Which parts count, and how much.

    Args:
        parts: weight by name: one of `f1` (sets of words, -1 for a broken form, as DeepResearcher), `bag_f1`, `em`, or
            `module:function` of your own.
    """

    parts: dict[str, float] = field(default_factory=lambda: {"f1": 1.0})

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("reward.parts is empty; at least one part is needed")
        if not all(math.isfinite(weight) for weight in self.parts.values()):
            raise ValueError(f"reward.parts = {self.parts}; finite weights are needed")


class Total:
    """The weighed sum of the parts.

    Args:
        settings: names and weights.

    Raises:
        ConfigError: a part does not exist or is no function.
    """

    def __init__(self, settings: RewardSettings | None = None) -> None:
        self._parts: Mapping[str, tuple[Part, float]] = {
            name: (_part(name), weight) for name, weight in (settings or RewardSettings()).parts.items()
        }

    def __call__(self, episode: Episode, question: Question) -> Episode:
        """Return the episode with its rewards; the world's failures earn nothing.

        Raises:
            ConfigError: a part returned something else than a finite number.
        """
        if episode.outcome is Outcome.WORLD_FAILED:
            return episode
        return episode.rewarded(
            {name: weight * _value(name, part, episode, question) for name, (part, weight) in self._parts.items()}
        )


def _value(name: str, part: Part, episode: Episode, question: Question) -> float:
    try:
        value = part(episode, question)
    except Exception as error:
        error.add_note(f"raised by the reward part {name!r} on episode {episode.id} ({episode.outcome.value})")
        raise
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(
            f"The reward part {name!r} returned {value!r} for episode {episode.id} ({episode.outcome.value})",
            needed="a finite number",
            fix="correct that function",
        )
    return float(value)


def _part(name: str) -> Part:
    if name in PARTS:
        return PARTS[name]
    if ":" not in name:
        raise ConfigError(
            f"There is no reward part {name!r}",
            needed=f"one of {', '.join(PARTS)}, or module:function",
            fix="correct reward.parts",
        )
    found = plugin.named(name)
    if not callable(found):
        raise ConfigError(f"{name} is not a function", needed="a function (episode, question) -> float")
    part: Part = found
    return part
