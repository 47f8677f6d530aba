"""What a run with killed workers is compared by, and the command itself, small."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.boundary import Boundary
from benchmarks.ridden import failures
from benchmarks.witness import Answered, Answers, difference, miscounted
from dr_jax.engine.request import key_data
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling
from tests.engine import oracle

ROOT = Path(__file__).parents[2]


def answered(prompt: Sequence[int], ids: Sequence[int], logprob: float = -1.0) -> Answered:
    return Answered(tuple(prompt), Sampled(tuple(ids), (logprob,) * len(ids), (0,) * len(ids), "length"))


def key(turn: int, question: str = "q", purpose: str = "act") -> RequestKey:
    return RequestKey(0, question, 3, turn, purpose)


def far(*_: object) -> float:
    return 0.2


def near(*_: object) -> float:
    return 1e-7


WHOLE: Answers = {key(0): answered([1], [2, 3]), key(1): answered([1, 2, 3, 9], [4, 5]), key(0, "r"): answered([1], [7])}


def test_episodes_are_counted_one_by_one() -> None:
    assert miscounted(["a.0", "a.1"], ["a.1", "a.0"]) == ([], [])
    assert miscounted(["a.0", "a.1", "a.2"], ["a.0", "a.0", "a.2", "b.0"]) == (["a.1"], ["a.0", "b.0"])


def test_the_same_answers_do_not_differ_whatever_the_order() -> None:
    found = difference(WHOLE, dict(reversed(WHOLE.items())), far)
    assert (found.compared, found.logprob, found.rounded, found.after, found.other) == (3, 0.0, 0, 0, 0)


def test_log_probabilities_are_compared_id_by_id() -> None:
    other = WHOLE | {key(0, "r"): answered([1], [7], -1.25)}
    assert difference(WHOLE, other, far).logprob == 0.25


def test_another_id_is_an_error_unless_it_was_drawn_from_the_boundary() -> None:
    asked = []

    def gap(*told: object) -> float:
        asked.append(told)
        return 1e-7

    other = WHOLE | {key(0): answered([1], [2, 6]), key(1): answered([1, 2, 6, 9], [4, 5])}
    found = difference(WHOLE, other, gap)
    assert asked == [(key(0), (1, 2), 1, (3, 6))]
    assert (found.compared, found.rounded, found.after, found.other) == (2, 1, 1, 0)
    found = difference(WHOLE, other, far)
    assert (found.rounded, found.gap, found.other) == (0, 0.2, 1)


def test_what_came_before_the_boundary_is_no_excuse() -> None:
    first = WHOLE | {key(0): answered([8], [2, 3])}
    assert difference(WHOLE, first, near).other == 1
    later = WHOLE | {key(1): answered([1, 2, 3, 9], [4, 6]), key(0): answered([8], [2, 3])}
    assert difference(WHOLE, later, near).other == 1


def test_an_answer_that_stops_too_early_is_an_error() -> None:
    assert difference(WHOLE, WHOLE | {key(0): answered([1], [2])}, near).other == 1


def test_failures_are_named() -> None:
    fine = {"lost": [], "doubled": [], "answered_twice": 0, "ids": 5, "ids_drawn": 5, "compared": {"other": 0, "logprob": 1e-6}}
    assert failures({"side": fine}) == []
    for change in (
        {"lost": ["a.1"]},
        {"doubled": ["a.1"]},
        {"answered_twice": 1},
        {"ids_drawn": 6},
        {"compared": {"other": 1, "logprob": 0.0}},
        {"compared": {"other": 0, "logprob": 1e-3}},
    ):
        assert len(failures({"side": fine | change})) == 1, change


def test_the_gap_is_from_the_number_to_where_one_id_ends_and_the_next_begins() -> None:
    asked, before = replace(key(0), sibling=1), [3, 1, 4, 1, 5]
    drawn = oracle.sample(oracle.weights(0), before, Sampling(1), asked).ids[0]
    left = oracle.logits(oracle.weights(0), before)
    until = np.cumsum(np.exp(left - left.max()))
    until /= until[-1]
    word = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(key_data(asked)), impl="threefry2x32"), 0)
    number = float(jax.random.uniform(word, (), jnp.float32))
    assert until[drawn - 1] < number < until[drawn]
    boundary = Boundary(oracle.weights(0), oracle.SIZES, oracle.CONTEXT)
    assert boundary.gap(asked, before, 0, (drawn, drawn + 1)) == pytest.approx(until[drawn] - number, abs=1e-6)
    assert boundary.gap(asked, before, 0, (drawn - 1, drawn)) == pytest.approx(number - until[drawn - 1], abs=1e-6)
    # Two ids apart, the one between them is in the way.
    assert boundary.gap(asked, before, 0, (drawn, drawn + 2)) >= until[drawn + 1] - until[drawn]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_command_with_a_worker_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`: pip install 'dr-jax[ray]'")
    sides = ("two workers", "two, one killed")
    work = ("--groups", "16", "--think", "32", "--every", "8", "--first", "0", "--out", str(tmp_path))
    command = [sys.executable, "-m", "benchmarks.elastic", "--sides", *sides, *work]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "elastic.json").read_text("utf-8"))
    quiet, killed = (told["checks"][side] for side in sides)
    assert len(told["kills"][sides[1]]) >= 1
    assert told["counted"][sides[1]]["migrated"] >= 1
    assert quiet["episodes"] == killed["episodes"] == 128
    assert killed["requests"] - killed["compared"]["after"] <= killed["compared"]["compared"] <= quiet["requests"]
    assert killed["compared"]["compared"] > 128
    assert (tmp_path / "elastic.png").is_file()
