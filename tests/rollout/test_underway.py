"""Groups that are stopped anywhere go on where they were: the same episodes, and nothing drawn or looked up twice."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from dr_jax.agent.context import ContextSettings
from dr_jax.agent.extractive import ExtractiveReader
from dr_jax.agent.reading import ReaderSettings, Reading, Task
from dr_jax.agent.world import World
from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.data.stream import Stream
from dr_jax.rewards.total import Total
from dr_jax.rollout.episode import Actors, EpisodeSettings, Unfinished
from dr_jax.rollout.group import run_group
from dr_jax.rollout.underway import UnderWay, UnfinishedGroup, UnfinishedSibling, as_json
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import Begun, RequestKey, Sampled, Sampling, Told
from dr_jax.tokens.trajectory import Group, Outcome, Trajectory, world
from dr_jax.web.page import Page
from tests.fakes import ScriptedWeb, answer, browse, search

QUESTIONS = [Question(f"q{number}", f"Who founded Velin {number}?", ("gold",), "littleweb") for number in range(6)]
URL = "http://x.littleweb/velin"
OTHER = "http://x.littleweb/market"
PAGES = {
    URL: "Velin is a town. It was founded by Oren Vash in 1871. It has a market.",
    OTHER: "The market of Velin is held on Sundays. Oren Vash opened it.",
}
SETTINGS = EpisodeSettings(turns=4, tokens=4000, max_new_tokens=400)  # after the fourth call they are told to answer
SIZE = 3


class Speaker:
    """Says its script id by id, telling each, and knows what it has drawn.

    Args:
        chat: encodes the script.
        version: of its weights.
        seconds: between two tellings.
    """

    def __init__(self, chat: Chat, *, version: int = 0, seconds: float = 0.0) -> None:
        self._chat, self._version, self._seconds = chat, version, seconds
        self.drawn = Counter[tuple[int, int, int]]()  # by sibling, turn and index
        self.asked: list[RequestKey] = []

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        return await self.continued(prompt_ids, sampling, key, Begun())

    async def continued(
        self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey, begun: Begun, told: Told | None = None
    ) -> Sampled:
        self.asked.append(key)
        script = [search(f"velin {key.sibling}"), browse(URL), browse(OTHER), search("market"), answer("gold" * key.sibling)]
        whole = (*self._chat.tokenizer.markup(script[key.turn]), self._chat.stop_ids[0])
        assert whole[: len(begun.ids)] == begun.ids
        while begun.ended(sampling) is None:
            await asyncio.sleep(self._seconds)
            at = len(begun.ids)
            more = Begun(
                whole[at : at + 4], tuple(-0.01 * one for one in whole[at : at + 4]), (self._version,) * len(whole[at : at + 4])
            )
            self.drawn.update((key.sibling, key.turn, at + place) for place in range(len(more.ids)))
            begun = begun.then(more)
            if told is not None:
                told(more)
        ended = begun.ended(sampling)
        assert ended is not None
        return ended


class Attentive(ExtractiveReader):
    """Remembers what it was asked, page after page."""

    def __init__(self, settings: ReaderSettings) -> None:
        super().__init__(settings)
        self.asked: list[tuple[RequestKey, Task]] = []

    async def read(self, page: Page, task: Task, key: RequestKey) -> tuple[Reading, ...]:
        self.asked.append((key, task))
        return await super().read(page, task, key)


class Bench:
    """One process: a stream, what is under way, a policy and a web.

    Args:
        chat: of the policy.
        settings: of episodes.
        policy: options of the `Speaker`.
    """

    def __init__(self, chat: Chat, settings: EpisodeSettings = SETTINGS, terms: str = "", **policy: float) -> None:
        self.metrics, self.stream, self.settings = Metrics(), Stream(QUESTIONS, 0), settings
        self.under_way = UnderWay(self.stream, self.metrics, terms)
        self.policy, self.web = Speaker(chat, **policy), ScriptedWeb(PAGES, seconds={"market": 0.005})
        self.reader = Attentive(ReaderSettings())
        self._actors = Actors(self.policy, chat, World(self.web, self.reader), "research")

    async def fly(self, *, system: str = "research", lands: bool = True) -> Group:
        """Run the next group to its end."""
        flight = self.under_way.next(0)
        actors = replace(self._actors, system=system)
        group = await run_group(flight.draw.question, actors, self.settings, Total(), size=SIZE, flight=flight)
        if lands:
            self.under_way.land(flight)
        return group

    def saved(self) -> str:
        """What would be in a checkpoint."""
        return json.dumps({"stream": self.stream.state(), "left": self.under_way.state()()})

    def restore(self, saved: str) -> None:
        """Go on from that."""
        known = json.loads(saved)
        left = self.under_way.read(known["left"])
        own = self.stream.restore(known["stream"], held=[(group.question_id, group.epoch) for group in left])
        assert len(own) == len(left)
        self.under_way.restore(left, {question.id: question for question in QUESTIONS})


def timeless(group: Group) -> Group:
    """The group without anything that a clock has told."""
    episodes = (
        replace(one, seconds={}, tools=tuple(replace(event, seconds=0.0) for event in one.tools)) for one in group.episodes
    )
    return replace(group, episodes=tuple(episodes))


async def stopped(bench: Bench, seconds: float) -> str:
    task = asyncio.create_task(bench.fly())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return bench.saved()


@pytest.mark.parametrize("context", [ContextSettings(), ContextSettings("keep_last_k", keep=1, slack=1)])
@pytest.mark.parametrize("seed", range(4))
async def test_7_a_group_that_is_stopped_again_and_again_ends_as_if_it_had_not_been(
    chat: Chat, seed: int, context: ContextSettings
) -> None:
    settings, rng = replace(SETTINGS, context=context), random.Random(seed)
    whole = Bench(chat, settings)
    wanted = timeless(await whole.fly())
    benches, saved = [Bench(chat, settings, seconds=0.0005)], ""
    for _ in range(4):
        saved = await stopped(benches[-1], rng.uniform(0.001, 0.03))
        benches.append(Bench(chat, settings, seconds=0.0005))
        benches[-1].restore(saved)
    assert timeless(await benches[-1].fly()) == wanted
    drawn = sum((bench.policy.drawn for bench in benches), Counter[tuple[int, int, int]]())
    assert drawn == whole.policy.drawn, "each id was drawn once"
    searched = Counter(query for bench in benches for query in bench.web.searched)
    once = Counter(whole.web.searched)
    assert once <= searched
    assert (searched - once).total() <= 4 * SIZE, "only what was being asked when it was stopped is asked again"
    asked = {task for bench in benches for task in bench.reader.asked}
    assert asked == set(whole.reader.asked), "a reader was told something else than it would have been"
    assert benches[-1].stream.in_flight == 1, "nobody knows yet what becomes of it"


async def test_what_has_ended_is_kept_with_its_rewards(chat: Chat) -> None:
    """As when a run is stopped between a group's end and its gathering."""
    bench = Bench(chat)
    group = await bench.fly(lands=False)
    again = Bench(chat)
    again.restore(bench.saved())
    assert await again.fly() == group
    assert {episode.reward for episode in group.episodes} == {0.0, 1.0}
    assert not again.policy.asked


