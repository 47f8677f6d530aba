"""MuSiQue (Trivedi et al., 2022): the official JSON lines. Questions that its full version cannot answer are skipped."""

from __future__ import annotations

from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row, Skipped
from dr_jax.data.sources.supporting import listed


def question(row: Row) -> Question | Skipped:
    """Read one row; the number of hops is the number of single questions that it was composed of."""
    if row.fields.get("answerable") is False:
        return Skipped("not answerable")
    if "answer" not in row.fields and "question_decomposition" not in row.fields:
        return Skipped("answer withheld")
    supporting = ""
    if "paragraphs" in row.fields:
        supporting = listed(one.text("title") for one in row.rows("paragraphs") if one.fields.get("is_supporting"))
    answers = [row.text("answer"), *(row.texts("answer_aliases") if "answer_aliases" in row.fields else [])]
    hops = len(row.rows("question_decomposition"))
    meta = {"supporting": supporting if supporting != "[]" else ""}
    return row.question(row.text("id"), row.text("question"), answers, source="musique", hops=hops, meta=meta)


FORMAT = Format(
    "musique",
    "MuSiQue: official JSONL (answerable or full), hub JSONL or parquet",
    (frozenset({"question", "question_decomposition"}), frozenset({"question", "paragraphs", "id"})),
    question,
)
