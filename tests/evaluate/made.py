"""Attempts and cells, made up."""

from collections.abc import Sequence
from typing import Any

from dr_jax.evaluate.attempt import Attempt
from dr_jax.evaluate.journal import Cell
from dr_jax.tokens.trajectory import Outcome


def attempt(
    question: str, answer: str | None, accepted: Sequence[str] = ("Paris",), sample: int = 0, **more: object
) -> Attempt:
    facts = {"source": "s", "hops": 1, "outcome": Outcome.MALFORMED if answer is None else Outcome.ANSWERED}
    return Attempt(question, sample, f"What is {question}?", tuple(accepted), answer=answer, **{**facts, **more})


def failed(question: str, sample: int = 0) -> Attempt:
    return attempt(question, None, sample=sample, outcome=Outcome.WORLD_FAILED, failure="no search provider answered")


def cell(attempts: Sequence[Attempt], model: str = "m", questions: str = "s", way: str = "agent") -> Cell:
    return Cell(model, questions, way, {"seed": 0}, {one.key: one for one in attempts})


def still(found: Any) -> Any:
    """What of a table depends neither on the clock nor on what had to be asked of the world again."""
    if isinstance(found, dict):
        return {name: still(one) for name, one in found.items() if name not in ("seconds", "spent")}
    return [still(one) for one in found] if isinstance(found, list) else found
