"""GAIA (Mialon et al., 2023): `metadata.jsonl` or its parquet, text-only: questions about an attached file are skipped."""

from __future__ import annotations

from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row, Skipped


def question(row: Row) -> Question | Skipped:
    """Read one row; the test part hides its answers behind a question mark."""
    if row.text_or("file_name").strip():
        return Skipped("needs a file")
    answer = row.text("Final answer")
    if answer.strip() == "?":
        return Skipped("answer withheld")
    return row.question(
        row.text("task_id"), row.text("Question"), [answer], source="gaia", meta={"level": row.text_or("Level")}
    )


FORMAT = Format(
    "gaia",
    "GAIA, text-only: metadata.jsonl or parquet",
    (frozenset({"task_id", "Question", "Final answer"}),),
    question,
)
