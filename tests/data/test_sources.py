import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question
from dr_jax.data.sources import evenly, read


def row(index: str, source: str = "nq", answers: str = "Paris<|answer_split|>Lutetia") -> dict[str, Any]:
    return {
        "data_source": source,
        "prompt": [{"content": "Where?", "role": "user"}],
        "reward_model": {"ground_truth": answers, "style": "unknown"},
        "extra_info": {"index": index, "split": "dev"},
    }


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in rows) + "\n")
    return path


def test_parquet_in_verls_layout(tmp_path: Path) -> None:
    path = parquet(tmp_path / "dev.parquet", [row("nq_1"), row("tq_2", "tq", "x")])
    assert read(path, split="eval") == [
        Question("nq_1", "Where?", ("Paris", "Lutetia"), "nq", "eval"),
        Question("tq_2", "Where?", ("x",), "tq", "eval"),
    ]


def test_json_lines(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "mine.jsonl",
        {"question": "Where?", "answer": "Paris"},
        "",
        {"id": 7, "question": " Who? ", "answers": ["a ", "b"], "source": "s", "split": "eval", "hops": 2, "more": [1]},
    )
    assert read(path) == [
        Question("mine:1", "Where?", ("Paris",), "mine"),
        Question("7", "Who?", ("a", "b"), "s", "eval", 2),
    ]


def test_a_limit_is_spread_over_the_sources(tmp_path: Path) -> None:
    rows = [row(f"{source}{number}", source) for source in ("a", "b", "c") for number in range(5)]
    path = parquet(tmp_path / "q.parquet", rows)
    assert [question.id for question in read(path, limit=7)] == ["a0", "a1", "a2", "b0", "b1", "c0", "c1"]
    assert [question.id for question in read(path, limit=4, spread=False)] == ["a0", "a1", "a2", "a3"]
    assert len(read(path, limit=99)) == 15


def test_a_small_source_leaves_its_share_to_the_others() -> None:
    questions = [Question(f"{source}{n}", "?", ("x",), source) for source, count in (("a", 1), ("b", 9)) for n in range(count)]
    assert [question.id for question in evenly(questions, 4)] == ["a0", "b0", "b1", "b2"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2 is not JSON"),
        ([1], "line 2 is a list"),
        ({"answers": ["x"]}, "line 2 has no field 'question'; it has 'answers'"),
        ({"question": "?"}, "line 2 has no field 'answer'"),
        ({"question": 5, "answers": ["x"]}, "line 2: question is 5. Needed: text"),
        ({"question": "?", "answers": {}}, "line 2: answers is {}. Needed: a list or text"),
        ({"question": "?", "answers": []}, "line 2: question 'q:2' .* has no answers"),
        ({"question": "?", "answers": ["x", " "]}, "line 2: .* a blank answer"),
        ({"question": "?", "answers": ["x", 3]}, "line 2: answers holds 3"),
        ({"question": " ", "answers": ["x"]}, "line 2: question 'q:2' has no text"),
        ({"question": "?", "answers": ["x"], "hops": "two"}, "line 2: hops is 'two'"),
        ({"question": "?", "answers": ["x"], "id": "one"}, "line 2: id 'one' was used before, by .*line 1"),
        ({"question": "\ud800", "answers": ["x"]}, "line 2 holds half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, told: str) -> None:
    path = lines(tmp_path / "q.jsonl", {"id": "one", "question": "?", "answer": "x"}, line)
    with pytest.raises(DataError, match=told):
        read(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reward_model": {"ground_truth": "x<|answer_split|>"}}, "row 1: .* a blank answer"),
        ({"reward_model": {"style": "x"}}, "row 1, reward_model has no field 'ground_truth'"),
        ({"prompt": [{"content": "hi", "role": "system"}]}, "row 1: prompt has 0 user messages"),
        ({"extra_info": {"index": None}}, "row 1, extra_info: index is None"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        read(parquet(tmp_path / "q.parquet", [row("a") | change]))


def test_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no question file"):
        read(tmp_path / "missing.jsonl")
    (tmp_path / "q.txt").write_text("question,answer")
    with pytest.raises(DataError, match=r"ends in '\.txt'"):
        read(tmp_path / "q.txt")
    (tmp_path / "q.parquet").write_text("not parquet")
    with pytest.raises(DataError, match="not a parquet file"):
        read(tmp_path / "q.parquet")
    with pytest.raises(DataError, match="row 1 looks like no format that is known"):
        read(parquet(tmp_path / "other.parquet", [{"data_source": "x"}]))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no question"):
        read(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path / "latin.jsonl")
    with pytest.raises(DataError, match="limit of 0"):
        read(lines(tmp_path / "ok.jsonl", {"question": "?", "answer": "x"}), limit=0)
