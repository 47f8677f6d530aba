"""Read question files.

In:    parquet in verl's layout (data_source, prompt, reward_model.ground_truth, extra_info.index), or JSON lines
       (`{"id"?, "question", "answers" | "answer", "source"?, "split"?, "hops"?}`)
Out:   list[Question], in file order, ids unique in the file
Fails: DataError that names the file, the line or row, and the field
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question

ANSWER_SPLIT = "<|answer_split|>"
_WORDS: dict[type, str] = {str: "text", dict: "an object", list: "a list", int: "a number"}


def read(path: str | Path, limit: int | None = None, *, spread: bool = True, split: str = "train") -> list[Question]:
    """Read the questions of one file.

    Args:
        path: a `.parquet` or `.jsonl` file.
        limit: the most questions to return; None is all of them.
        spread: take the limit evenly over the sources in the file instead of from its beginning.
        split: given to questions whose line names none.

    Raises:
        DataError: the file is missing, of another kind, empty, or has a line that cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no question file {path}", needed="a .parquet or .jsonl file", fix="correct data.path")
    if limit is not None and limit < 1:
        raise DataError(f"A limit of {limit} questions", needed="at least 1")
    if path.suffix == ".parquet":
        rows = _parquet(path, split)
    elif path.suffix in (".jsonl", ".ndjson"):
        rows = _json_lines(path, split)
    else:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'!r}", needed="a .parquet or .jsonl file")
    questions: list[Question] = []
    places: dict[str, str] = {}
    for place, question in rows:
        if question.id in places:
            raise DataError(
                f"{place}: id {question.id!r} was used before, by {places[question.id]}",
                needed="one id per question",
                fix="rename one of them, or leave ids out of a JSONL file to have them numbered",
            )
        places[question.id] = place
        questions.append(question)
    if not questions:
        raise DataError(f"{path} holds no question", needed="at least one")
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


def _json_lines(path: Path, split: str) -> Iterator[tuple[str, Question]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}", needed="JSON lines in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place} is not JSON: {error}", needed="one JSON object per line") from error
        if not isinstance(row, dict):
            raise DataError(f"{place} is a {type(row).__name__}", needed="a JSON object")
        answers = _field(row, "answers", (list, str), place) if "answers" in row else _field(row, "answer", (list, str), place)
        hops = row.get("hops", 0)
        if not isinstance(hops, int) or isinstance(hops, bool):
            raise DataError(f"{place}: hops is {hops!r}", needed="a whole number")
        yield (
            place,
            _question(
                place,
                id=str(row.get("id", f"{path.stem}:{number}")),
                text=_field(row, "question", (str,), place),
                answers=[answers] if isinstance(answers, str) else answers,
                source=str(row.get("source", path.stem)),
                split=str(row.get("split", split)),
                hops=hops,
            ),
        )


def _parquet(path: Path, split: str) -> Iterator[tuple[str, Question]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a parquet file: {error}", needed="parquet") from error
    columns = ("data_source", "prompt", "reward_model", "extra_info")
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}",
            needed=f"the columns {', '.join(columns)}",
            fix="write it in verl's layout, or as JSON lines with question and answers",
        )
    number = 0
    for batch in file.iter_batches(columns=list(columns)):
        for row in batch.to_pylist():
            number += 1
            place = f"{path}, row {number}"
            truth = _field(_field(row, "reward_model", (dict,), place), "ground_truth", (str,), f"{place}, reward_model")
            info = _field(row, "extra_info", (dict,), place)
            yield (
                place,
                _question(
                    place,
                    id=str(_field(info, "index", (str, int), f"{place}, extra_info")),
                    text=_user_message(row, place),
                    answers=truth.split(ANSWER_SPLIT),
                    source=_field(row, "data_source", (str,), place),
                    split=split,
                    hops=0,
                ),
            )


def _user_message(row: dict[str, Any], place: str) -> str:
    messages = _field(row, "prompt", (list,), place)
    said = [message.get("content") for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    if len(said) != 1 or not isinstance(said[0], str):
        raise DataError(f"{place}: prompt has {len(said)} user messages", needed="exactly one, the question")
    return said[0]


def _question(place: str, *, id: str, text: str, answers: list[Any], source: str, split: str, hops: int) -> Question:  # noqa: A002
    strays = [answer for answer in answers if not isinstance(answer, str)]
    if strays:
        raise DataError(f"{place}: answers holds {strays[0]!r}", needed="a list of texts")
    try:
        "".join((id, text, source, *answers)).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place} holds half of a surrogate pair", needed="text that UTF-8 can hold") from error
    try:
        return Question(id, text.strip(), tuple(answer.strip() for answer in answers), source, split, hops)
    except DataError as error:
        raise DataError(f"{place}: {error.found}", needed=error.needed, fix=error.fix) from error


def _field(row: dict[str, Any], name: str, kinds: tuple[type, ...], place: str) -> Any:
    if name not in row:
        raise DataError(f"{place} has no field {name!r}; it has {', '.join(map(repr, row)) or 'none'}", needed=name)
    if not isinstance(row[name], kinds):
        wanted = " or ".join(
            {"str": "text", "dict": "an object", "list": "a list"}.get(kind.__name__, "a number") for kind in kinds
        )
        raise DataError(f"{place}: {name} is {row[name]!r}"[:300], needed=f"{wanted} in {name}")
    return row[name]
