"""Your own questions, as JSON lines, a JSON list, CSV, TSV or parquet; also what `dr-jax data build` writes.

Fields: `question`; `answers` (a list), or `answer` (one text), or `golden_answers`; `id`, `source`, `split`, `hops`, `meta`
where known. In CSV, `answers` is one answer or a JSON list of them, and `meta` a JSON object.
"""

from __future__ import annotations

import json
from typing import Any

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row


def question(row: Row) -> Question:
    """Read one row."""
    name = next((one for one in ("answers", "golden_answers") if one in row.fields), "answer")
    return row.question(
        row.text_or("id") or f"{row.stem}:{row.number}",
        row.text("question"),
        _answers(row, name),
        source=row.text_or("source") or row.stem,
        split=row.text_or("split"),
        hops=row.number_or("hops", 0),
        meta=_meta(row),
    )


def _answers(row: Row, name: str) -> list[str]:
    found = row.fields.get(name)
    if isinstance(found, str) and found.lstrip().startswith("["):
        try:
            listed = json.loads(found)
        except json.JSONDecodeError:
            return [found]  # an answer may begin with a bracket
        if isinstance(listed, list) and all(isinstance(one, str) for one in listed):
            return listed
    return row.texts(name)


def _meta(row: Row) -> dict[str, str]:
    found: Any = row.fields.get("meta") or {}
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except json.JSONDecodeError as error:
            raise DataError(f"{row.place}: meta is not JSON: {error}", needed="a JSON object of texts") from error
    if isinstance(found, list):  # a map column of parquet comes as pairs
        found = dict(found)
    if not isinstance(found, dict):
        raise DataError(f"{row.place}: meta is {found!r}"[:300], needed="an object of texts")
    return {
        str(key): value if isinstance(value, str) else json.dumps(value) for key, value in found.items() if value is not None
    }


FORMAT = Format("own", "your own JSONL, JSON, CSV or parquet: question, answers, …", (frozenset({"question"}),), question)
