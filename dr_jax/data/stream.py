"""Draw questions for ever, in a seeded order, and know where every one of them is.

In:    a list of questions, or a function from epoch to questions (fresh worlds); a seed
Out:   `next()`: one Draw; `mark_trained` and `give_back` say what became of it
Holds: invariant 7: within an epoch every question is trained once. The state is sets of ids, not a position, so a
       question that was in flight at a crash is drawn again, and one that was trained is not, whatever order they ended in
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dr_jax.base.errors import CheckpointError, DataError
from dr_jax.base.trace import logger
from dr_jax.data.question import Question

Source = Callable[[int], Sequence[Question]]
_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawing of a question; the epoch separates the random numbers of one drawing from the next."""

    question: Question
    epoch: int


@dataclass(slots=True)
class _Epoch:
    order: list[Question]
    at: int = 0
    trained: set[str] = field(default_factory=set)
    in_flight: set[str] = field(default_factory=set)
    returned: deque[str] = field(default_factory=deque)
    failures: dict[str, int] = field(default_factory=dict)
    by_id: dict[str, Question] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_id = {question.id: question for question in self.order}
        self.places = {question.id: place for place, question in enumerate(self.order)}

    def draw(self) -> Question | None:
        """The next question of the order, then those that were given back; None when all are out."""
        while self.at < len(self.order):
            question = self.order[self.at]
            self.at += 1
            if not (question.id in self.trained or question.id in self.in_flight or question.id in self.returned):
                self.in_flight.add(question.id)
                return question
        if self.returned:
            question = self.by_id[self.returned.popleft()]
            self.in_flight.add(question.id)
            return question
        return None

    @property
    def over(self) -> bool:
        return self.at >= len(self.order) and not self.in_flight and not self.returned


