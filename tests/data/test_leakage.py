"""The leakage filter: what counts as the same question, and a planted set of 10,000."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from dr_jax.data.filters.decision import Verdict
from dr_jax.data.filters.leakage import Leakage, LeakageSettings, WordWeights, words
from dr_jax.data.filters.minhash import Index, MinHash
from dr_jax.data.question import Question
from tests.data.planted import planted

FILLER = [
    f"{asked} the {thing} of Place{number}?"
    for number in range(100)
    for asked in ("Who founded", "Who established", "Which clerk numbered")
    for thing in ("town", "school")
]


def question(text: str, answer: str = "x", name: str = "t") -> Question:
    return Question(name, text, (answer,))


def said(theirs: Question, ours: Question, settings: LeakageSettings | None = None) -> str:
    weights = WordWeights([theirs.text, ours.text, *FILLER])
    (decision,) = asyncio.run(Leakage({"set": [theirs]}, weights, settings).decide([ours]))
    return decision.kind if decision.verdict is Verdict.DROPPED else ""


@pytest.mark.parametrize(
    ("ours", "answer", "kind"),
    [
        ("Who founded the town of Velin in 1412?", "Orla", "exact"),
        ("WHO FOUNDED the town of velin, in 1412", "other", "normalised"),
        ("Who established the town of Velin in 1412?", "Orla", "near"),
        ("In 1412, who was it who founded the town of Velin?", "Orla", "near"),
        ("Who founded the school town of Velin in 1412?", "another spelling", "near"),
        ("Who founded the town of Velin in 1413?", "Jon", ""),
        ("Who founded the town of Torvik in 1412?", "Jon", ""),
        ("How large is Velin?", "3 km", ""),
        ("Which clerk wrote it down?", "Orla", ""),
    ],
)
def test_what_leaks(ours: str, answer: str, kind: str) -> None:
    assert said(question("Who founded the town of Velin in 1412?", "Orla", "e"), question(ours, answer)) == kind


def test_yes_and_no_are_no_shared_answers() -> None:
    theirs, ours = "Who founded the town of Velin in 1412?", "Who numbered Velin in 1412?"
    assert said(question(theirs, "Orla"), question(ours, "Orla")) == "near"
    assert said(question(theirs, "yes"), question(ours, "yes")) == ""


def test_near_ones_are_not_looked_for_where_nobody_wants_them() -> None:
    theirs, ours = question("Who founded the town of Velin?"), question("Who established the town of Velin?")
    assert said(theirs, ours) == "near"
    assert said(theirs, ours, LeakageSettings(near=1, nearer=1)) == ""


def test_the_pair_is_named() -> None:
    one = Leakage({"dev": [question("Who?", name="e7")]}, WordWeights(FILLER))
    (decision,) = asyncio.run(one.decide([question("WHO")]))
    assert decision.reason == "normalised: e7 of dev"
    assert decision.facts == {"set": "dev", "kind": "normalised", "id": "e7", "text": "Who?", "similarity": "1.000"}


def test_words_without_spaces_between_them_are_told_apart() -> None:
    assert words("维尔塔是 Velin's?") == ["维", "尔", "塔", "是", "velin", "s"]


def test_common_words_weigh_little_and_unknown_ones_most() -> None:
    weigh = WordWeights(FILLER)
    assert (weigh("the"), weigh("founded"), weigh("place7"), weigh("never")) == (1, 2, 5, 6)


def test_hashes_agree_as_often_as_sets_are_alike() -> None:
    """Jaccard similarity 60 / 140: the share of 4,000 agreeing hashes is within four standard errors of it."""
    hashing = MinHash(bands=1000, rows=4)
    numbers = np.arange(100, dtype=np.uint64)
    first, second = hashing.signatures([numbers, numbers + np.uint64(40)])
    share = float((first == second).mean())
    assert abs(share - 60 / 140) < 4 * (3 / 7 * 4 / 7 / 4000) ** 0.5


def test_the_index_finds_what_comparing_all_pairs_finds() -> None:
    random = np.random.default_rng(0)
    sets = [random.integers(0, 40, 12).astype(np.uint64) for _ in range(60)]
    hashing = MinHash()
    signatures = hashing.signatures([*sets, np.array([], dtype=np.uint64)])
    keys = hashing.band_keys(signatures)
    found = {tuple(pair) for pair in Index(hashing, signatures).candidates(signatures, 0.3).tolist()}
    every = {
        (one, other)
        for one in range(len(signatures))
        for other in range(len(signatures))
        if (keys[one] == keys[other]).any() and (signatures[one] == signatures[other]).mean() >= 0.3
    }
    assert found == every
    assert len(every) > len(signatures)  # not only each with itself


def test_planted_leaks_are_found_and_little_else() -> None:
    """10,000 questions, 250 of each way to repeat one of 2,000; 250 that differ in one name, one year, or what is asked.

    `-s` shows recall and precision.
    """
    made = planted()
    one = Leakage({"eval": made.held_out}, WordWeights(question.text for question in [*made.train, *made.held_out]))
    decisions = asyncio.run(one.decide(made.train))
    whole, found, wrong = Counter(way for way, _ in made.repeats.values()), Counter[str](), 0
    for question, decision in zip(made.train, decisions, strict=True):
        way, theirs = made.repeats.get(question.id, ("", ""))
        if decision.verdict is Verdict.DROPPED and decision.facts["id"] == theirs:
            found[way] += 1
        elif decision.verdict is Verdict.DROPPED:
            wrong += 1
    recall = {way: found[way] / whole[way] for way in whole}
    precision = sum(found.values()) / (sum(found.values()) + wrong)
    print(f"recall {recall}, precision {precision:.4f} ({wrong} of {len(made.train):,} dropped wrongly)")
    assert len(made.train) == 10_000
    assert set(whole.values()) == {250}
    assert recall["exact"] == recall["cased"] == recall["punctuated"] == 1.0
    assert recall["near"] >= 0.95
    assert precision >= 0.95


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"near = 0.8, nearer = 0.7"):
        LeakageSettings(near=0.8)
    with pytest.raises(ValueError, match="most = 2"):
        LeakageSettings(most=2)
