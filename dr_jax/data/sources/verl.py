"""Parquet as verl's recipes use it: `data_source`, `prompt`, `reward_model.ground_truth`, `extra_info.index`.

The accepted answers stand in one text, separated by `<|answer_split|>` (DeepResearcher), or in `{"target": [...]}` (Search-R1).
Where the row has the bare question beside the prompt, that is taken: the prompt may be wrapped in instructions.
"""

from __future__ import annotations

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row

ANSWER_SPLIT = "<|answer_split|>"


def question(row: Row) -> Question:
    """Read one row."""
    source = row.text("data_source")
    model, info = row.row("reward_model"), row.row("extra_info")
    truth = model.value("ground_truth", str, dict)
    answers = truth.split(ANSWER_SPLIT) if isinstance(truth, str) else model.row("ground_truth").texts("target")
    index = info.value("index", str, int)
    return row.question(
        index if isinstance(index, str) else f"{source}_{row.text_or('id') or index}",
        row.text("question") if row.text_or("question") else _user_message(row),
        answers,
        source=source,
        hops=info.number_or("hops", 0),
    )


def _user_message(row: Row) -> str:
    said = [message.text("content") for message in row.rows("prompt") if message.text_or("role") == "user"]
    if len(said) != 1:
        raise DataError(f"{row.place}: prompt has {len(said)} user messages", needed="exactly one, the question")
    return said[0]


FORMAT = Format(
    "verl",
    "parquet of verl, DeepResearcher, Search-R1: prompt, reward_model.ground_truth",
    (frozenset({"data_source", "reward_model"}), frozenset({"data_source", "prompt"})),
    question,
)
