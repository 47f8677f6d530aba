"""Every format that questions come in, and the one way to read any of them.

In:    a place (a file, a pattern, the hub, tensorflow-datasets) and a format, or none to have it recognised
Out:   `scan`: a question or a reason to skip after the other; `read`: a list of questions with ids of their own
Swap:  a new source is one file with a FORMAT in it, and one line here
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question
from dr_jax.data.sources import (
    bamboogle,
    browsecomp,
    frames,
    gaia,
    hotpotqa,
    musique,
    nq,
    own,
    popqa,
    simpleqa,
    triviaqa,
    verl,
    wiki2,
    xbench,
)
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.places import Input, inputs
from dr_jax.data.sources.row import Row, Skipped

# The more telling marks stand first: a row is taken for the first format that knows it.
FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        verl,
        nq,
        triviaqa,
        wiki2,
        hotpotqa,
        musique,
        popqa,
        gaia,
        frames,
        browsecomp,
        xbench,
        simpleqa,
        bamboogle,
        own,
    )
}


def format_named(name: str) -> Format:
    """Return a format.

    Raises:
        DataError: there is none of that name.
    """
    if name not in FORMATS:
        raise DataError(f"There is no format {name!r}", needed=f"one of {', '.join(FORMATS)}, or none to have it recognised")
    return FORMATS[name]


def scan(one: Input, form: str = "", *, source: str = "", split: str = "train") -> Iterator[tuple[Row, Question | Skipped]]:
    """Read an input row by row.

    Args:
        one: what to read.
        form: name of a format; "" takes the one that the first row looks like.
        source: given to every question instead of the format's own name.
        split: given to questions whose row names none.

    Raises:
        DataError: as `read`.
    """
    known = format_named(form) if form else None
    for row in one.rows():
        if known is None:
            known = _recognised(row)
        found = known.question(row)
        if isinstance(found, Question):
            found = replace(found, source=source or found.source, split=found.split or split)
        yield row, found


def read(
    path: str | Path, limit: int | None = None, *, spread: bool = True, split: str = "train", form: str = ""
) -> list[Question]:
    """Read the questions of one place.

    Args:
        path: a file, a pattern, `hub:…` or `tfds:…`.
        limit: the most questions to return; None is all of them.
        spread: take the limit evenly over the sources in it instead of from its beginning.
        split: given to questions whose row names none.
        form: name of a format; "" takes the one that the first row looks like.

    Raises:
        DataError: the place is missing, of another kind, empty, or has a row that cannot be used.
    """
    if limit is not None and limit < 1:
        raise DataError(f"A limit of {limit} questions", needed="at least 1")
    questions: list[Question] = []
    places: dict[str, str] = {}
    skipped = 0
    for one in inputs(str(path)):
        for row, found in scan(one, form, split=split):
            if isinstance(found, Skipped):
                skipped += 1
                continue
            if found.id in places:
                raise DataError(
                    f"{row.place}: id {found.id!r} was used before, by {places[found.id]}",
                    needed="one id per question",
                    fix="rename one of them, or leave ids out of a JSONL file to have them numbered",
                )
            places[found.id] = row.place
            questions.append(found)
    if not questions:
        raise DataError(
            f"{path} holds no question" + (f", {skipped} rows were skipped" if skipped else ""), needed="at least one"
        )
    if limit is None or limit >= len(questions):
        return questions
    return evenly(questions, limit) if spread else questions[:limit]


def evenly(questions: list[Question], limit: int) -> list[Question]:
    """Take the first few of each source in turn until the limit is reached; the order of the list is kept."""
    by_source: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        by_source.setdefault(question.source, []).append(index)
    ranks = [(rank, source, index) for source, own in enumerate(by_source.values()) for rank, index in enumerate(own)]
    return [questions[index] for index in sorted(index for _, _, index in sorted(ranks)[:limit])]


def _recognised(row: Row) -> Format:
    for known in FORMATS.values():
        if known.knows(row):
            return known
    own_fields = ", ".join(map(repr, row.fields)) or "none"
    raise DataError(
        f"{row.place} looks like no format that is known, and has no field 'question'; it has {own_fields}"[:500],
        needed=f"a row of one of {', '.join(FORMATS)}",
        fix="name the format, or rename the fields to question and answers",
    )
