"""HotpotQA (Yang et al., 2018): the official JSON list, and the hub's parquet."""

from __future__ import annotations

from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row, Skipped
from dr_jax.data.sources.supporting import titles


def question(row: Row) -> Question | Skipped:
    """Read one row."""
    if "answer" not in row.fields and "type" not in row.fields and "_id" in row.fields:
        return Skipped("answer withheld")
    meta = {"type": row.text_or("type"), "level": row.text_or("level"), "supporting": titles(row)}
    known = row.text("_id") if "_id" in row.fields else row.text("id")
    return row.question(known, row.text("question"), [row.text("answer")], source="hotpotqa", hops=2, meta=meta)


FORMAT = Format(
    "hotpotqa",
    "HotpotQA: official JSON list, hub parquet",
    (frozenset({"question", "answer", "supporting_facts", "level"}), frozenset({"_id", "question", "level"})),
    question,
)
