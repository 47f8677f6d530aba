"""tensorflow-datasets: its values as plain ones, and, where the package is installed, a set that it has prepared."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question
from dr_jax.data.sources import nq, read, triviaqa
from dr_jax.data.sources.row import Row, Skipped
from dr_jax.data.sources.tfds import plain


class Ragged:
    """As much of a ragged tensor as is used."""

    def __init__(self, values: list[list[bytes]]) -> None:
        self._values = values

    def to_list(self) -> list[list[bytes]]:
        """Return lists of lists."""
        return self._values


def row(**fields: Any) -> Row:
    return Row("tfds:x:train, example 1", "x", 1, plain(fields))


def test_values_become_plain() -> None:
    found = plain({"a": np.int64(3), "b": np.array([b"x", b"\xc3\xa9"]), "c": Ragged([[b"y"], []]), "d": [np.bool_(True)]})
    assert found == {"a": 3, "b": ["x", "é"], "c": [["y"], []], "d": [True]}


def test_natural_questions_as_it_is_prepared() -> None:
    """Sequences of objects come as objects of sequences, those within as ragged ones; NONE is class -1."""
    spans = {"text": Ragged([[b"in March"], [b"March", b"early March"], []]), "start_token": Ragged([[4], [4, 3], []])}
    found = nq.question(
        row(
            id=b"797803103760793766",
            question={"text": b"when does the lake freeze", "tokens": np.array([b"when"])},
            annotations={"id": np.array([b"1", b"2", b"3"]), "yes_no_answer": np.array([-1, -1, 1]), "short_answers": spans},
        )
    )
    answers = ("yes", "in March", "March", "early March")
    assert found == Question("797803103760793766", "when does the lake freeze", answers, "nq", "", 1)
    bare = {"yes_no_answer": np.array([-1]), "short_answers": {"text": Ragged([[]])}}
    assert nq.question(row(id=b"1", question={"text": b"why"}, annotations=bare)) == Skipped("no short answer")


def test_trivia_qa_as_it_is_prepared() -> None:
    answer = {"value": b"Glass harp", "aliases": np.array([b"Glass harp", b"Harp of glass"], dtype=object), "type": b"FreeForm"}
    found = triviaqa.question(row(question=b"What?", question_id=b"tc_1", question_source=b"", answer=answer))
    assert found == Question("tc_1", "What?", ("Glass harp", "Harp of glass"), "tq", "", 1)
    hidden = row(question=b"What?", question_id=b"tc_1", question_source=b"", answer={"value": b"<unk>", "aliases": []})
    assert triviaqa.question(hidden) == Skipped("answer withheld")


def test_the_package_is_asked_for_where_it_is_missing() -> None:
    try:
        import tensorflow_datasets  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(DataError, match=r"dr-jax\[tfds\]"):
            read("tfds:natural_questions:train")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_prepared_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorflow", reason="a set is prepared with it")
    tfds = pytest.importorskip("tensorflow_datasets")

    class LittleQuestions(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc, name-defined]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            span = {"text": tfds.features.Text(), "start_token": np.int64}
            note = {
                "short_answers": tfds.features.Sequence(span),
                "yes_no_answer": tfds.features.ClassLabel(names=["NO", "YES"]),
            }
            features = {"id": np.str_, "question": {"text": tfds.features.Text()}, "annotations": tfds.features.Sequence(note)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for number in range(3):
                span = [{"text": f"hall {number}", "start_token": 1}]
                notes = [{"short_answers": span, "yes_no_answer": -1}, {"short_answers": [], "yes_no_answer": number % 2}]
                yield number, {"id": f"n{number}", "question": {"text": f"where is {number}"}, "annotations": notes}

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    for version in ("tfrecord", "array_record"):  # the second is read without TensorFlow
        LittleQuestions(data_dir=tmp_path, file_format=version).download_and_prepare()
        found = {question.id: question for question in read("tfds:little_questions:train", form="nq")}
        assert {name: question.answers for name, question in found.items()} == {
            "n0": ("no", "hall 0"),
            "n1": ("yes", "hall 1"),
            "n2": ("no", "hall 2"),
        }
        shutil.rmtree(tmp_path / "little_questions")
    with pytest.raises(DataError, match="was not prepared"):
        read("tfds:little_questions:train")
