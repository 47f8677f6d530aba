"""Write questions so that `sources.read` reads the same questions back.

In:    questions, one after the other
Out:   JSON lines, or parquet in our own layout or verl's; a hash of what the questions say, whatever file they stand in
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from dr_jax.data.question import Question
from dr_jax.data.sources.verl import ANSWER_SPLIT

Layout = Literal["own", "verl"]
_BATCH = 4096


class ContentHash:
    """A hash of questions in their order: it depends on nothing but what they say."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.count = 0

    def passing(self, questions: Iterable[Question]) -> Iterator[Question]:
        """Yield the questions on, and take note of each."""
        for question in questions:
            self._hash.update((json.dumps(tree(question), ensure_ascii=False, sort_keys=True) + "\n").encode())
            self.count += 1
            yield question

    def hexdigest(self) -> str:
        """Return the hash of everything that passed."""
        return self._hash.hexdigest()


def tree(question: Question) -> dict[str, Any]:
    """Return a question as JSON values."""
    return {
        "id": question.id,
        "question": question.text,
        "answers": list(question.answers),
        "source": question.source,
        "split": question.split,
        "hops": question.hops,
        "meta": dict(question.meta),
    }


def write_jsonl(path: Path, questions: Iterable[Question]) -> None:
    """Write one JSON object per line; the file appears when it is whole."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        for question in questions:
            file.write(json.dumps(tree(question), ensure_ascii=False) + "\n")
    part.replace(path)


def write_parquet(path: Path, questions: Iterable[Question], layout: Layout = "own") -> None:
    """Write parquet, a batch in memory at a time; the file appears when it is whole.

    Args:
        path: of the file.
        questions: to write.
        layout: `own` keeps everything; `verl` is what verl's recipes read, and has no `meta`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _own_schema(pa) if layout == "own" else _verl_schema(pa)
    shaped = _own if layout == "own" else _verl
    part = path.with_name(path.name + ".part")
    with pq.ParquetWriter(part, schema) as writer:
        rows: list[dict[str, Any]] = []
        for question in questions:
            rows.append(shaped(question))
            if len(rows) == _BATCH:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))
    part.replace(path)


def _own(question: Question) -> dict[str, Any]:
    return {**tree(question), "meta": list(question.meta.items())}


def _verl(question: Question) -> dict[str, Any]:
    return {
        "data_source": question.source,
        "prompt": [{"role": "user", "content": question.text}],
        "ability": "qa",
        "reward_model": {"style": "rule", "ground_truth": ANSWER_SPLIT.join(question.answers)},
        "extra_info": {"index": question.id, "split": question.split, "hops": question.hops},
    }


def _own_schema(pa: Any) -> Any:
    return pa.schema(
        {
            "id": pa.string(),
            "question": pa.string(),
            "answers": pa.list_(pa.string()),
            "source": pa.string(),
            "split": pa.string(),
            "hops": pa.int32(),
            "meta": pa.map_(pa.string(), pa.string()),
        }
    )


def _verl_schema(pa: Any) -> Any:
    return pa.schema(
        {
            "data_source": pa.string(),
            "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
            "ability": pa.string(),
            "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
            "extra_info": pa.struct({"index": pa.string(), "split": pa.string(), "hops": pa.int32()}),
        }
    )