class Stream:
    """An endless order of questions.

    Args:
        source: the questions, or a function that makes those of an epoch.
        seed: decides the order of every epoch.
        tries: how often a question that the world failed is drawn in one epoch before the epoch goes on without it.

    Raises:
        DataError: an epoch has no question, or two with one id.
    """

    def __init__(self, source: Sequence[Question] | Source, seed: int = 0, *, tries: int = 3) -> None:
        self._source: Source = source if callable(source) else lambda _: source
        self._seed = seed
        self._tries = tries
        self._open: dict[int, _Epoch] = {}
        self._filtered: dict[int, set[str]] = {}  # by epoch, closed ones too: what they went on without
        self._latest = -1
        self._begin()

    @property
    def epoch(self) -> int:
        """The oldest epoch that still has a question to train."""
        return min(self._open)

    @property
    def in_flight(self) -> int:
        """How many draws are neither trained nor given back."""
        return sum(len(epoch.in_flight) for epoch in self._open.values())

    def next(self) -> Draw:
        """Draw the next question; older epochs first, so that what was given back is not put off for ever."""
        while True:
            for number, epoch in sorted(self._open.items()):
                question = epoch.draw()
                if question is not None:
                    return Draw(question, number)
            self._begin()

    def place(self, question_id: str) -> tuple[int, int]:
        """Return the epoch of a question in flight, and its place in that epoch's order.

        Raises:
            ValueError: the question is not in flight.
        """
        epoch = self._epoch_of(question_id)
        return self._number(epoch), epoch.places[question_id]

    def mark_trained(self, question_id: str) -> None:
        """Say that a drawn question was used (trained on, or dropped on purpose): it is not drawn again in its epoch.

        Raises:
            ValueError: the question is not in flight.
        """
        epoch = self._epoch_of(question_id)
        epoch.in_flight.discard(question_id)
        epoch.trained.add(question_id)
        self._close()

    def give_back(self, question_id: str, *, failed: bool = True) -> bool:
        """Say that a drawn question was not used; return whether it will be drawn again in this epoch.

        Args:
            question_id: of a draw.
            failed: whether the world failed it, which is tried only so often; otherwise it was merely dropped, as too old.

        Raises:
            ValueError: the question is not in flight.
        """
        epoch = self._epoch_of(question_id)
        epoch.in_flight.discard(question_id)
        epoch.failures[question_id] = epoch.failures.get(question_id, 0) + failed
        again = epoch.failures[question_id] < self._tries
        if not again:
            _log.warning("the world failed question %s %d times: this epoch goes on without it", question_id, self._tries)
        if again:
            epoch.returned.append(question_id)
        else:
            epoch.trained.add(question_id)
            self._filtered.setdefault(self._number(epoch), set()).add(question_id)
        self._close()
        return again

    def state(self) -> dict[str, Any]:
        """Return where every question is, as JSON values: trained, in flight, returned; and what epochs went on without."""
        return {
            "seed": self._seed,
            "latest": self._latest,
            "filtered": {str(number): sorted(names) for number, names in sorted(self._filtered.items())},
            "epochs": {
                str(number): {
                    "trained": sorted(epoch.trained - self._filtered.get(number, set())),
                    "in_flight": sorted(epoch.in_flight),
                    "returned": list(epoch.returned),
                    "failures": dict(sorted(epoch.failures.items())),
                }
                for number, epoch in self._open.items()
            },
        }

    def restore(self, state: dict[str, Any], *, held: Iterable[str] = ()) -> None:
        """Continue from a state.

        Args:
            state: what `state` returned; questions in flight then are drawn again.
            held: ids whose finished episodes were kept with the state: they stay in flight and are not drawn again.

        Raises:
            CheckpointError: the state is of another seed, or not a state.
        """
        try:
            seed, latest, saved = state["seed"], int(state["latest"]), dict(state["epochs"])
            filtered = {int(number): set(names) for number, names in state.get("filtered", {}).items()}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"The stream's state cannot be read: {error!r}", needed="what `state` returned") from error
        if seed != self._seed:
            raise CheckpointError(
                f"The checkpoint draws questions by seed {seed}, the config by {self._seed}", fix="resume with the same seed"
            )
        kept = Counter(held)  # a question may be out in two epochs at once
        self._open, self._filtered = {}, filtered
        for key, sets in saved.items():
            epoch = self._build(int(key))
            epoch.trained = (set(sets["trained"]) | filtered.get(int(key), set())) & set(epoch.by_id)
            epoch.in_flight = {name for name in sets["in_flight"] if kept[name] and name in epoch.by_id}
            kept.subtract(epoch.in_flight)
            epoch.returned = deque(name for name in sets["returned"] if name in epoch.by_id)
            epoch.failures = {name: int(times) for name, times in sets["failures"].items()}
            self._open[int(key)] = epoch
        self._latest = latest
        if not self._open:
            self._begin()

    def _begin(self) -> None:
        self._latest += 1
        self._open[self._latest] = self._build(self._latest)

    def _build(self, number: int) -> _Epoch:
        order = list(self._source(number))
        if not order:
            raise DataError(f"Epoch {number} has no question", needed="at least one", fix="check data.path and its filters")
        if len({question.id for question in order}) < len(order):
            seen: set[str] = set()
            twice = next(question.id for question in order if question.id in seen or seen.add(question.id))  # type: ignore[func-returns-value]
            raise DataError(f"Two questions have the id {twice!r}", needed="ids that are unique over all question files")
        random.Random(f"{self._seed}/{number}").shuffle(order)
        return _Epoch(order)

    def _number(self, epoch: _Epoch) -> int:
        return next(number for number, one in self._open.items() if one is epoch)

    def _epoch_of(self, question_id: str) -> _Epoch:
        for _, epoch in sorted(self._open.items()):
            if question_id in epoch.in_flight:
                return epoch
        raise ValueError(f"question {question_id!r} is not in flight")

    def _close(self) -> None:
        for number in [number for number, epoch in self._open.items() if epoch.over]:
            del self._open[number]
        if not self._open:
            self._begin()
