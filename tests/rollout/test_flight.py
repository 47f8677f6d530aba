"""Groups in flight across updates: gathered while nobody asks, given up when they would be too old, none lost, none twice."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest

from dr_jax.base.errors import WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.data.stream import Stream
from dr_jax.rollout.flight import Flights
from dr_jax.rollout.harvest import Harvest
from dr_jax.rollout.underway import Flight, UnderWay
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling
from dr_jax.tokens.trajectory import Episode, Group, Outcome, Trajectory, world


class Learner:
    """A policy whose version a test moves; it says one token of the version that it had when it was asked, after a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.version, self._seconds = 0, seconds

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        version = self.version
        await asyncio.sleep(self._seconds)
        return Sampled((7,), (-0.5,), (version,), "stop")


class Bench:
    """Flights over questions `0`, `1`, … each of which takes some seconds, in which everybody has spoken at the start.

    Args:
        seconds: by question, or for each drawing of it.
        count: of questions.
        options: of the flights.
    """

    def __init__(
        self,
        seconds: Mapping[str, float] | Callable[[Flight], float],
        *,
        count: int = 40,
        groups: int = 2,
        policy: Learner | None = None,
        **options: int,
    ) -> None:
        self.policy, self.metrics = policy or Learner(), Metrics()
        self.stream = Stream([Question(str(number), "?", ("x",)) for number in range(count)], 0)
        self.harvest = Harvest(groups, self.metrics)
        self.begun: list[str] = []
        self.ended: list[str] = []
        self._seconds = seconds if callable(seconds) else lambda flight: seconds.get(flight.draw.question.id, 0.01)
        given = {"at_once": 4, "staleness": 1, "most": 8} | options
        self.under_way = UnderWay(self.stream, self.metrics)
        self.flights = Flights(self.stream, self.under_way, self.harvest, self._fly, metrics=self.metrics, **given)

    async def _fly(self, flight: Flight) -> Group:
        name = flight.draw.question.id
        self.begun.append(name)
        policy, episodes = flight.noting(self.policy), []
        said = await policy.sample((1,), Sampling(1), RequestKey(0, name, 0, 0))
        await asyncio.sleep(self._seconds(flight))
        last = await policy.sample((1, 7), Sampling(1), RequestKey(0, name, 0, 1))
        spoken = Trajectory((world([1]), said.segment(), world([2]), last.segment()))
        for sibling in range(2):
            ended = Episode(f"{name}.{sibling}", name, (spoken,), Outcome.ANSWERED, answer="x")
            episodes.append(ended.rewarded({"f1": float(sibling)}))
        self.ended.append(name)
        return Group(name, tuple(episodes), epoch=flight.draw.epoch)

    async def update(self, seconds: float = 0.0) -> list[Group]:
        """Take groups, learn for a while, settle."""
        taken = await self.flights.take(self.policy.version)
        for group in taken:
            assert group.oldest_version is not None
            assert group.oldest_version >= self.policy.version - 1, "invariant 9"
        await asyncio.sleep(seconds)
        self.policy.version += 1
        for group in taken:
            self.stream.mark_trained(group.question_id, group.epoch)
        return taken


async def test_groups_are_begun_and_gathered_while_an_update_goes_on() -> None:
    bench = Bench({}, at_once=3, most=10)
    async with bench.flights:
        await bench.update(0.0)
        begun = len(bench.begun)
        await bench.update(0.3)  # ten times as long as a group takes
        assert len(bench.begun) >= begun + 5
        assert len(bench.harvest.waiting) >= 5


async def test_no_more_are_begun_than_can_be_learned_from_in_time() -> None:
    bench = Bench({}, at_once=3, most=2 * 2)  # staleness 1: of two updates of two groups
    async with bench.flights:
        await bench.flights.take(0)
        await asyncio.sleep(0.5)
        assert len(bench.begun) == 4
        assert len(bench.harvest.waiting) == 2, "two are being learned from"
        bench.policy.version = 1
        await bench.flights.take(1)
        await asyncio.sleep(0.5)
        assert len(bench.begun) == 4 + 2
    assert "rollout/stale_groups" not in bench.metrics.drain()


async def test_no_update_waits_for_a_straggler_which_is_given_up_and_asked_again() -> None:
    tries = Counter[str]()

    def seconds(flight: Flight) -> float:
        name = flight.draw.question.id
        tries[name] += 1
        return 60.0 if (name, tries[name]) == ("3", 1) else 0.01

    bench, before = Bench(seconds, count=12), asyncio.all_tasks()
    trained: list[str] = []
    async with bench.flights, asyncio.timeout(20):
        while bench.stream.epoch == 0:
            trained += [group.question_id for group in await bench.update()]
    counted = bench.metrics.drain()
    assert tries["3"] >= 2
    assert counted["rollout/cancelled_groups"] >= 1
    assert counted["rollout/cancelled_episodes"] >= 1
    assert Counter(trained[:13])["3"] == 1
    assert {str(number) for number in range(12)} <= set(trained)
    assert asyncio.all_tasks() == before


