"""Draw questions for ever, in a seeded order, and know where every one of them is.

In:    a list of questions, or a function from epoch to questions (fresh worlds); a seed
Out:   `next()`: one Draw; `mark_trained` and `give_back` say what became of it
Holds: invariant 7: within an epoch every question is trained once. The state is sets of ids, not a position, so a
       question that was in flight at a crash is drawn again, and one that was trained is not, whatever order they ended in.
       Several streams share one order, each drawing every so manieth question; their states can be put together and shared
       out again among another number of them
"""

from __future__ import annotations

import random
from collections import deque
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


class _State:
    """What one stream remembered."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.seed, self.latest = state["seed"], int(state["latest"])
        index, count = state.get("share", (0, 1))  # there was a single stream before there were several
        self.share = (int(index), int(count))
        self.epochs: dict[int, dict[str, Any]] = {int(number): dict(sets) for number, sets in state["epochs"].items()}
        self.filtered = {int(number): set(names) for number, names in state.get("filtered", {}).items()}

    def in_flight(self, number: int) -> set[str]:
        return set(self.epochs.get(number, {}).get("in_flight", ()))

    def put_into(self, epoch: _Epoch, number: int, order: Sequence[str]) -> None:
        """Tell an epoch what this stream did with those questions of it that now are the epoch's."""
        if (sets := self.epochs.get(number)) is not None:
            epoch.trained |= (set(sets["trained"]) | self.filtered.get(number, set())) & set(epoch.by_id)
            epoch.returned += [name for name in sets["returned"] if name in epoch.by_id]
            epoch.failures |= {name: int(times) for name, times in sets["failures"].items()}
        elif number <= self.latest:  # it was through with it
            index, count = self.share
            epoch.trained |= set(order[index::count]) & set(epoch.by_id)


class Stream:
    """An endless order of questions.

    Args:
        source: the questions, or a function that makes those of an epoch.
        seed: decides the order of every epoch.
        tries: how often a question that the world failed is drawn in one epoch before the epoch goes on without it.
        share: which of the streams that share the order this is, from 0, and how many there are.

    Raises:
        DataError: an epoch has no question for this stream, or two with one id.
    """

    def __init__(
        self, source: Sequence[Question] | Source, seed: int = 0, *, tries: int = 3, share: tuple[int, int] = (0, 1)
    ) -> None:
        self._source: Source = source if callable(source) else lambda _: source
        self._seed, self._share = seed, share
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

    def place(self, question_id: str, epoch_number: int | None = None) -> tuple[int, int]:
        """Return the epoch of a question in flight, and its place in that epoch's order.

        Args:
            question_id: of a draw.
            epoch_number: of that draw; None is the oldest in which the question is in flight, here and below.

        Raises:
            ValueError: the question is not in flight.
        """
        epoch = self._epoch_of(question_id, epoch_number)
        return self._number(epoch), epoch.places[question_id]

    def mark_trained(self, question_id: str, epoch_number: int | None = None) -> None:
        """Say that a drawn question was used (trained on, or dropped on purpose): it is not drawn again in its epoch.

        Raises:
            ValueError: the question is not in flight.
        """
        epoch = self._epoch_of(question_id, epoch_number)
        epoch.in_flight.discard(question_id)
        epoch.trained.add(question_id)
        self._close()

    def give_back(self, question_id: str, epoch_number: int | None = None, *, failed: bool = True) -> bool:
        """Say that a drawn question was not used; return whether it will be drawn again in this epoch.

        Args:
            question_id: of a draw.
            epoch_number: of that draw.
            failed: whether the world failed it, which is tried only so often; otherwise it was merely dropped, as too old.

        Raises:
            ValueError: the question is not in flight.
        """
        epoch = self._epoch_of(question_id, epoch_number)
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
            "share": list(self._share),
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

    def restore(self, *states: dict[str, Any], held: Iterable[tuple[str, int]] = ()) -> set[tuple[str, int]]:
        """Continue from the states of all streams that shared the order; return which of `held` are this stream's.

        Args:
            states: what `state` returned on each; questions in flight then are drawn again.
            held: ids and epochs of draws whose episodes were kept with the states: they stay in flight, not drawn again.

        Raises:
            CheckpointError: a state is of another seed, or not a state, or one of them is missing.
        """
        try:
            before = [_State(state) for state in states]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"The stream's state cannot be read: {error!r}", needed="what `state` returned") from error
        for one in before:
            if one.seed != self._seed:
                raise CheckpointError(
                    f"The checkpoint draws questions by seed {one.seed}, the config by {self._seed}",
                    fix="resume with the same seed",
                )
        if sorted(one.share for one in before) != [(index, len(before)) for index in range(len(before))]:
            raise CheckpointError(
                f"The states are of the shares {[one.share for one in before]}",
                needed="one of each stream that shared the order",
            )
        kept, own = set(held), set[tuple[str, int]]()  # a question may be out in two epochs at once
        self._open, self._latest = {}, max(one.latest for one in before)
        self._filtered = {}
        for number in sorted({number for one in before for number in one.filtered}):
            names = set().union(*(one.filtered.get(number, ()) for one in before))
            self._filtered[number] = names & set(self._build(number).by_id)
        first = min(min(one.epochs, default=one.latest + 1) for one in before)
        for number in range(first, self._latest + 1):
            epoch = self._build(number)
            whole = [question.id for question in self._order(number)]
            for one in before:
                one.put_into(epoch, number, whole)
            still = {name for one in before for name in one.in_flight(number) if (name, number) in kept}
            epoch.in_flight = still & set(epoch.by_id)
            own |= {(name, number) for name in epoch.in_flight}
            if not epoch.trained >= set(epoch.by_id):
                self._open[number] = epoch
        if not self._open:
            self._begin()
        return own

    def _begin(self) -> None:
        self._latest += 1
        self._open[self._latest] = self._build(self._latest)

    def _build(self, number: int) -> _Epoch:
        index, count = self._share
        own = self._order(number)[index::count]
        if not own:
            raise DataError(
                f"Epoch {number} has fewer questions than there are processes, {count}",
                needed="at least one for each",
                fix="start fewer processes, or give more questions",
            )
        return _Epoch(own)

    def _order(self, number: int) -> list[Question]:
        order = list(self._source(number))
        if not order:
            raise DataError(f"Epoch {number} has no question", needed="at least one", fix="check data.path and its filters")
        if len({question.id for question in order}) < len(order):
            seen: set[str] = set()
            twice = next(question.id for question in order if question.id in seen or seen.add(question.id))  # type: ignore[func-returns-value]
            raise DataError(f"Two questions have the id {twice!r}", needed="ids that are unique over all question files")
        random.Random(f"{self._seed}/{number}").shuffle(order)
        return order

    def _number(self, epoch: _Epoch) -> int:
        return next(number for number, one in self._open.items() if one is epoch)

    def _epoch_of(self, question_id: str, number: int | None) -> _Epoch:
        for one, epoch in sorted(self._open.items()):
            if question_id in epoch.in_flight and number in (None, one):
                return epoch
        raise ValueError(f"question {question_id!r} is not in flight{'' if number is None else f' in epoch {number}'}")

    def _close(self) -> None:
        for number in [number for number, epoch in self._open.items() if epoch.over]:
            del self._open[number]
        if not self._open:
            self._begin()
