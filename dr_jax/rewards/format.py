"""Whether an episode kept to the form."""

from __future__ import annotations

from dr_jax.data.question import Question
from dr_jax.rewards.match import exact_match, f1
from dr_jax.tokens.calls import unbalanced
from dr_jax.tokens.trajectory import Episode


def broken_form(episode: Episode) -> bool:
    """Whether the policy left a control tag open or gave no answer. Reads only what the policy wrote."""
    return episode.answer is None or any(unbalanced(turn.prefilled + turn.text) for turn in episode.turns)


def set_f1(episode: Episode, question: Question) -> float:
    """Word F1 over sets, or -1 when the form was broken: DeepResearcher's reward."""
    return -1.0 if broken_form(episode) else f1(episode.answer or "", question.answers, "set")


def bag_f1(episode: Episode, question: Question) -> float:
    """Word F1 over bags, or -1 when the form was broken."""
    return -1.0 if broken_form(episode) else f1(episode.answer or "", question.answers, "bag")


def em(episode: Episode, question: Question) -> float:
    """Exact match, or -1 when the form was broken."""
    return -1.0 if broken_form(episode) else exact_match(episode.answer or "", question.answers)
