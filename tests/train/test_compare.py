"""Comparing two evaluations: what counts, what does not, and how sure one can be."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_jax.base.errors import DataError
from dr_jax.train.compare import compare, p_value


def evaluation(directory: Path, said: dict[str, str | None], **facts: Any) -> Path:
    """Write the episodes of an evaluation: by question, what was answered; None where the world failed."""
    directory.mkdir(parents=True)
    with (directory / "episodes.jsonl").open("w", encoding="utf-8") as file:
        for name, answer in said.items():
            outcome = "world_failed" if answer is None else "answered"
            row = {"id": name, "question_id": name, "answers": ["Oren Vash"], "source": name[0], "hops": 1 + len(name) % 2}
            file.write(json.dumps({**row, "answer": answer, "outcome": outcome, **facts}) + "\n")
    return directory


def test_questions_are_paired_and_what_cannot_be_is_counted(tmp_path: Path) -> None:
    left = evaluation(tmp_path / "a", {"a1": "Oren", "a2": "nobody", "b1": "Oren Vash", "b2": None, "b3": "Oren Vash"})
    right = evaluation(tmp_path / "b", {"a1": "Oren Vash", "a2": "Oren Vash", "b1": "Oren Vash", "b2": "Oren Vash", "c": "x"})
    found = compare(left, right)
    assert (found.unpaired, found.world_failed) == (2, 1)
    everything, *parts = found.rows
    assert (everything.name, everything.n) == ("all", 3)
    assert everything.left == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert everything.right == 1.0
    assert everything.difference == pytest.approx(1 - (2 / 3 + 1) / 3)
    assert (everything.left_em, everything.right_em) == (pytest.approx(1 / 3), 1.0)
    assert everything.ci95[0] <= everything.difference <= everything.ci95[1]
    assert [(row.name, row.n) for row in parts] == [("1 hop", 3), ("a", 2), ("b", 1)]
    assert json.loads(json.dumps(found.tree()))["rows"][0]["n"] == 3


def test_the_p_value_is_that_of_all_sign_flips() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.3, 1.0):
        values = rng.normal(shift, 1.0, 12)
        exact = np.mean(
            [abs(np.dot(signs, values)) >= abs(values.sum()) - 1e-9 for signs in itertools.product((-1, 1), repeat=12)]
        )
        assert p_value(values.tolist()) == pytest.approx(exact, abs=0.012)
    assert p_value([0.0] * 5) == 1.0
    assert p_value([1.0] * 100) < 1e-4


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    good = evaluation(tmp_path / "a", {"a1": "x"})
    with pytest.raises(DataError, match="no question in common"):
        compare(good, evaluation(tmp_path / "b", {"b1": "x"}))
    with pytest.raises(DataError, match="other accepted answers"):
        compare(good, evaluation(tmp_path / "c", {"a1": "x"}, answers=["somebody else"]))
    with pytest.raises(DataError, match=r"training run.*--checkpoint"):
        compare(good, evaluation(tmp_path / "d", {"a1": "x"}, step=3))
    with pytest.raises(DataError, match="no episodes in"):
        compare(good, tmp_path / "nowhere")