async def test_9_what_is_too_old_is_given_back_and_the_rest_goes_on(chat: Chat) -> None:
    old, new = Bench(chat, version=3, seconds=0.001), Bench(chat, version=5, seconds=0.001)
    first, second = json.loads(await stopped(old, 0.02)), json.loads(await stopped(new, 0.02))
    (left,) = new.under_way.read(second["left"])
    assert left.oldest == 5
    bench = Bench(chat)
    bench.restore(json.dumps(first))
    flight = bench.under_way.next(4)
    assert flight.oldest is None, "it is a new one"
    assert flight.draw.question.id != old.under_way.read(first["left"])[0].question_id, (
        "what was given back comes after the others"
    )
    assert bench.metrics.drain() == {"rollout/stale_groups": 1}
    bench = Bench(chat)
    bench.restore(json.dumps(second))
    flight = bench.under_way.next(4)
    assert flight.oldest == 5
    told = bench.metrics.drain()
    assert told["rollout/resumed_groups"] == 1
    assert told["rollout/resumed_tokens"] == new.policy.drawn.total()


async def test_who_began_with_another_prompt_begins_again(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    saved = await stopped(Bench(chat, seconds=0.001), 0.02)
    bench = Bench(chat)
    bench.restore(saved)
    group = await bench.fly(system="research otherwise")
    assert "begun again" in caplog.text
    opened = tuple(chat.open("research otherwise", QUESTIONS[[q.id for q in QUESTIONS].index(group.question_id)].text))
    assert all(episode.trajectories[0].segments[0].ids == opened for episode in group.episodes)


async def test_who_began_by_other_terms_begins_again(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    saved = await stopped(Bench(chat, terms="f1", seconds=0.001), 0.02)
    assert Bench(chat, terms="f1").under_way.read(json.loads(saved)["left"])
    assert not Bench(chat, terms="em").under_way.read(json.loads(saved)["left"])
    assert "1 unfinished groups are begun again" in caplog.text


async def test_the_time_before_a_stop_counts_and_that_in_between_does_not(chat: Chat) -> None:
    bench = Bench(chat, seconds=0.002)
    saved = await stopped(bench, 0.05)
    left = bench.under_way.read(json.loads(saved)["left"])[0].left
    assert all(0 <= one.reached.seconds["all"] < 0.06 for one in left)
    early = max(one.reached.seconds["all"] for one in left)
    again = Bench(chat, replace(SETTINGS, all_s=early / 2))
    again.restore(saved)
    outcomes = [episode.outcome for episode in (await again.fly()).episodes]
    assert Outcome.WORLD_FAILED in outcomes
    once_more = Bench(chat)
    once_more.restore(saved)
    for one, episode in zip(left, (await once_more.fly()).episodes, strict=True):
        for name, spent in one.reached.seconds.items():
            assert episode.seconds[name] >= spent


def test_numbers_of_a_broken_model_read_back(chat: Chat) -> None:
    begun = Begun((1, 2), (float("-inf"), float("nan")), (0, 0))
    reached = Unfinished((Trajectory((world((1,)),)),), (), (), (), {"all": 0.0}, {}, "", ())
    group = UnfinishedGroup("q", 3, left=(UnfinishedSibling(0, reached, begun),))
    (read,) = Bench(chat).under_way.read([as_json(TypeAdapter(UnfinishedGroup), group)])
    assert repr(read) == repr(group)


async def test_who_is_given_up_is_not_kept(chat: Chat) -> None:
    bench = Bench(chat)
    flights = [bench.under_way.next(0) for _ in range(3)]
    bench.under_way.give_up(flights[1])
    bench.under_way.land(flights[2])
    known = json.loads(bench.saved())
    assert [one.question_id for one in bench.under_way.read(known["left"])] == [flights[0].draw.question.id]
    assert bench.under_way.give_up_all() == 1
    assert bench.stream.in_flight == 1
