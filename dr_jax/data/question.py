"""A question and the answers that are accepted for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dr_jax.base.errors import DataError


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Args:
        id: unique in its source.
        text: the question as it is put to the policy.
        answers: accepted answers, aliases included; at least one, none blank.
        source: where it comes from, e.g. `hotpotqa`; metrics are kept per source.
        split: `train` or `eval`.
        hops: how many facts must be chained; 0 when not known.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    source: str = ""
    split: str = "train"
    hops: int = 0
    meta: dict[str, str] = field(default_factory=dict, hash=False, compare=False)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise DataError(f"question {self.id!r} has no text", needed="a question in words")
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise DataError(
                f"question {self.id!r} ({self.text[:60]!r}) has {'a blank answer' if self.answers else 'no answers'}",
                needed="at least one accepted answer, none blank",
                fix="add the answers or drop the question",
            )
