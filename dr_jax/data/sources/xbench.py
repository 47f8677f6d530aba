"""xBench DeepSearch (2025): the official CSV, sealed with each row's canary itself. Its questions are Chinese."""

from __future__ import annotations

from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row
from dr_jax.data.sources.sealed import opened


def question(row: Row) -> Question:
    """Open one row."""
    known = row.text_or("id") or str(row.number)
    return row.question(known, opened(row, "prompt", str.encode), [opened(row, "answer", str.encode)], source="xbench")


FORMAT = Format(
    "xbench",
    "xBench DeepSearch: official sealed CSV of id, prompt, answer, canary",
    (frozenset({"prompt", "answer", "canary"}),),
    question,
)
