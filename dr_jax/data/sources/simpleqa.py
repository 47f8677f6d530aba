"""SimpleQA (Wei et al., 2024): the official CSV, whose `metadata` is a Python dict in a text."""

from __future__ import annotations

import ast

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row


def question(row: Row) -> Question:
    """Read one row."""
    known = row.text_or("metadata")
    try:
        found = ast.literal_eval(known) if known else {}
    except (ValueError, SyntaxError, RecursionError) as error:
        raise DataError(f"{row.place}: metadata is {known[:80]!r}", needed="a dict as Python writes it") from error
    if not isinstance(found, dict):
        raise DataError(f"{row.place}: metadata is {known[:80]!r}", needed="a dict as Python writes it")
    meta = {"topic": str(found.get("topic", "")), "type": str(found.get("answer_type", ""))}
    return row.question(str(row.number), row.text("problem"), [row.text("answer")], source="simpleqa", meta=meta)


FORMAT = Format(
    "simpleqa", "SimpleQA: official CSV of metadata, problem, answer", (frozenset({"metadata", "problem", "answer"}),), question
)
