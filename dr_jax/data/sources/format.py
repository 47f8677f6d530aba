"""What a source has to bring: one file, one mapping from a row to a question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dr_jax.data.question import Question
from dr_jax.data.sources.row import Row, Skipped


@dataclass(frozen=True, slots=True)
class Format:
    """A published way to write questions down.

    Args:
        name: in configs; also the source of its questions where nothing else is said.
        about: who publishes it and in which shape, for `dr-jax data formats`.
        marks: field names; a row that has all of one set is taken for this format when none is named.
        question: the mapping; it leaves `split` empty where the row does not tell.
    """

    name: str
    about: str
    marks: tuple[frozenset[str], ...]
    question: Callable[[Row], Question | Skipped]

    def knows(self, row: Row) -> bool:
        """Whether a row looks like this format."""
        return any(mark <= row.fields.keys() for mark in self.marks)
