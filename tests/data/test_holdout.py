import pytest

from dr_jax.base.errors import DataError
from dr_jax.data.holdout import identity, refuse_overlap, without
from dr_jax.data.question import Question


def question(name: str, text: str) -> Question:
    return Question(name, text, ("x",))


def test_case_accents_spacing_and_punctuation_do_not_make_another_question() -> None:
    assert identity("Who wrote  “Élan”, in 1871?") == identity("who wrote elan in 1871") == "who wrote elan in 1871"
    assert identity("Who wrote it in 1872?") != identity("Who wrote it in 1871?")


def test_overlap_is_refused_with_names() -> None:
    train = [question("t1", "Who founded Velin?"), question("t2", "Where is it?")]
    refuse_overlap(train, [question("e1", "Who founded Varn?")])
    with pytest.raises(DataError, match=r"1 questions are both .* 't1' = 'e2'"):
        refuse_overlap(train, [question("e2", "who founded velin")])


def test_without_keeps_the_rest() -> None:
    train = [question("t1", "Who founded Velin?"), question("t2", "Where is it?")]
    assert without(train, [question("e", "WHERE IS IT")]) == train[:1]
