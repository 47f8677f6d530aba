"""TriviaQA (Joshi et al., 2017): the official JSON (`Data`), and tensorflow-datasets or the hub with lower-case names."""

from __future__ import annotations

from dr_jax.data.question import Question
from dr_jax.data.sources.format import Format
from dr_jax.data.sources.row import Row, Skipped


def question(row: Row) -> Question | Skipped:
    """Read one row; its value comes first, then its aliases."""
    if "Question" in row.fields:
        if "Answer" not in row.fields and "QuestionId" in row.fields:
            return Skipped("answer withheld")
        answer = row.row("Answer")
        answers = [answer.text("Value"), *(answer.texts("Aliases") if "Aliases" in answer.fields else [])]
        answers += answer.texts("HumanAnswers") if "HumanAnswers" in answer.fields else []
        known, text, asked = row.text("QuestionId"), row.text("Question"), row.text_or("QuestionSource")
    else:
        answer = row.row("answer")
        if answer.text("value") == "<unk>":
            return Skipped("answer withheld")
        answers = [answer.text("value"), *answer.texts("aliases")]
        known, text, asked = row.text("question_id"), row.text("question"), row.text_or("question_source")
    kept = [one for one in answers if one.strip()]
    return row.question(known, text, kept, source="tq", hops=1, meta={"asked_by": asked})


FORMAT = Format(
    "triviaqa",
    "TriviaQA: official JSON (Data, Answer.Aliases), tfds:trivia_qa, hub parquet",
    (frozenset({"Question", "QuestionId"}), frozenset({"question", "question_id", "answer", "question_source"})),
    question,
)
