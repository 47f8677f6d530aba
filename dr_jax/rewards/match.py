"""Compare an answer with the accepted ones: exact match and word F1, the best over all accepted answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from dr_jax.rewards.normalize import normalized


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """Return 1.0 if the normalised answer equals a normalised accepted one, else 0.0."""
    return float(any(normalized(answer) == normalized(one) for one in accepted))


def f1(answer: str, accepted: Sequence[str], kind: Literal["set", "bag"] = "set") -> float:
    """Return the best word F1 over the accepted answers.

    Args:
        answer: what was said.
        accepted: what would have been right.
        kind: `set` counts each word once (DeepResearcher); `bag` counts repetitions (SQuAD, arXiv 1606.05250).
    """
    return max((_f1(normalized(answer).split(), normalized(one).split(), kind) for one in accepted), default=0.0)


def _f1(said: list[str], wanted: list[str], kind: Literal["set", "bag"]) -> float:
    if kind == "set":
        said, wanted = sorted(set(said)), sorted(set(wanted))
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0
