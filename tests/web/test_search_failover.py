"""Taking turns: fail-over, rates, budget, breaker, and coming back, with providers that do as they are told."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dr_jax.base.errors import BudgetError, WorldDownError
from dr_jax.base.metrics import Metrics
from dr_jax.web.pace import Slots
from dr_jax.web.page import Hit, WebError
from dr_jax.web.search.breaker import Breaker, Ticket
from dr_jax.web.search.budget import Budget
from dr_jax.web.search.failover import Failover, Patience
from dr_jax.web.search.settings import BreakerSettings, BudgetSettings
from dr_jax.web.search.source import ProviderError, Source

BAD_QUERY = WebError("bad_query", "not taken")
QUICK = BreakerSettings(failures=3, open_s=0.1, most_s=0.4, hold_s=0.3, down_s=5.0)


def error(kind: Any = "server", *, again: bool = True, after_s: float | None = None) -> ProviderError:
    return ProviderError(kind, f"it was {kind}", again=again, after_s=after_s)


class Scripted:
    """Answers as told, the last answer for ever: True is a hit with its name, a number so many seconds of silence."""

    def __init__(self, name: str, *answers: Any) -> None:
        self.name, self.answers, self.asked = name, list(answers), 0
        self.times: list[float] = []

    async def __call__(self, query: str) -> Any:
        self.asked += 1
        self.times.append(time.monotonic())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, float):
            await asyncio.sleep(answer)
        if isinstance(answer, ProviderError):
            raise answer
        return answer if isinstance(answer, WebError | tuple) else (Hit(self.name, f"http://{self.name}.org/", query),)


def failover(
    *scripts: Scripted,
    metrics: Metrics | None = None,
    budget: Budget | None = None,
    breaker: BreakerSettings = QUICK,
    slots: Callable[[], Slots] = lambda: Slots(64, None, 1),
    search_s: float = 2.0,
    queue_s: float = 1.0,
    attempts: int = 2,
    vetted: bool = True,
    costs: Sequence[float] = (0.001, 0.001, 0.001),
) -> tuple[Failover, list[Source]]:
    metrics = metrics or Metrics()
    sources = [
        Source(
            script.name,
            script,
            cost=price,
            slots=slots(),
            queue_s=queue_s,
            vetted=vetted,
            breaker=Breaker(script.name, breaker, metrics),
            hold_s=breaker.hold_s,
            budget=budget or Budget(BudgetSettings()),
            metrics=metrics,
        )
        for script, price in zip(scripts, costs, strict=False)
    ]
    return Failover(sources, Patience(search_s, queue_s, attempts, 0.01, 0.05, breaker.down_s), metrics), sources


def titles(found: Any) -> list[str]:
    return [hit.title for hit in found]


async def test_the_first_answers_and_the_others_are_not_asked() -> None:
    one, two = Scripted("one", True), Scripted("two", True)
    search, _ = failover(one, two)
    assert titles(await search.search("x")) == ["one"]
    assert (one.asked, two.asked) == (1, 0)


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        *((error(kind), 2) for kind in ("busy", "server", "timeout", "unreachable", "shape")),
        *((error(kind, again=False), 1) for kind in ("key", "credits", "status")),
    ],
)
async def test_the_next_is_asked_when_one_fails(answer: ProviderError, asked: int) -> None:
    one, two, metrics = Scripted("one", answer), Scripted("two", True), Metrics()
    search, _ = failover(one, two, metrics=metrics)
    assert titles(await search.search("x")) == ["two"]
    assert (one.asked, two.asked) == (asked, 1)
    counted = metrics.drain()
    assert counted[f"search/one/errors/{answer.kind}"] == asked
    assert counted["search/failovers"] == 1
    assert counted["search/two/s_n"] == 1


async def test_nothing_found_and_a_query_not_taken_are_answers() -> None:
    two = Scripted("two", True)
    search, _ = failover(Scripted("one", (), BAD_QUERY), two)
    assert await search.search("x") == ()
    assert await search.search("x") == BAD_QUERY
    assert two.asked == 0


async def test_one_that_recovers_is_asked_again() -> None:
    one = Scripted("one", error(), True)
    search, _ = failover(one)
    assert titles(await search.search("x")) == ["one"]
    assert one.asked == 2


async def test_all_that_failed_are_named() -> None:
    search, _ = failover(Scripted("one", error("key", again=False)), Scripted("two", error("shape")))
    with pytest.raises(WorldDownError, match="it was key; it was shape"):
        await search.search("x")


async def test_a_hanging_provider_leaves_time_for_the_next() -> None:
    one, two = Scripted("one", 9.0), Scripted("two", 0.05)
    search, _ = failover(one, two, search_s=0.6)
    start = time.monotonic()
    assert titles(await search.search("x")) == ["two"]
    assert 0.2 < time.monotonic() - start < 0.5


async def test_a_search_ends_in_time() -> None:
    search, _ = failover(Scripted("one", 9.0), Scripted("two", 9.0), search_s=0.4)
    start = time.monotonic()
    with pytest.raises(WorldDownError, match=r"more than 0\.4 s.*one did not answer within"):
        await search.search("x")
    assert time.monotonic() - start < 0.6


async def test_a_short_pause_is_waited_for_by_everybody_and_a_long_one_opens_the_breaker() -> None:
    one = Scripted("one", error("busy", after_s=0.2), True)
    search, sources = failover(one)
    found = await asyncio.gather(search.search("a"), search.search("b"))
    assert [titles(hits) for hits in found] == [["one"], ["one"]]
    await asyncio.sleep(0)
    assert min(one.times[2:]) - one.times[0] >= 0.2
    one.answers[:] = [error("busy", after_s=60.0), True]
    two = Scripted("two", True)
    search, sources = failover(one, two)
    assert titles(await search.search("x")) == ["two"]
    assert sources[0].breaker.state == "open"
    assert sources[0].breaker.due_s == pytest.approx(0.4, abs=0.1)  # no longer than `most_s`


async def test_queries_keep_to_the_rate() -> None:
    """Two at once, then ten in a second: six need 0.4 s."""
    one = Scripted("one", True)
    search, _ = failover(one, slots=lambda: Slots(8, 10.0, 2))
    start = time.monotonic()
    await asyncio.gather(*(search.search(str(number)) for number in range(6)))
    assert 0.25 < time.monotonic() - start < 0.9


async def test_a_queue_that_is_too_long_is_not_the_providers_fault() -> None:
    one, two = Scripted("one", 0.3), Scripted("two", True)
    search, sources = failover(one, two, slots=lambda: Slots(1, None, 1), queue_s=0.05)
    slow = asyncio.create_task(search.search("slow"))
    await asyncio.sleep(0.05)
    assert titles(await search.search("x")) == ["two"]
    assert (one.asked, two.asked) == (1, 1)
    assert titles(await slow) == ["one"]
    assert sources[0].breaker.state == "closed"


async def test_waiting_for_ones_turn_is_not_searching() -> None:
    """Ten wait for one place, two seconds in all, and no search may take more than one."""
    one, metrics = Scripted("one", 0.2), Metrics()
    search, _ = failover(one, slots=lambda: Slots(1, None, 1), search_s=1.0, queue_s=5.0, metrics=metrics)
    found = await asyncio.gather(*(search.search(str(number)) for number in range(10)))
    assert [titles(hits) for hits in found] == [["one"]] * 10
    assert not [name for name in metrics.drain() if "errors" in name]


async def test_who_was_not_asked_is_counted() -> None:
    one, metrics = Scripted("one", 0.3), Metrics()
    search, sources = failover(one, slots=lambda: Slots(1, None, 1), queue_s=0.05, attempts=1, metrics=metrics)
    slow = asyncio.create_task(search.search("slow"))
    await asyncio.sleep(0.05)
    with pytest.raises(WorldDownError, match=r"not a query's turn within 0\.05 s"):
        await search.search("x")
    await slow
    sources[0].breaker.failed(Ticket(0, probe=False), "it said so", for_s=0.3)
    with pytest.raises(WorldDownError):
        await search.search("x")
    assert metrics.drain()["search/one/errors/queue"] == 1


async def test_a_provider_that_refuses_every_query_is_at_fault() -> None:
    one, two, metrics = Scripted("one", BAD_QUERY), Scripted("two", True), Metrics()
    search, sources = failover(one, two, metrics=metrics)
    assert [await search.search("x") for _ in range(QUICK.failures)] == [BAD_QUERY] * QUICK.failures
    assert titles(await search.search("x")) == ["two"]
    assert "check its settings" in sources[0].breaker.why
    assert metrics.drain()["search/one/errors/bad_query"] == QUICK.failures


async def test_a_few_queries_that_are_not_taken_are_nobodys_fault() -> None:
    one = Scripted("one", *[BAD_QUERY, BAD_QUERY, True] * 3)
    search, sources = failover(one)
    for _ in range(9):
        await search.search("x")
    assert sources[0].breaker.state == "closed"
    loose, sources = failover(Scripted("model", BAD_QUERY), vetted=False)  # pages may all be too long for a model
    assert {await loose.search("x") for _ in range(9)} == {BAD_QUERY}
    assert sources[0].breaker.state == "closed"


async def test_a_bad_query_is_not_what_the_provider_is_tried_with() -> None:
    asked: list[str] = []

    class Picky(Scripted):
        async def __call__(self, query: str) -> Any:
            asked.append(query)
            return BAD_QUERY if query == "bad" else (Hit("picky", "http://p.org/", query),)

    search, sources = failover(Picky("picky"))
    await search.search("good")
    for _ in range(QUICK.failures):
        await search.search("bad")
    assert sources[0].breaker.state == "open"
    await asyncio.wait_for(search.healthy(), 2.0)
    assert asked[-1] == "good"
    await search.close()


# The budget.


async def test_the_budget_of_queries_is_never_passed() -> None:
    one, metrics = Scripted("one", 0.01), Metrics()
    budget = Budget(BudgetSettings(queries=10), metrics)
    search, _ = failover(one, budget=budget)
    found = await asyncio.gather(*(search.search(str(number)) for number in range(25)), return_exceptions=True)
    stopped = [one for one in found if isinstance(one, BudgetError)]
    assert (one.asked, len(stopped), budget.queries) == (10, 15, 10)
    for words in ("10 queries were sent", "for 0.01 in money", "limit is 10 queries", "web.budget.queries"):
        assert words in str(stopped[0])
    counted = metrics.drain()
    expected = {"search/queries": 10, "search/one/queries": 10, "search/money": 0.01, "search/one/money": 0.01}
    assert {name: counted[name] for name in expected} == pytest.approx(expected)


async def test_the_budget_of_money_stops_before_it_is_passed() -> None:
    one, two = Scripted("one", True), Scripted("two", True)
    search, _ = failover(one, two, budget=Budget(BudgetSettings(money=0.01)), costs=(0.003, 0.0))
    for number in range(3):
        await search.search(str(number))
    with pytest.raises(BudgetError, match=r"3 queries were sent, for 0\.009.*limit is 0\.01.*web\.budget\.money"):
        await search.search("x")
    assert (one.asked, two.asked) == (3, 0)  # the run ends; it does not go on with another provider


async def test_what_a_provider_did_not_bill_is_given_back() -> None:
    """Refusals are free; whoever did not say that it failed may have billed it."""
    script = Scripted("one", error("server"), error("busy"), BAD_QUERY, error("shape"), error("timeout"), True)
    budget = Budget(BudgetSettings())
    search, _ = failover(script, budget=budget, breaker=BreakerSettings(), attempts=10)
    for _ in range(2):
        await search.search("x")
    assert (script.asked, budget.queries) == (6, 3)
    assert budget.money == pytest.approx(0.003)


def test_a_budget_goes_on_where_it_was() -> None:
    budget = Budget(BudgetSettings(queries=5), queries=4, money=0.2)
    budget.take("one", 0.1)
    with pytest.raises(BudgetError, match=r"5 queries were sent, for 0\.3 "):
        budget.take("one", 0.1)


def test_free_queries_pass_a_budget_of_money() -> None:
    budget = Budget(BudgetSettings(money=0.001), money=0.001)
    budget.take("local", 0.0)
    assert budget.queries == 1


# The breaker.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("one", BreakerSettings(failures=3, open_s=10.0, most_s=25.0), Metrics(), clock)


def fail(breaker: Breaker, **how: Any) -> None:
    ticket = breaker.enter()
    assert ticket is not None
    breaker.failed(ticket, "why", **how)


def test_closed_open_half_open_closed(breaker: Breaker, clock: Clock) -> None:
    for _ in range(2):
        fail(breaker)
    ticket = breaker.enter()
    assert ticket is not None
    breaker.went_well(ticket)
    for _ in range(2):
        fail(breaker)
    assert breaker.state == "closed"  # not three in a row
    fail(breaker)
    assert (breaker.state, breaker.enter(), breaker.due_s, breaker.why) == ("open", None, 10.0, "why")
    clock.now = 10.0
    assert breaker.state == "half_open"
    probe = breaker.enter()
    assert probe is not None
    assert breaker.enter() is None  # one probe
    breaker.left(probe)  # given up by the asker: another may try
    assert breaker.state == "half_open"
    fail(breaker)
    assert breaker.due_s == 20.0  # twice as long
    clock.now = 30.0
    fail(breaker)
    assert breaker.due_s == 25.0  # at most
    clock.now = 55.0
    probe = breaker.enter()
    assert probe is not None
    breaker.went_well(probe)
    assert (breaker.state, breaker.why) == ("closed", "")
    for _ in range(3):
        fail(breaker)
    assert breaker.due_s == 10.0  # from the beginning


def test_some_failures_open_it_at_once(breaker: Breaker) -> None:
    fail(breaker, for_good=True)
    assert breaker.due_s == 25.0


def test_a_pause_that_was_asked_for_is_kept(breaker: Breaker) -> None:
    fail(breaker, for_s=17.0)
    assert breaker.due_s == 17.0


def test_what_was_asked_before_a_change_says_nothing_afterwards(breaker: Breaker, clock: Clock) -> None:
    early = [breaker.enter() for _ in range(8)]
    for ticket in early[:7]:
        assert ticket is not None
        breaker.failed(ticket, "why")
    assert breaker.due_s == 10.0  # four came too late to make it longer
    assert early[7] is not None
    breaker.went_well(early[7])
    assert breaker.state == "open"
    clock.now = 10.0
    probe = breaker.enter()
    assert probe is not None
    breaker.left(early[7])
    assert breaker.enter() is None


def test_the_breakers_state_is_a_metric(clock: Clock) -> None:
    metrics = Metrics()
    breaker = Breaker("one", BreakerSettings(failures=1, open_s=1.0), metrics, clock)
    seen = [metrics.drain()["search/one/breaker"]]
    fail(breaker)
    counted = metrics.drain()
    seen.append(counted["search/one/breaker"])
    assert counted["search/one/breaker_opened"] == 1
    clock.now = 1.0
    probe = breaker.enter()
    seen.append(metrics.drain()["search/one/breaker"])
    assert probe is not None
    breaker.went_well(probe)
    assert [*seen, metrics.drain()["search/one/breaker"]] == [0.0, 1.0, 0.5, 0.0]


# Outages.


async def test_when_all_are_left_alone_searching_fails_at_once_and_comes_back_by_itself() -> None:
    one, two, metrics = Scripted("one", error()), Scripted("two", error()), Metrics()
    search, sources = failover(one, two, metrics=metrics, attempts=3)
    with pytest.raises(WorldDownError):
        await search.search("x")
    assert [source.breaker.state for source in sources] == ["open", "open"]
    assert metrics.drain()["search/down"] == 1.0
    asked, start = one.asked + two.asked, time.monotonic()
    with pytest.raises(WorldDownError, match="one is left alone: it was server; two is left alone"):
        await search.search("x")
    assert time.monotonic() - start < 0.05
    assert one.asked + two.asked == asked
    two.answers[:] = [True]
    await asyncio.sleep(0.15)
    assert titles(await search.search("x")) == ["two"]  # the probe of one failed, that of two did not
    assert sources[1].breaker.state == "closed"
    assert metrics.drain()["search/down"] == 0.0


async def test_siblings_stop_asking_when_the_breaker_opens() -> None:
    """Two at a time: when the first three requests have failed, those who wait are not sent."""
    one = Scripted("one", error())
    search, _ = failover(one, slots=lambda: Slots(2, None, 1), attempts=3)
    found = await asyncio.gather(*(search.search(str(number)) for number in range(40)), return_exceptions=True)
    assert all(isinstance(one, WorldDownError) for one in found)
    assert one.asked <= 4


async def test_many_errors_are_not_an_outage() -> None:
    """Three of ten requests fail, none ten times in a row: everything is found in the end."""
    answers = [error() if number % 10 in (0, 3, 4) else True for number in range(400)]
    search, sources = failover(Scripted("one", *answers, True), breaker=BreakerSettings(), attempts=4)
    for number in range(100):
        assert await search.search(str(number))
    assert sources[0].breaker.state == "closed"


async def test_healthy_waits_for_the_world_to_come_back() -> None:
    one, metrics = Scripted("one", error()), Metrics()
    search, sources = failover(one, metrics=metrics, attempts=3)
    start = time.monotonic()
    await asyncio.gather(*(search.healthy() for _ in range(50)))
    assert time.monotonic() - start < 0.05
    with pytest.raises(WorldDownError):
        await search.search("the last query")
    waiting = [asyncio.create_task(search.healthy()) for _ in range(50)]
    await asyncio.sleep(0.25)
    asked = one.asked
    assert 4 <= asked <= 5  # three of the search, then one probe at a time
    assert not any(task.done() for task in waiting)
    assert metrics.drain()["search/down"] == 1.0
    waiting[0].cancel()
    one.answers[:] = [True]
    await asyncio.wait_for(asyncio.gather(*waiting[1:]), 2.0)
    assert one.asked == asked + 1
    assert metrics.drain()["search/down"] == 0.0
    assert sources[0].breaker.state == "closed"
    await search.close()


async def test_waiting_for_the_world_has_an_end() -> None:
    settings = BreakerSettings(failures=1, open_s=0.05, most_s=0.1, down_s=0.3)
    search, _ = failover(Scripted("one", error()), breaker=settings)
    with pytest.raises(WorldDownError):
        await search.search("x")
    with pytest.raises(WorldDownError, match=r"within 0\.3 s"):
        await search.healthy()


async def test_closing_ends_the_waiting() -> None:
    search, _ = failover(Scripted("one", error("key", again=False)))
    with pytest.raises(WorldDownError):
        await search.search("x")
    waiting = asyncio.create_task(search.healthy())
    await asyncio.sleep(0.02)
    waiting.cancel()
    await asyncio.wait({waiting})
    await search.close()
    with pytest.raises(WorldDownError, match="was closed"):
        await search.healthy()
    assert not [task for task in asyncio.all_tasks() if "recovery" in task.get_name()]


async def test_probes_cost_what_they_cost() -> None:
    one, budget = Scripted("one", error("timeout")), Budget(BudgetSettings(queries=3))
    search, _ = failover(one, budget=budget, attempts=2, breaker=BreakerSettings(failures=2, open_s=0.05, most_s=0.05))
    with pytest.raises(WorldDownError):
        await search.search("x")
    with pytest.raises(BudgetError):
        await search.healthy()
    assert one.asked == 3
