"""Rewards on the way to the form, for policies that do not keep it yet and would otherwise all earn the same -1."""

from __future__ import annotations

from dr_jax.data.question import Question
from dr_jax.tokens.calls import TAGS
from dr_jax.tokens.trajectory import Episode


def form(episode: Episode, question: Question) -> float:
    """Return the mean over turns of how much of the form was kept, in [0, 1].

    Half for each control tag that is opened and closed equally often where it occurs, half for coming to a point: a turn that
    is longer than it needs to be earns less.
    """
    if not episode.turns:
        return 0.0
    return sum(_kept(turn.prefilled + turn.text) for turn in episode.turns) / len(episode.turns)


def _kept(text: str) -> float:
    used = [tag for tag in TAGS[:3] if f"<{tag}>" in text or f"</{tag}>" in text]
    balanced = sum(text.count(f"<{tag}>") == text.count(f"</{tag}>") for tag in used) / len(used) if used else 0.0
    return 0.5 * balanced + 0.5 / (1 + len(text) / 200)
