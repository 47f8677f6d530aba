"""Build every part of a run from its settings, and take all of them down again.

In:    Settings
Out:   Run: engine, worlds, questions, optimizer state, the compiled update
Fails: before anything long starts, with what to change
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dr_jax.agent.reader import make_reader
from dr_jax.agent.world import World
from dr_jax.base.errors import CheckpointError, ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.data import holdout, sources
from dr_jax.data.question import Question
from dr_jax.engine.engine import Engine
from dr_jax.learn import optimizer as optimizers
from dr_jax.learn.update import State, Update, begin, make_update, through
from dr_jax.littleweb import questions as puzzles
from dr_jax.littleweb import world as littleworld
from dr_jax.littleweb.site import serve
from dr_jax.model import load
from dr_jax.model.decoder import Weights, describe
from dr_jax.model.sizes import Sizes
from dr_jax.sharding.mesh import make_mesh
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import Policy
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.train.settings import Settings
from dr_jax.web.guard import AllowedHost
from dr_jax.web.web import Web


@dataclass(frozen=True, slots=True)
class Actor:
    """A policy that can be run: weights, their shape, and how it talks."""

    sizes: Sizes
    weights: Weights
    chat: Chat
    engine: Engine
    mesh: Mesh

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its chat."""
        return self.chat.tokenizer


def load_actor(settings: Settings, metrics: Metrics) -> Actor:
    """Read the policy's weights onto the mesh and put an engine around them. Nothing is compiled yet.

    Raises:
        UserError: the mesh does not fit the devices, the checkpoint is of another architecture, the tokenizer is larger
            than the vocabulary, or the engine's memory cannot hold one request.
    """
    mesh = make_mesh(settings.mesh)
    tokenizer = Tokenizer.load(load.tokenizer_source(settings.model.load, settings.model.tokenizer))
    sizes, weights = load.load(settings.model.load, mesh=mesh, dtype=jnp.float32, seed=settings.seed)
    if tokenizer.vocab_size > sizes.vocab:
        raise CheckpointError(
            f"The tokenizer has {tokenizer.vocab_size} ids, the model {sizes.vocab}",
            needed="a tokenizer that the model was made for",
            fix="set model.tokenizer",
        )
    engine = Engine(in_dtype(weights, settings.model.dtype), sizes, settings.engine, mesh=mesh, metrics=metrics)
    return Actor(sizes, weights, Chat(tokenizer), engine, mesh)


def in_dtype(weights: Weights, dtype: str) -> Weights:
    """Return the weights as the engine holds them; a copy, because the update donates its own."""
    return {name: jnp.array(weight, dtype=jnp.dtype(dtype), copy=True) for name, weight in weights.items()}


@asynccontextmanager
async def opened_web(settings: Settings, split: str, metrics: Metrics) -> AsyncIterator[tuple[Web, tuple[puzzles.Puzzle, ...]]]:
    """Open the web that a config names; with littleweb, build its world of this split, serve it, and draw its questions."""
    async with AsyncExitStack() as stack:
        if settings.web.search != "littleweb":
            yield await stack.enter_async_context(Web(settings.web, metrics=metrics)), ()
            return
        drawn, allowed = await _served(settings, split, stack)
        web = await stack.enter_async_context(Web(settings.web, allow=(allowed,), metrics=metrics))
        yield web, drawn


async def _served(settings: Settings, split: str, stack: AsyncExitStack) -> tuple[tuple[puzzles.Puzzle, ...], AllowedHost]:
    here, training = settings.littleweb, split == "train"
    seed, count = (here.train_seed, settings.data.questions) if training else (here.eval_seed, settings.eval.questions)
    world = littleworld.build(littleworld.WorldSettings(seed=seed, entities=here.entities, split=split))
    site = await stack.enter_async_context(serve(world, faults=here.faults))
    drawn = puzzles.draw(world, max(count, 1), hops=settings.data.hops, seed=settings.seed if training else 0)
    return tuple(drawn), AllowedHost(suffix="littleweb", address="127.0.0.1", port=site.port)


def make_world(settings: Settings, web: Web, chat: Chat, policy: Policy | None, metrics: Metrics) -> World:
    """Put tools and reader around a web."""
    reader = make_reader(settings.reader, chat=chat, policy=policy, metrics=metrics)
    return World(web, reader, settings.tools, tokenizer=chat.tokenizer, metrics=metrics)


def training_questions(settings: Settings, drawn: Sequence[puzzles.Puzzle]) -> list[Question]:
    """Return the questions to train on: of the file that the config names, or littleweb's."""
    if settings.data.path:
        return sources.read(settings.data.path, limit=settings.data.limit or None)
    if not drawn:
        raise ConfigError("There are no questions", needed="data.path with a real web", fix="set data.path to a question file")
    return [puzzle.question for puzzle in drawn]


def eval_questions(settings: Settings, drawn: Sequence[puzzles.Puzzle], *, alone: bool) -> list[Question]:
    """Return the held-out questions.

    Args:
        settings: of the run.
        drawn: littleweb's held-out questions.
        alone: whether only an evaluation is asked for; `data.path` then is what to evaluate.
    """
    path = settings.data.eval_path or (settings.data.path if alone else "")
    if path:
        return sources.read(path, limit=(settings.data.limit if alone else 0) or settings.eval.questions or None)
    return [puzzle.question for puzzle in drawn][: settings.eval.questions]


def run_directory(settings: Settings, *, resume: bool) -> Path:
    """Return the run's directory; a finished or broken run of the same name is moved aside, never overwritten.

    Raises:
        ConfigError: `resume` and there is nothing to resume.
    """
    directory = Path(settings.out) / settings.name
    if resume and not (directory / "config.json").exists():
        raise ConfigError(
            f"There is no run in {directory}", needed="a run that was started before", fix="leave out --resume, or set name"
        )
    if directory.exists() and not resume:
        number = 1
        while (aside := directory.with_name(f"{directory.name}.old-{number}")).exists():
            number += 1
        directory.rename(aside)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def compile_cache() -> None:
    """Keep compiled programs between runs, where the person has not chosen a place already."""
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "dr_jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