async def test_who_has_not_spoken_yet_is_not_given_up() -> None:
    """What was asked of the old weights may be drawn with the new ones; it is known when it comes back."""
    policy = Learner(seconds=0.2)
    bench = Bench({}, policy=policy, at_once=2)
    async with bench.flights:
        taking = asyncio.ensure_future(bench.flights.take(0))
        await asyncio.sleep(0.05)
        bench.flights._give_up_below(5)  # as many updates as it takes
        assert len(bench.flights._running) == 2
        assert "rollout/cancelled_groups" not in bench.metrics.drain()
        await asyncio.sleep(0.2)  # now it has spoken, with old weights
        assert bench.metrics.drain()["rollout/cancelled_groups"] >= 2
        taking.cancel()
    assert bench.ended == []


@pytest.mark.parametrize("seed", range(5))
async def test_7_and_9_whatever_happens_when(seed: int) -> None:
    chance = random.Random(seed)
    bench = Bench(lambda flight: chance.choice([0.0, 0.002, 0.01, 0.05, 0.2]), count=30, at_once=8, most=12)
    trained = Counter[tuple[int, str]]()
    async with bench.flights, asyncio.timeout(60):
        while bench.stream.epoch < 2:
            taken = await bench.flights.take(bench.policy.version)
            assert all(group.oldest_version >= bench.policy.version - 1 for group in taken if group.oldest_version is not None)
            await asyncio.sleep(chance.choice([0.0, 0.01, 0.05]))
            bench.policy.version += 1
            for group in taken:
                trained[group.epoch, group.question_id] += 1
                bench.stream.mark_trained(group.question_id, group.epoch)
    for epoch in range(2):
        assert {name for at, name in trained if at == epoch} == {str(number) for number in range(30)}, "a question was lost"
    assert set(trained.values()) == {1}, "a question was trained twice"


async def test_with_no_staleness_more_groups_than_are_needed_race_for_an_update() -> None:
    bench = Bench({str(number): 0.3 for number in range(20)}, staleness=0, at_once=5, most=7)
    async with bench.flights, asyncio.timeout(20):
        first = await bench.flights.take(0)
        begun = len(bench.begun)
        assert {group.question_id for group in first} <= {str(number) for number in range(20, 40)}
        await asyncio.sleep(0.05)
        assert len(bench.begun) == begun, "something was begun with weights that are being replaced"
        bench.policy.version = 1
        second = await bench.flights.take(1)
        assert {group.oldest_version for group in second} == {1}


async def test_after_an_update_that_found_nothing_to_learn_the_same_version_draws_on() -> None:
    bench = Bench({}, staleness=0, at_once=5, most=7)
    async with bench.flights, asyncio.timeout(5):
        first = await bench.flights.take(0)
        second = await bench.flights.take(0)
    assert [group.oldest_version for group in (*first, *second)] == [0] * 4
    assert not {group.question_id for group in first} & {group.question_id for group in second}


async def test_the_oldest_are_taken_first() -> None:
    bench = Bench({}, at_once=4, most=8)
    async with bench.flights:
        await bench.update(0.1)
        waiting = [group.oldest_version for group in bench.harvest.waiting]
        taken = await bench.flights.take(1)
        assert [group.oldest_version for group in taken] == sorted(waiting)[:2]


async def test_leaving_ends_everybody_and_leaves_the_questions_in_flight() -> None:
    before = asyncio.all_tasks()
    bench = Bench({str(number): 60.0 for number in range(40)}, at_once=4)
    async with bench.flights:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await bench.flights.take(0)
    assert asyncio.all_tasks() == before
    assert bench.stream.in_flight == 4
    again = Stream([Question(str(number), "?", ("x",)) for number in range(40)], 0)
    again.restore(bench.stream.state())
    assert [again.next().question.id for _ in range(4)] == bench.begun


async def test_an_error_of_a_group_is_raised_where_groups_are_asked_for() -> None:
    before = asyncio.all_tasks()

    def seconds(flight: Flight) -> float:
        if len(bench.begun) > 6:
            raise KeyError("a bug")
        return 0.01

    bench = Bench(seconds)

    async def run() -> None:
        async with bench.flights:
            while True:
                await bench.update(0.05)

    with pytest.raises(KeyError, match="a bug"):
        await run()
    assert asyncio.all_tasks() == before


async def test_a_world_that_fails_everything_ends_it() -> None:
    metrics, stream = Metrics(), Stream([Question(str(number), "?", ("x",)) for number in range(40)], 0)

    async def fly(flight: Flight) -> Group:
        name = flight.draw.question.id
        return Group(name, (Episode(f"{name}.0", name, (), Outcome.WORLD_FAILED, failure="the search is down"),))

    under_way, harvest = UnderWay(stream, metrics), Harvest(2, metrics)
    flights = Flights(stream, under_way, harvest, fly, at_once=3, staleness=1, most=6, metrics=metrics)
    async with flights:
        with pytest.raises(WorldDownError, match="the search is down"):
            await flights.take(0)
