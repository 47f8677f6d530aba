"""Teach a fresh model the form of research from scripted researchers, so that reinforcement has something to work on.

In:    settings; littleweb's training worlds, one after another, none twice
Out:   a directory in Hugging Face format with weights and tokenizer
Holds: demonstrations are ordinary episodes over real HTTP; a diligent one that did not find what it was sent for is dropped
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jax

from dr_jax.base.errors import ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.learn.batch import Batch, BatchSettings, pack_supervised
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import make_optimizer
from dr_jax.learn.update import begin, make_update, through
from dr_jax.model import hf
from dr_jax.model.decoder import describe, initial
from dr_jax.model.sizes import NAMED
from dr_jax.rewards.match import f1
from dr_jax.rollout.collect import each_once
from dr_jax.tokens import vocabulary
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.tokens.trajectory import Episode
from dr_jax.train.demonstrate import NOT_FOUND, Manners, Researchers
from dr_jax.train.run import make_world, opened_web
from dr_jax.train.settings import Settings

Progress = Callable[[int, dict[str, float]], None]

_FILL = 0.85  # of a micro-batch; fuller ones often spill a row into a second, nearly empty one


async def cold_start(settings: Settings, directory: Path, *, progress: Progress) -> Path:
    """Train a policy on demonstrations and write it.

    Args:
        settings: `cold_start`, `optimizer`, `batch` and everything that shapes an episode.
        directory: where `model/` is written.
        progress: called after every update with its index and numbers.

    Returns:
        The directory of the model.
    """
    tokenizer = await _vocabulary(settings)
    chat = Chat(tokenizer)
    sizes = dataclasses.replace(NAMED[settings.cold_start.size], vocab=tokenizer.vocab_size)
    axes = {name: spec.axes for name, spec in describe(sizes).items()}
    optimizer = make_optimizer(settings.optimizer, axes, steps=settings.steps)
    state = begin(initial(sizes, jax.random.key(settings.seed)), optimizer)
    update = make_update(through(sizes), LossSettings(objective="supervised"), optimizer, state)
    step = 0
    async with asyncio.timeout(None):
        async for batches, episodes in _batches(settings, chat):
            state, numbers = await asyncio.to_thread(update, state, batches)
            step += 1
            progress(step, numbers | {"cold_start/episodes": float(episodes)})
            if step == settings.steps:
                break
        else:
            raise ConfigError(
                f"The demonstrations ended after {step} of {settings.steps} updates",
                needed=f"more of them than {settings.cold_start.worlds} worlds x {settings.cold_start.questions} questions give",
                fix="raise cold_start.worlds or cold_start.passes, or lower steps",
            )
    model = directory / "model"
    hf.write(model, sizes, jax.device_get(state.weights))
    vocabulary.save(tokenizer, model)
    return model


async def _vocabulary(settings: Settings) -> Tokenizer:
    """Train the tokenizer on demonstrations, which a tokenizer of bytes is enough to run."""
    bytes_only = Chat(vocabulary.train((), 300))
    roomy = dataclasses.replace(settings, episode=dataclasses.replace(settings.episode, tokens=1 << 20, max_new_tokens=4096))
    texts: list[str] = []
    async for episode in _demonstrations(roomy, bytes_only, world=-1, manners=Manners()):
        texts += vocabulary.plain(bytes_only.tokenizer.decode(episode.trajectories[-1].ids))
    return vocabulary.train(texts, settings.cold_start.vocabulary)


async def _batches(settings: Settings, chat: Chat) -> AsyncIterator[tuple[tuple[Batch, ...], int]]:
    """Fill micro-batches with fresh demonstrations; the next ones are collected while this one is trained on."""
    ready: asyncio.Queue[tuple[tuple[Batch, ...], int] | None] = asyncio.Queue(maxsize=4)

    async def collect() -> None:
        waiting: list[Episode] = []
        seen = tokens = 0
        shape = dataclasses.replace(settings.batch, lengths=settings.batch.lengths[-1:])
        for world in range(settings.cold_start.worlds):
            async for episode in _demonstrations(settings, chat, world=world, manners=settings.cold_start.manners):
                waiting.append(episode)
                seen += 1
                tokens += len(episode.trajectories[0])
                if tokens >= _FILL * settings.cold_start.tokens:
                    await ready.put((pack_supervised(waiting, _shape(shape)), seen))
                    waiting, tokens = [], 0
        await ready.put(None)

    task = asyncio.create_task(collect())
    try:
        while (item := await ready.get()) is not None:
            yield item
            if task.done():
                task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _shape(batch: BatchSettings) -> BatchSettings:
    return batch


async def _demonstrations(settings: Settings, chat: Chat, *, world: int, manners: Manners) -> AsyncIterator[Episode]:
    """Run one scripted episode per question of one fresh training world."""
    seeded = dataclasses.replace(
        settings,
        littleweb=dataclasses.replace(settings.littleweb, train_seed=settings.littleweb.train_seed + 1000 + world),
        data=dataclasses.replace(settings.data, questions=settings.cold_start.questions),
        seed=settings.seed + 1000 + world,
    )
    metrics = Metrics()
    async with opened_web(seeded, "train", metrics) as (web, drawn):
        researchers = Researchers(chat, {puzzle.question.id: puzzle for puzzle in drawn}, manners)
        acting = make_world(seeded, web, chat, None, metrics)
        questions = {puzzle.question.id: puzzle.question for puzzle in drawn}
        async for episode in each_once(
            list(questions.values()), policy=researchers, chat=chat, world=acting, settings=seeded.episode, run=seeded.seed
        ):
            if _useful(episode, questions[episode.question_id].answers, researchers):
                yield episode


def _useful(episode: Episode, answers: tuple[str, ...], researchers: Researchers) -> bool:
    """Keep what was done as it was meant: a diligent researcher found it, and nobody gave up for want of a page."""
    if episode.answer is None or episode.answer == NOT_FOUND:
        return False
    return f1(episode.answer, answers) == 1.0 or researchers.manner_of(episode) != "diligent"


def numbers_of(settings: Settings) -> dict[str, Any]:
    """What a person should know of a cold start before it begins."""
    return {
        "updates": settings.steps,
        "tokens per update": settings.cold_start.tokens,
        "demonstrations at most": settings.cold_start.worlds * settings.cold_start.questions,
    }
