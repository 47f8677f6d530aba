"""Whether rollouts follow the number of Ray's workers, and outlive them: `python -m benchmarks.elastic`.

Work:  a run's rollouts on littleweb, of the quickstart's policy, drawn by workers alone: processes of a Ray cluster on this
       machine, each with an engine that computes with one thread and is held to one core, so that two of them have twice as
       much as one. Before every turn so many ids are drawn as a script says, and thrown away: on few cores this process, which
       keeps the episodes and their web, would have more to do than the engines. The weights stay as they are; all sides
       are asked the same questions with the same keys
Sides: `one worker` (the first of the questions), `two workers`, `two, one killed`: two, one of which is killed by SIGKILL
       at a random moment of every 20 s, and replaced
Needs: `pip install 'dr-jax[ray]'`; 5 minutes, and for the rates two cores that nobody else uses
Out:   a table; `results/elastic.json` (episodes an hour; what was lost, doubled or different), `results/elastic.png`; an error
       if an episode was lost or doubled, or a request's ids or log-probabilities differ from the side where nobody was killed
Reads: episodes an hour from the first request to the end of the last episode, least and most those of stretches of 10 s between
       the first seconds and the moment when the last group was begun; workers, their cores and ids a second over that time.
       A worker that replaces another takes seconds to start, so the number of workers is an average
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

# Before JAX and Ray are imported: workers inherit it.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

from rich.console import Console

from benchmarks.boundary import Boundary
from benchmarks.result import RESULTS
from benchmarks.ridden import Ridden, checks, draw, failures, show, written
from benchmarks.witness import Gap, Witness
from dr_jax.base.config import read
from dr_jax.base.errors import ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.data.stream import Stream
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling
from dr_jax.train.actor import load_actor
from dr_jax.train.elastic.cluster import answered
from dr_jax.train.elastic.crew import Crew
from dr_jax.train.elastic.open import refuse_missing
from dr_jax.train.elastic.pool import Pool
from dr_jax.train.elastic.wire import LostError
from dr_jax.train.run import Run, opened
from dr_jax.train.settings import Settings

ROOT = Path(__file__).parents[1]
CONSOLE = Console(stderr=True, highlight=False)
LOOK_S = 0.1
AT_ONCE = 12  # groups
SHARED = (
    *("rollout.ray.address=local", "rollout.ray.own=false", "rollout.ray.resource=", "rollout.ray.report_s=0.25"),
    *("rollout.ray.connect_s=120", "rollout.ray.rest_s=1", "eval.questions=1", "engine.max_context=1280"),
    # Some more requests than slots, so that no slot is empty while an answer travels.
    *("engine.slots=8", "rollout.ray.in_flight=16"),
)


@dataclass(frozen=True, slots=True)
class Side:
    """What one side is.

    Args:
        workers: how many are kept.
        share: of the questions.
        killed: whether one of them is killed now and then.
    """

    workers: int
    share: float = 1.0
    killed: bool = False


SIDES = {"one worker": Side(1, 0.6), "two workers": Side(2), "two, one killed": Side(2, killed=True)}


class Thinking:
    """A policy that draws ids before each turn, for itself alone; how many follows from the request.

    Args:
        policy: that draws.
        think: ids, on average; 0 is none.
    """

    def __init__(self, policy: Witness, think: int) -> None:
        self._policy, self._think = policy, think

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        """Think, then speak; see `tokens.policy.Policy`."""
        count = random.Random(str(key)).randint(self._think // 2, self._think * 3 // 2)
        if count:
            unheard = replace(key, purpose=f"think:{key.purpose}")
            await self._policy.sample(prompt_ids, replace(sampling, max_new_tokens=count, stop_ids=()), unheard)
        return await self._policy.sample(prompt_ids, sampling, key)


async def ride(side: Side, told: argparse.Namespace) -> Ridden:
    """Roll one side's groups out, to the last episode."""
    groups = max(1, round(told.groups * side.share))
    count = (f"rollout.ray.workers={side.workers}", f"rollout.groups={groups}", f"rollout.in_flight={8 * min(groups, AT_ONCE)}")
    settings = read(Settings, ROOT / "configs" / "quickstart.toml", [*SHARED, *count, *told.options])
    if not settings.rollout.drains:
        sys.exit("benchmarks.elastic: these options have more groups under way than there are; leave rollout.* out")
    metrics = Metrics()
    async with opened(settings, metrics, lambda *_: None) as run:
        pool, crew = run.speaker.policy, run.elsewhere
        assert isinstance(pool, Pool)
        assert crew is not None
        pids: dict[str, int] = {}
        pinning = asyncio.create_task(_pin(crew, told.cores, pids))
        while len(pids) < side.workers:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        ridden = _witnessed(run, told)
        others = [pinning, asyncio.create_task(_watch(crew, pool, pids, metrics, ridden))]
        if side.killed:
            others.append(asyncio.create_task(_kill(crew, ridden, told)))
        async with aclosing(run.groups()) as collected:
            ended = await anext(collected)
        ridden.close([episode.id for group in ended for episode in group.episodes], metrics)
        for task in others:
            task.cancel()
        for end in await asyncio.gather(*others, return_exceptions=True):
            if not isinstance(end, asyncio.CancelledError):
                raise end if isinstance(end, BaseException) else AssertionError("they go on for ever")
        size = settings.rollout.group_size
        ridden.wanted = [f"{question.id}.{one}" for question in _first(run, groups) for one in range(size)]
    return ridden


