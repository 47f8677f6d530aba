"""Keep evaluation questions out of training.

In:    training and evaluation questions
Out:   the training questions that are in neither list twice, or a DataError that names the overlap
Holds: two questions are the same when their letters and digits are, whatever their case, accents, spacing or punctuation
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question


def identity(text: str) -> str:
    """Return what two spellings of one question share: its letters and digits, case and accents removed."""
    kept = (char for char in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(char))
    return " ".join("".join(char if char.isalnum() else " " for char in kept).split())


def without(questions: Iterable[Question], held_out: Iterable[Question]) -> list[Question]:
    """Return the questions whose text is not held out."""
    kept_out = {identity(question.text) for question in held_out}
    return [question for question in questions if identity(question.text) not in kept_out]


def refuse_overlap(train: Iterable[Question], held_out: Iterable[Question]) -> None:
    """Check that no question is both trained on and evaluated on.

    Raises:
        DataError: some are; the first three are named.
    """
    own = {identity(question.text): question for question in train}
    both = [(own[key], question) for question in held_out if (key := identity(question.text)) in own]
    if both:
        shown = "; ".join(f"{ours.id!r} = {theirs.id!r} ({theirs.text[:60]!r})" for ours, theirs in both[:3])
        raise DataError(
            f"{len(both)} questions are both in training and in evaluation: {shown}",
            needed="evaluation questions that are never trained on",
            fix="remove them from the training file",
        )
