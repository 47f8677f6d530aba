"""Natural Questions (Kwiatkowski et al., 2019): the official JSON lines, simplified or full, NQ-open, and tensorflow-datasets.

Every short answer of every annotator is accepted; a yes or no counts as one. Rows with a long answer only are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row, Skipped

_YES_NO = {"YES": "yes", "NO": "no", 1: "yes", 0: "no"}  # names in the official files, classes in tensorflow-datasets


def question(row: Row) -> Question | Skipped:
    """Read one row of any of the four."""
    if "annotations" not in row.fields:
        name = next((one for one in ("answer", "answers") if one in row.fields), "answer")
        return row.question(row.text_or("id") or str(row.number), row.text("question"), row.texts(name), source="nq", hops=1)
    if "question_text" in row.fields:
        text, known = row.text("question_text"), row.text_or("example_id")
        answers = [answer for note in row.rows("annotations") for answer in _spans(row, note)]
    else:
        text, known = row.row("question").text("text"), row.text_or("id")
        answers = list(_prepared(row))
    if not answers:
        return Skipped("no short answer")
    return row.question(known or str(row.number), text, answers, source="nq", hops=1)


def _spans(row: Row, note: Row) -> Iterator[str]:
    if note.text_or("yes_no_answer") in _YES_NO:
        yield _YES_NO[note.text_or("yes_no_answer")]
    for span in note.rows("short_answers"):
        start, end = span.value("start_token", int), span.value("end_token", int)
        words = _words(row, start, end)
        if not words:
            raise DataError(f"{span.place} spans tokens {start} to {end}", needed="tokens of the document")
        yield " ".join(words)


def _words(row: Row, start: int, end: int) -> list[str]:
    if "document_text" in row.fields:  # simplified: tokens between single spaces
        return row.text("document_text").split(" ")[max(start, 0) : end]
    tokens = row.value("document_tokens", list)[max(start, 0) : end]
    return [str(token.get("token", "")) for token in tokens if isinstance(token, dict) and not token.get("html_token")]


def _prepared(row: Row) -> Iterator[str]:
    """Answers as tensorflow-datasets and the hub hold them: columns side by side, spans with their text."""
    notes: dict[str, Any] = row.value("annotations", dict)
    for label in notes.get("yes_no_answer") or []:
        if label in _YES_NO:
            yield _YES_NO[label]
    spans = notes.get("short_answers")
    if isinstance(spans, dict):  # sequences of sequences: one list of texts per annotator
        lists = spans.get("text") or []
    elif isinstance(spans, list):
        lists = [one.get("text") or [] for one in spans if isinstance(one, dict)]
    else:
        raise DataError(f"{row.place}, annotations: short_answers is {spans!r}"[:300], needed="spans with their text")
    for texts in lists:
        yield from (text for text in ([texts] if isinstance(texts, str) else texts) if text.strip())


FORMAT = Format(
    "nq",
    "Natural Questions: official JSONL (simplified or full), NQ-open JSONL, tfds:natural_questions, hub parquet",
    (frozenset({"question_text", "annotations"}), frozenset({"question", "annotations"})),
    question,
)
