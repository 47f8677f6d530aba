"""2WikiMultiHopQA (Ho et al., 2020): the official JSON list, and the hub's parquet, whose lists are JSON texts."""

from __future__ import annotations

from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row, Skipped
from dr_jax.data.sources.supporting import titles

_HOPS = {"comparison": 2, "inference": 2, "compositional": 2, "bridge_comparison": 4}


def question(row: Row) -> Question | Skipped:
    """Read one row."""
    if not row.text_or("answer") and "evidences" in row.fields and not row.fields["evidences"]:
        return Skipped("answer withheld")
    kind = row.text_or("type")
    known = row.text("_id") if "_id" in row.fields else row.text("id")
    meta = {"type": kind, "supporting": titles(row)}
    return row.question(known, row.text("question"), [row.text("answer")], source="2wiki", hops=_HOPS.get(kind, 0), meta=meta)


FORMAT = Format(
    "2wiki",
    "2WikiMultiHopQA: official JSON list, hub parquet",
    (frozenset({"question", "answer", "supporting_facts", "evidences"}),),
    question,
)
