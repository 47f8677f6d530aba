"""Questions about a world, each with the chain of lookups that solves it.

In:    a world, a number of hops
Out:   Puzzle: the question, its accepted answers, and its steps
Holds: every question has one right answer in its world; a namesake is asked for with its kind
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dr_jax.data.question import Question
from dr_jax.littleweb.pages import main_url
from dr_jax.littleweb.world import RELATIONS, Entity, LittleWorld, Relation


@dataclass(frozen=True, slots=True)
class Step:
    """One lookup: search for subject and relation, open the page, read the value."""

    subject: str
    relation: str
    relation_words: str
    value: str
    url: str


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A question and how to solve it."""

    question: Question
    steps: tuple[Step, ...]


def draw(world: LittleWorld, count: int, *, hops: Sequence[int] = (1, 2, 3), seed: int = 0) -> list[Puzzle]:
    """Draw different questions, as many of each number of hops and, within it, spread over first relations.

    Args:
        world: to ask about.
        count: how many.
        hops: the numbers of lookups that are wanted, dealt in turn.
        seed: of the drawing.
    """
    rng = random.Random(f"questions/{world.settings.split}/{world.settings.seed}/{seed}")
    relations = [(kind, relation) for kind in RELATIONS for relation in RELATIONS[kind]]
    puzzles: dict[str, Puzzle] = {}
    for tried in range(count * 50):
        if len(puzzles) == count:
            break
        wanted = hops[len(puzzles) % len(hops)]
        kind, first = relations[tried % len(relations)]
        puzzle = _puzzle(world, rng.choice(world.by_kind[kind]), first, wanted, rng)
        if puzzle is not None:
            puzzles.setdefault(puzzle.question.id, puzzle)
    return list(puzzles.values())


def _puzzle(world: LittleWorld, start: Entity, first: Relation, hops: int, rng: random.Random) -> Puzzle | None:
    subject, relation, steps = start, first, list[Step]()
    phrase = start.name if len(world.bearers[start.name]) == 1 else f"the {start.kind} {start.name}"
    seen = {start.name}
    while True:
        value = world.value(subject, relation)
        said = world.said(subject, relation)
        steps.append(Step(subject.name, relation.name, relation.words, said, main_url(subject)))
        if len(steps) == hops:
            break
        if not isinstance(value, Entity) or said in seen:
            return None
        seen.add(said)
        phrase = relation.nested.format(s=phrase)
        subject, relation = value, rng.choice(RELATIONS[value.kind])
    if said in seen:
        return None
    text = rng.choice(relation.asks).format(s=phrase)
    answers = (said, value.alias) if isinstance(value, Entity) and value.alias else (said,)
    here = f"{world.settings.split}-{world.settings.seed}"
    name = f"{here}-{start.id}-" + ".".join(step.relation for step in steps)
    question = Question(name, text, answers, "littleweb", world.settings.split, hops, {"world": here})
    return Puzzle(question, tuple(steps))
