"""BrowseComp (Wei et al., 2025): the official CSV, sealed with the SHA-256 of each row's canary."""

from __future__ import annotations

import hashlib

from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row
from dr_jax.data.sources.sealed import opened


def question(row: Row) -> Question:
    """Open one row."""
    return row.question(
        row.text_or("id") or str(row.number),
        opened(row, "problem", key),
        [opened(row, "answer", key)],
        source="browsecomp",
        meta={"topic": row.text_or("problem_topic")},
    )


def key(canary: str) -> bytes:
    """Return the 32 bytes that a canary stands for."""
    return hashlib.sha256(canary.encode()).digest()


FORMAT = Format(
    "browsecomp",
    "BrowseComp: official sealed CSV of problem, answer, problem_topic, canary",
    (frozenset({"problem", "answer", "canary"}),),
    question,
)
