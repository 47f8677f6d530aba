"""Measure a policy without training it, or watch it work on one question.

In:    Settings
Out:   scores and episodes, or one episode told live; engine and trainer are compared on what was sampled
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dr_jax.base.config import to_tree
from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.learn.batch import pack_supervised
from dr_jax.learn.update import make_score, through
from dr_jax.rollout.episode import Watch
from dr_jax.rollout.record import EpisodeWriter
from dr_jax.sharding.place import place_rows, row_ways
from dr_jax.tokens.trajectory import Author, Episode
from dr_jax.train.actor import Actor
from dr_jax.train.evaluate import score
from dr_jax.train.questions import eval_questions
from dr_jax.train.report import write_json
from dr_jax.train.run import opened_stage
from dr_jax.train.settings import Settings

Told = Callable[[str, int, Mapping[str, Any]], None]


async def measure(settings: Settings, *, told: Told) -> dict[str, Any]:
    """Attempt every question once, write the episodes to `NAME-eval/`, and return the score with `mismatch_max`."""
    metrics = Metrics()
    async with opened_stage(settings, metrics, told) as (stage, _):
        questions = eval_questions(settings, (await stage.place("eval")).drawn, alone=True)
        stage.warm_up(lambda name, done, count: told("compiling", done, {"count": count}))
        directory = Path(settings.out) / f"{settings.name}-eval"
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", to_tree(settings))
        with EpisodeWriter(directory / "episodes.jsonl", stage.actor.chat.tokenizer.decode) as writer:
            episodes = await stage.evaluate(
                questions,
                lambda n: told("evaluating", n, {"count": len(questions)}),
                lambda question, episode: writer.write(episode, question),
            )
        found = score(questions, episodes).tree()
        found["mismatch_max"] = mismatch(settings, stage.actor, episodes)
        write_json(directory / "summary.json", {"eval": found, "metrics": metrics.drain()})
    return found


async def ask(settings: Settings, text: str, *, told: Told, watch: Watch) -> tuple[Question, Episode]:
    """Run one episode on a question of a person's; `watch` is told what happens as it happens."""
    async with opened_stage(settings, Metrics(), told) as (stage, _):
        place = await stage.place("eval")
        known = {puzzle.question.text: puzzle.question for puzzle in place.drawn}
        question = known.get(text) or (Question("asked", text, ("?",)) if text else place.drawn[0].question)
        stage.warm_up(lambda name, done, count: told("compiling", done, {"count": count}))
        episode_settings = replace(settings.episode, temperature=settings.eval.temperature)
        return question, await stage.attempt(question, place, episode_settings, watch)


def mismatch(settings: Settings, actor: Actor, episodes: Sequence[Episode]) -> float:
    """Return the largest difference between the engine's and the trainer's log-probability of a sampled token."""
    spoken = [one for one in episodes if any(trajectory.by(Author.POLICY) for trajectory in one.trajectories)]
    if not spoken:
        return 0.0
    forward = through(actor.sizes, compute_dtype=jnp.dtype(settings.model.dtype), attention=settings.model.attention)
    scored = make_score(forward)
    worst = 0.0
    ways = row_ways(actor.mesh)
    shapes = settings.batch if settings.batch.rows else replace(settings.batch, rows=ways)
    for batch in pack_supervised(spoken, shapes, rows_multiple=ways):
        placed = place_rows(batch, actor.mesh)
        logprobs_BT = scored(actor.weights, placed, settings.eval.temperature)
        found_BT, sampled_BT, trained_BT = jax.device_get((logprobs_BT, placed.sampled_logprobs, placed.trained))
        worst = max(worst, float(np.max(np.abs(found_BT - sampled_BT)[trained_BT], initial=0.0)))
    return worst
