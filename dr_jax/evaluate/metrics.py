"""Turn attempts at a question into numbers.

In:    the attempts at one question, verdicts of a judge
Out:   a number by name for each metric that can be told of them
Holds: no answer is wrong, whatever normalising leaves of the accepted ones; what the world failed, or no judge could say, is
       left out
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from dr_jax.evaluate.attempt import Attempt, Key
from dr_jax.rewards import official
from dr_jax.rewards.match import exact_match, f1
from dr_jax.rewards.normalize import normalized

Verdicts = Mapping[Key, str]  # correct, incorrect, unreadable

MATCHES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "f1": f1,
    "em": exact_match,
    "f1_bag": lambda answer, accepted: f1(answer, accepted, "bag"),
    "cover_em": official.cover_em,
    "squad_em": official.squad_em,
    "squad_f1": official.squad_f1,
    "hotpot_f1": official.hotpot_f1,
}
COSTS = ("calls", "tokens", "written", "seconds")


def matched(metric: str, attempt: Attempt) -> float:
    """Return how well an attempt's answer matches the accepted ones."""
    return 0.0 if attempt.answer is None else MATCHES[metric](attempt.answer, attempt.accepted)


def judged(attempt: Attempt, verdicts: Verdicts) -> float | None:
    """Return 1.0 or 0.0 as the judge said; None where there is no verdict. No answer needs no judge."""
    if attempt.answer is None:
        return 0.0
    return {"correct": 1.0, "incorrect": 0.0}.get(verdicts.get(attempt.key, ""))


def of_question(attempts: Sequence[Attempt], verdicts: Verdicts | None = None) -> dict[str, float]:
    """Return every metric of the attempts at one question: means over them, pass@k, and what the majority said.

    Args:
        attempts: at the same question; those that the world failed are left out.
        verdicts: of a judge; None when none was asked.
    """
    counted = sorted((one for one in attempts if one.counted), key=lambda one: one.sample)
    if not counted:
        return {}
    numbers = {name: _mean([matched(name, one) for one in counted]) for name in MATCHES}
    numbers |= {name: _mean([float(getattr(one, name)) for one in counted]) for name in COSTS}
    right = sum(matched("em", one) for one in counted)
    if verdicts is not None:
        said = [value for one in counted if (value := judged(one, verdicts)) is not None]
        if said:
            numbers["judge"] = _mean(said)
    if len(attempts) > 1:
        for k in (k for k in _powers(len(attempts)) if k <= len(counted)):
            numbers[f"pass@{k}"] = pass_at_k(len(counted), round(right), k)
        chosen = majority(counted)
        numbers |= {f"majority_{name}": matched(name, chosen) for name in ("f1", "em")}
    return numbers


def pass_at_k(n: int, right: int, k: int) -> float:
    """Estimate, without bias, how likely one of k samples is right, from n samples of which some are.

    1 - C(n - right, k) / C(n, k): Chen et al., "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), eq. 1.
    """
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def majority(attempts: Sequence[Attempt]) -> Attempt:
    """Return the first attempt that gave the answer which most gave, in normalised form; who gave none has no vote.

    Where several were given equally often, the one that was given first counts.
    """
    answers = {one.sample: normalized(one.answer) for one in attempts if one.answer is not None}
    if not answers:
        return attempts[0]
    most = Counter(answers.values()).most_common(1)[0][0]
    return next(one for one in attempts if answers.get(one.sample) == most)


def _powers(n: int) -> list[int]:
    """1, 2, 4, … below n, and n."""
    return [*(2**power for power in range(n.bit_length()) if 2**power < n), n]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
