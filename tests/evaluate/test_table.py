import json
import random

import pytest

from dr_jax.base.errors import DataError
from dr_jax.base.metrics import bootstrap_interval
from dr_jax.evaluate.compare import compared, pairs, sign_flip_p
from dr_jax.evaluate.published import beside
from dr_jax.evaluate.shown import cells as shown_cells
from dr_jax.evaluate.shown import comparisons, markdown
from dr_jax.evaluate.table import plain, table
from dr_jax.tokens.trajectory import Outcome
from tests.evaluate.made import attempt, cell, failed


def test_a_row_is_over_questions_and_counts_apart_what_says_nothing() -> None:
    some = [
        attempt("q1", "Paris", hops=1, calls=2, spent={"searching/queries": 2, "searching/money": 0.25}),
        attempt("q1", "Rome", hops=1, sample=1, spent={"policy/money": 0.5}),
        attempt("q2", "Paris", hops=2, source="other"),
        attempt("q2", None, hops=2, source="other", sample=1),
        failed("q3"),
    ]
    found = table(cell(some))
    assert (found["questions"], found["attempts"], found["world_failed"]) == (2, 4, 1)
    assert found["f1"]["mean"] == 0.5  # of 1/2 and 1/2
    assert found["f1"]["ci95"] == [0.5, 0.5]  # over questions, which are alike, not over attempts
    assert found["outcomes"] == {"answered": 3, "malformed": 1, "world_failed": 1}
    assert found["spent"] == {"policy/money": 0.5, "searching/money": 0.25, "searching/queries": 2}
    assert found["by_source"]["other"]["questions"] == 1
    assert set(found["by_hops"]) == {"1 hop", "2 hops"}
    assert found["by_outcome"]["answered"]["f1"]["mean"] == 0.75  # q1: 1/2, q2: 1
    assert found["by_outcome"]["world_failed"]["questions"] == 0
    assert dict(zip(*shown_cells({"rows": [found]}), strict=True))["cost"] == "0.75"
    json.dumps(found, allow_nan=False)
    assert plain(found)["by_hops"]["1 hop"]["f1"] == 0.5


def test_intervals_are_over_questions_not_over_samples() -> None:
    some = [attempt(f"q{n}", "Paris" if n % 2 else "Rome", sample=sample) for n in range(6) for sample in range(4)]
    low, high = bootstrap_interval([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    assert table(cell(some))["em"]["ci95"] == [round(low, 4), round(high, 4)]


def test_a_cell_of_which_nothing_counts_has_no_numbers() -> None:
    found = table(cell([failed("q")]))
    assert (found["questions"], found["world_failed"], "f1" in found) == (0, 1, False)
    assert plain(found)["n"] == 0
    assert "world failed" in markdown({"rows": [found], "compared": []})


def test_unreadable_verdicts_are_counted_apart() -> None:
    some = cell([attempt("q1", "Paris"), attempt("q2", "Lutetia"), attempt("q3", "Rome")])
    some.verdicts["j"] = {("q1", 0): "correct", ("q2", 0): "correct", ("q3", 0): "unreadable"}
    found = table(some, "j")
    assert (found["judge"]["mean"], found["unreadable"]) == (1.0, 1)


def test_p_values_of_few_pairs_are_exact() -> None:
    assert sign_flip_p([1.0] * 5) == 2 / 32  # all alike, or all the other way round
    assert sign_flip_p([1.0, -1.0]) == 1.0
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([1.0, 1.0, -1.0]) == 1.0  # |1| or |3|: all eight


def test_p_values_of_many_pairs_agree_with_the_binomial_test() -> None:
    differences = [1.0] * 65 + [-1.0] * 35
    assert sign_flip_p(differences) == pytest.approx(0.0035, abs=0.0015)  # scipy.stats.binomtest(65, 100): 0.00352
    assert sign_flip_p([1.0] * 100) == 1 / 20_001


def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    rng = random.Random(0)
    low = sum(sign_flip_p([rng.gauss(0, 1) for _ in range(12)]) <= 0.1 for _ in range(200))
    assert 8 <= low <= 34  # 20 of 200 are expected


def test_two_cells_are_compared_on_what_both_attempted() -> None:
    first = cell([attempt(f"q{n}", "Rome") for n in range(8)] + [attempt("alone", "Paris")], "a")
    second = cell([attempt(f"q{n}", "Paris") for n in range(8)] + [failed("alone")], "b")
    found = compared(first, second)
    assert (found["questions"], found["only_first"], found["only_second"]) == (8, 1, 0)
    assert (found["f1"]["difference"], found["f1"]["ci95"], found["f1"]["p"]) == (1.0, [1.0, 1.0], 2 / 256)
    assert comparisons([found])[1][:4] == ["a.s.agent", "b.s.agent", "f1", "8"]


def test_other_questions_are_not_compared() -> None:
    first = cell([attempt("q", "Paris")])
    with pytest.raises(DataError, match="other answers to the question 'q'"):
        compared(first, cell([attempt("q", "Paris", ["Rome"])]))
    with pytest.raises(DataError, match="no question in common"):
        compared(first, cell([attempt("r", "Paris")]))


def test_cells_of_evaluations_find_each_other() -> None:
    one, two = [cell([], "a", way=way) for way in ("agent", "no_tools")], [cell([], "b", way="agent"), cell([], "b", "t")]
    assert [(x.model, y.model, y.way) for x, y in pairs(one, two)] == [("a", "b", "agent")]
    assert pairs(one[:1], two[1:]) == [(one[0], two[1])]
    with pytest.raises(DataError, match="no cell in common"):
        pairs(one, [cell([], "b", "t"), cell([], "b", "u")])


def test_our_rows_stand_beside_the_published_ones() -> None:
    ours = table(cell([attempt("q1", "Paris", source="nq"), attempt("q2", "x", source="Bamboogle", outcome=Outcome.ANSWERED)]))
    head, *rows = beside([ours])
    assert head[:2] == ["F1/MBE", "NQ"]
    assert rows[-2][:2] == ["DeepResearcher", "39.6/61.9"]
    assert rows[-1] == ["ours: m, agent", "100.0", "", "", "", "", "0.0", ""]
    assert {len(row) for row in rows} == {8}
    assert beside([table(cell([attempt("q", "Paris")]))]) == []
