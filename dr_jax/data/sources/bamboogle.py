"""Bamboogle (Press et al., 2022): a sheet of two columns, Question and Answer."""

from __future__ import annotations

from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row


def question(row: Row) -> Question:
    """Read one row."""
    return row.question(str(row.number), row.text("Question"), [row.text("Answer")], source="Bamboogle", hops=2)


FORMAT = Format("bamboogle", "Bamboogle: CSV of Question, Answer", (frozenset({"Question", "Answer"}),), question)
