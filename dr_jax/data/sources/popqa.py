"""PopQA (Mallen et al., 2023): the official TSV, whose `possible_answers` is a JSON list."""

from __future__ import annotations

import json

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row


def question(row: Row) -> Question:
    """Read one row."""
    found = row.value("possible_answers", str, list)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except json.JSONDecodeError as error:
            raise DataError(f"{row.place}: possible_answers is not JSON: {error}", needed="a JSON list of texts") from error
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise DataError(f"{row.place}: possible_answers is {found!r}"[:300], needed="a JSON list of texts")
    meta = {"relation": row.text_or("prop"), "popularity": row.text_or("s_pop")}
    known = row.text_or("id") or str(row.number)
    return row.question(known, row.text("question"), found, source="popqa", hops=1, meta=meta)


FORMAT = Format(
    "popqa", "PopQA: official TSV with possible_answers as JSON", (frozenset({"question", "possible_answers"}),), question
)
