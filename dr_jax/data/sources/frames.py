"""FRAMES (Krishna et al., 2024): the official TSV; the number of hops is the number of articles that it needs."""

from __future__ import annotations

import ast

from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row


def question(row: Row) -> Question:
    """Read one row; its number stands in a first column without a name."""
    known = row.text_or("") or row.text_or("Unnamed: 0") or str(row.number)
    return row.question(
        known,
        row.text("Prompt"),
        [row.text("Answer")],
        source="frames",
        hops=_articles(row.text_or("wiki_links")),
        meta={"type": row.text_or("reasoning_types")},
    )


def _articles(links: str) -> int:
    """How many links a Python list in a text holds; 0 when it is none."""
    try:
        found = ast.literal_eval(links) if links else []
    except (ValueError, SyntaxError, RecursionError):
        return 0
    return len(found) if isinstance(found, list) else 0


FORMAT = Format("frames", "FRAMES: official TSV or CSV of Prompt, Answer", (frozenset({"Prompt", "Answer"}),), question)
