import itertools

import pytest

from dr_jax.evaluate.metrics import MATCHES, majority, matched, of_question, pass_at_k
from tests.evaluate.cases import CASES
from tests.evaluate.made import attempt, failed


@pytest.mark.parametrize(("metric", "answer", "accepted", "expected"), CASES)
def test_scores_are_as_the_definitions_say(metric: str, answer: str, accepted: list[str], expected: float) -> None:
    assert MATCHES[metric](answer, accepted) == pytest.approx(expected)


def test_there_are_at_least_sixty_cases_of_every_kind() -> None:
    assert len(CASES) >= 60
    assert {metric for metric, *_ in CASES} == set(MATCHES)


def test_no_answer_is_wrong_even_where_nothing_is_left_of_an_accepted_one() -> None:
    assert matched("em", attempt("q", "?", ["..."])) == 1.0
    assert {matched(name, attempt("q", None, ["..."])) for name in MATCHES} == {0.0}


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    for n, right, k in ((5, 2, 1), (5, 2, 3), (4, 0, 2), (4, 4, 1), (6, 1, 6)):
        subsets = list(itertools.combinations(range(n), k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(min(one) < right for one in subsets) / len(subsets))


def test_the_majority_is_of_normalised_answers_and_the_first_of_equals() -> None:
    some = [attempt("q", answer, sample=place) for place, answer in enumerate(["Rome", "paris.", None, "Paris"])]
    assert majority(some).answer == "paris."
    assert majority(some[:2]).answer == "Rome"
    assert majority([some[2]]).answer is None


def test_samples_of_a_question_are_put_together_and_what_the_world_failed_is_left_out() -> None:
    some = [attempt("q", "Paris"), attempt("q", "Rome", sample=1), failed("q", 2), attempt("q", "Paris", sample=3)]
    found = of_question(some)
    assert found["em"] == pytest.approx(2 / 3)
    assert (found["pass@1"], found["pass@2"]) == (pytest.approx(2 / 3), 1.0)
    assert "pass@4" not in found  # only three count
    assert found["majority_em"] == 1.0
    assert of_question([failed("q")]) == {}
    assert "pass@1" not in of_question(some[:1])


def test_a_judge_that_could_not_be_understood_says_neither_right_nor_wrong() -> None:
    some = [attempt("q", "Paris"), attempt("q", "Rome", sample=1), attempt("q", None, sample=2)]
    assert of_question(some, {("q", 0): "correct", ("q", 1): "unreadable"})["judge"] == 0.5  # no answer needs no judge
    assert "judge" not in of_question(some[:1], {("q", 0): "unreadable"})
    assert "judge" not in of_question(some)