def _witnessed(run: Run, told: argparse.Namespace) -> Ridden:
    witness = Witness(run.train.actors.policy)
    run.train = replace(run.train, actors=replace(run.train.actors, policy=Thinking(witness, told.think)))
    run.total = witness.rewarding(run.total)  # type: ignore[assignment]
    return Ridden(witness, told.first)


def _first(run: Run, count: int) -> list[Question]:
    """The questions that a run of these settings is asked first."""
    stream = Stream(list(run.questions.values()), run.settings.seed)
    return [stream.next().question for _ in range(count)]


async def _pid(crew: Crew, name: str) -> int:
    # A lambda travels as it is; a function of this module would travel by its name, and workers do not have this module.
    return await answered(crew.actors[name].__ray_call__.remote(lambda _: os.getpid()), name)


async def _watch(crew: Crew, pool: Pool, pids: Mapping[str, int], metrics: Metrics, ridden: Ridden) -> None:
    """Note how many workers there are, and how much they have drawn."""
    while True:
        ridden.look(len(pool.hands), [pid for name, pid in pids.items() if name in crew.actors], metrics)
        await asyncio.sleep(LOOK_S)


async def _pin(crew: Crew, cores: Sequence[int], pids: dict[str, int]) -> None:
    """Hold each worker that joins to a core that no other of them has, and note its process."""
    held: dict[str, int] = {}
    while True:
        held = {name: core for name, core in held.items() if name in crew.actors}
        for name in [name for name in crew.actors if name not in held]:
            free = [core for core in cores if core not in held.values()]
            if free:
                with suppress(LostError, OSError):  # it is gone by now
                    held[name], pids[name] = free[0], await _pid(crew, name)
                    for thread in os.listdir(f"/proc/{pids[name]}/task"):
                        os.sched_setaffinity(int(thread), free[:1])
        await asyncio.sleep(LOOK_S)


async def _kill(crew: Crew, ridden: Ridden, told: argparse.Namespace) -> None:
    """Kill one of the workers at a random moment of every so many seconds."""
    dice = random.Random(told.seed)
    for turn in itertools.count():
        when = ridden.start + (turn + dice.random()) * told.every
        await asyncio.sleep(max(0.0, when - time.perf_counter()))
        while not crew.actors:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        name = dice.choice(sorted(crew.actors))
        os.kill(await _pid(crew, name), signal.SIGKILL)
        ridden.kills.append(time.perf_counter())
        CONSOLE.print(f"{name} was killed after {ridden.kills[-1] - ridden.start:.0f} s")


def boundary(told: argparse.Namespace) -> Gap:
    """Load the policy once more, to look at what was drawn."""
    settings = read(Settings, ROOT / "configs" / "quickstart.toml", [*SHARED, "rollout.ray.workers=1", *told.options])
    actor = load_actor(settings, Metrics())
    return Boundary(actor.weights, actor.sizes, settings.engine.max_context).gap


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--groups", type=int, default=60, help="of eight episodes each")
    parser.add_argument("--think", type=int, default=64, help="ids that are drawn before each turn, on average")
    parser.add_argument("--every", type=float, default=20.0, help="seconds in which one worker is killed")
    parser.add_argument("--first", type=float, default=10.0, help="seconds that are not counted")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed, and when")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("options", nargs="*", help="settings of all sides, such as engine.slots=32")
    told = parser.parse_args(arguments)
    told.cores = sorted(os.sched_getaffinity(0))
    try:
        refuse_missing()
    except ConfigError as error:
        sys.exit(f"benchmarks.elastic: {error}")
    found = dict[str, Ridden]()
    for name in told.sides:
        found[name] = asyncio.run(ride(SIDES[name], told))
        CONSOLE.print(f"{name}: {len(found[name].witness.ended)} episodes in {found[name].end - found[name].start:.0f} s")
    show(found)
    checked = checks(found, boundary(told))
    written(found, checked, told.think, told.out)
    draw(found, told.out / "elastic.png")
    if wrong := failures(checked):
        sys.exit(f"benchmarks.elastic: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
