"""Ask a policy about questions without any tools: what it knows by heart, and what it thinks of them.

In:    a policy in our engine, or any other Policy
Out:   Sampler and Endpoint, as the filters of `data` need them; `asked`: both, as a recipe names them; `probe`: one question
       file through the contamination filter
Holds: samples depend on the question and on which of its samples it is, not on what else is under way
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dr_jax.base.config import read
from dr_jax.base.errors import ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.data.build import Asked
from dr_jax.data.filters.contamination import Contamination, ContaminationSettings
from dr_jax.data.filters.decision import Decision
from dr_jax.data.filters.journal import Journal, decided
from dr_jax.data.filters.quality import Endpoint
from dr_jax.data.question import Question
from dr_jax.rewards.normalize import normalized
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import Policy, RequestKey, Sampled, Sampling
from dr_jax.train.recipe import REPLY, BuildSettings, ServerJudge
from dr_jax.train.run import opened_stage
from dr_jax.train.settings import Settings

Told = Callable[[str, int, int], None]

_BY_HEART = "Answer the question from what you know, in a few words. If you are not sure, say what you think is most likely."


class PolicySampler:
    """A policy that answers without tools.

    Args:
        policy: the model.
        chat: its chat format.
        settings: temperature and length of a sample.
        seed: of the run.
    """

    def __init__(self, policy: Policy, chat: Chat, settings: ContaminationSettings, *, seed: int = 0) -> None:
        self._policy, self._chat, self._seed = policy, chat, seed
        self._sampling = Sampling(settings.max_new_tokens, settings.temperature, stop_ids=chat.stop_ids)

    async def sample(self, question: Question, count: int) -> list[str]:
        """Return so many independent answers.

        Raises:
            CapacityError: the question does not fit the engine.
            DrJaxError: the engine stopped.
        """
        prompt = self._chat.open(_BY_HEART, question.text)
        keys = [RequestKey(self._seed, question.id, sibling, 0, "by heart") for sibling in range(count)]
        tasks = [asyncio.ensure_future(self._policy.sample(prompt, self._sampling, key)) for key in keys]
        try:
            drawn = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [_said(self._chat, one) for one in drawn]


class PolicyEndpoint:
    """A policy that replies to prompts: greedily first, and with chance when the same prompt comes again.

    Args:
        policy: the model.
        chat: its chat format.
        max_new_tokens: of a reply.
        seed: of the run.
    """

    def __init__(self, policy: Policy, chat: Chat, *, max_new_tokens: int = 128, seed: int = 0) -> None:
        self._policy, self._chat, self._seed, self._max_new_tokens = policy, chat, seed, max_new_tokens
        self._times: Counter[str] = Counter()

    async def ask(self, prompt: str) -> str:
        """Return the reply.

        Raises:
            CapacityError: the prompt does not fit the engine.
            DrJaxError: the engine stopped.
        """
        name = hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()
        times = self._times[name]
        self._times[name] += 1
        sampling = Sampling(self._max_new_tokens, 1.0 if times else 0.0, stop_ids=self._chat.stop_ids)
        key = RequestKey(self._seed, name, times, 0, "reply")
        return _said(self._chat, await self._policy.sample(self._chat.open(REPLY, prompt), sampling, key))


@asynccontextmanager
async def asked(recipe: BuildSettings, told: Told) -> AsyncIterator[Asked]:
    """Open the policies and the server that a recipe's filters ask; one config is opened once.

    Raises:
        ConfigError: a filter is on and names nobody.
        UserError: as opening that policy does; the server's key is not in the environment.
    """
    async with AsyncExitStack() as stack:
        open_ones: dict[str, _Opened] = {}

        async def opened(name: str, config: str) -> _Opened:
            if not config:
                raise ConfigError(
                    f"{name}.on = true, and {name}.policy names nobody to ask",
                    needed="a config with a model, such as configs/smollm2.toml",
                    fix=f"set {name}.policy{', or quality.endpoint for a server' if name == 'quality' else ''}",
                )
            if config not in open_ones:
                open_ones[config] = await _opened(stack, read(Settings, config), told)
            return open_ones[config]

        judge: Endpoint | None = None
        sampler = sampled_from = None
        judge_name = ""
        if recipe.quality.on and recipe.quality.endpoint.url:
            judge = server = await stack.enter_async_context(ServerJudge(recipe.quality))
            judge_name = server.name
        elif recipe.quality.on:
            by = await opened("quality", recipe.quality.policy)
            judge = PolicyEndpoint(by.policy, by.chat, max_new_tokens=recipe.quality.max_new_tokens, seed=by.seed)
            judge_name = by.name
        if recipe.contamination.on:
            sampled_from = await opened("contamination", recipe.contamination.policy)
            sampler = PolicySampler(sampled_from.policy, sampled_from.chat, recipe.contamination, seed=sampled_from.seed)
        yield Asked(
            judge=judge,
            sampler=sampler,
            normal=normalized,
            judge_name=judge_name,
            sampler_name=sampled_from.name if sampled_from else "",
        )


async def probe(
    settings: Settings, questions: Sequence[Question], wanted: ContaminationSettings, journal: Path, *, told: Told
) -> list[tuple[Question, Decision]]:
    """Sample answers of one policy to questions and decide about them; what is in the journal is not asked again."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        model = await _opened(stack, settings, told)
        decisions = stack.enter_context(Journal(journal))
        sampler = PolicySampler(model.policy, model.chat, wanted, seed=model.seed)
        one = Contamination(sampler, normalized, wanted, model=model.name)
        done = 0

        def ticked(new: int) -> None:
            nonlocal done
            done += new
            told("sampling", done, len(questions))

        said = await decided(one, questions, decisions, ticked)
    return [
        (replace(question, meta={**question.meta, **decision.facts}), decision)
        for question, decision in zip(questions, said, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A policy that runs, and a name that tells it from others in a journal."""

    policy: Policy
    chat: Chat
    seed: int
    name: str


async def _opened(stack: AsyncExitStack, settings: Settings, told: Told) -> _Opened:
    stage, _ = await stack.enter_async_context(opened_stage(settings, Metrics(), lambda phase, index, numbers: None))
    stage.actor.engine.warm_up(lambda name, done, count: told("compiling", done, count))
    name = f"{settings.model.load} {settings.model.dtype} seed {settings.seed}"
    return _Opened(stage.actor.engine, stage.actor.chat, settings.seed, name)


def _said(chat: Chat, sampled: Sampled) -> str:
    """The text of a generation, without the token that ended it."""
    return chat.tokenizer.decode(sampled.ids[:-1] if sampled.finish == "stop" else sampled.ids)
