"""A policy that can be run: its weights on the mesh, how it talks, and the engine around it."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax.sharding import Mesh

from dr_jax.agent.prompt import system_prompt
from dr_jax.base.errors import CapacityError, CheckpointError, ConfigError
from dr_jax.base.metrics import Metrics, Under
from dr_jax.engine.device import STOPS
from dr_jax.engine.engine import Engine
from dr_jax.model.decoder import Weights
from dr_jax.model.fingerprint import fingerprint
from dr_jax.model.load import load, tokenizer_source
from dr_jax.model.sizes import Sizes
from dr_jax.sharding.place import row_ways
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.train.compiled import keep_compiled
from dr_jax.train.placement import Placement, hand_over, place
from dr_jax.train.saved import saved
from dr_jax.train.settings import Settings


@dataclass(frozen=True, slots=True)
class Actor:
    """A policy that can be run.

    Args:
        sizes: of the model.
        weights: on the mesh; float32 where they are trained.
        chat: how it talks.
        engine: samples from a copy of the weights.
        placement: where both lie.
    """

    sizes: Sizes
    weights: Weights
    chat: Chat
    engine: Engine
    placement: Placement

    @property
    def mesh(self) -> Mesh:
        """Where the weights lie, and what learns from rows of a batch."""
        return self.placement.learning

    def lent(self, weights: Weights, dtype: str) -> Weights:
        """Return a copy of weights as the engine holds them."""
        return hand_over(weights, self.sizes, dtype, self.placement)


def load_actor(settings: Settings, metrics: Metrics) -> Actor:
    """Read the policy's weights onto the mesh and put an engine around them. Nothing is compiled yet.

    Raises:
        UserError: the mesh does not fit the devices, the checkpoint is of another architecture, the tokenizer does not
            belong to the model, or the budgets contradict each other.
    """
    keep_compiled()
    placement = place(settings)
    mesh = placement.learning
    checkpoint = saved(settings.model.load)
    named = checkpoint.base if checkpoint else settings.model.load
    chat = Chat(Tokenizer.load(tokenizer_source(named, settings.model.tokenizer)))
    refuse_contradictions(settings, chat, mesh)
    if checkpoint:
        sizes, weights = checkpoint.read(mesh=mesh, seed=settings.seed)
    else:
        # What is never changed need not be finer than what is computed with.
        dtype = jnp.dtype(settings.model.dtype if settings.lora.rank else jnp.float32)
        sizes, weights = load(settings.model.load, mesh=mesh, dtype=dtype, seed=settings.seed)
    refuse_foreign_tokenizer(chat, sizes, "model.tokenizer")
    lent = hand_over(weights, sizes, settings.model.dtype, placement)
    engine = Engine(lent, sizes, settings.engine, mesh=placement.sampling, metrics=metrics)
    return Actor(sizes, weights, chat, engine, placement)


@dataclass(frozen=True, slots=True)
class ReadingModel:
    """A model that reads pages and does not change.

    Args:
        engine: its own.
        chat: how it talks.
        name: tells its weights from all others.
    """

    engine: Engine
    chat: Chat
    name: str


def load_reading_model(settings: Settings, actor: Actor, metrics: Metrics) -> ReadingModel | None:
    """Put a second engine, with the capacities of the first, around the weights that read; None when the policy itself reads.

    Args:
        settings: `reader.model` is `frozen`, which are the actor's weights as they are now, at the start, or names others.
        actor: the policy.
        metrics: counts under `reader/engine/`.

    Raises:
        UserError: nothing has that name, or its tokenizer does not belong to it.
    """
    if settings.reader.kind != "policy" or settings.reader.model == "self":
        return None
    dtype, mesh = settings.model.dtype, actor.placement.sampling
    if settings.reader.model == "frozen":
        sizes, weights, chat = actor.sizes, actor.lent(actor.weights, dtype), actor.chat
    else:
        chat = Chat(Tokenizer.load(tokenizer_source(settings.reader.model)))
        sizes, weights = load(settings.reader.model, mesh=mesh, dtype=jnp.dtype(dtype), seed=settings.seed)
        refuse_foreign_tokenizer(chat, sizes, "reader.model")
    engine = Engine(weights, sizes, settings.engine, mesh=mesh, metrics=Under(metrics, "reader"))
    return ReadingModel(engine, chat, f"weights {fingerprint(weights)}")


def refuse_foreign_tokenizer(chat: Chat, sizes: Sizes, setting: str) -> None:
    """Check that a model has an embedding for every id of its tokenizer.

    Raises:
        CheckpointError: it has not.
    """
    if chat.tokenizer.vocab_size > sizes.vocab:
        raise CheckpointError(
            f"The tokenizer has {chat.tokenizer.vocab_size} ids, the model {sizes.vocab}",
            needed="the tokenizer that the model was made for",
            fix=f"set {setting}",
        )


def refuse_contradictions(settings: Settings, chat: Chat, mesh: Mesh) -> None:
    """Check what two tables of the settings say about each other.

    Raises:
        ConfigError, CapacityError: naming both settings.
    """
    episode, rows = settings.episode, settings.batch.rows
    prompt = len(chat.open(system_prompt(settings.prompt), "?"))
    if prompt + 16 > episode.tokens:
        raise CapacityError(
            f"episode.tokens = {episode.tokens} is smaller than the prompt of {prompt} tokens and a short question",
            needed=f"room for the prompt and {settings.episode.turns} turns",
            fix="raise episode.tokens, or use prompt.style=brief with a policy that knows the form",
        )
    if episode.tokens > settings.engine.max_context:
        raise ConfigError(
            f"episode.tokens = {episode.tokens} is more than engine.max_context = {settings.engine.max_context}",
            needed="an engine that holds a whole episode",
            fix="raise engine.max_context or lower episode.tokens",
        )
    if episode.tokens > settings.batch.lengths[-1]:
        raise ConfigError(
            f"episode.tokens = {episode.tokens} is more than the longest row of a batch, {settings.batch.lengths[-1]}",
            needed="rows that hold a whole episode",
            fix=f"add {episode.tokens} to batch.lengths",
        )
    pool = (settings.engine.page_count - 1) * settings.engine.page_size
    if episode.tokens > pool:
        raise ConfigError(
            f"episode.tokens = {episode.tokens} is more than the {pool} ids that engine.pages = {settings.engine.pages} hold",
            needed="pages that hold a whole episode",
            fix=f"set engine.pages to at least {-(-episode.tokens // settings.engine.page_size) + 1}, or to 0",
        )
    if len(chat.stop_ids) > STOPS:
        raise ConfigError(f"The chat format ends turns with {len(chat.stop_ids)} different ids", needed=f"at most {STOPS}")
    if episode.top_p < 1 or episode.top_k:
        raise ConfigError(
            f"episode.top_p = {episode.top_p} and top_k = {episode.top_k} sample from what the trainer cannot compute",
            needed="top_p = 1 and top_k = 0 for episodes that are trained on",
            fix="remove both; temperature may be changed",
        )
    if rows % row_ways(mesh):
        raise CapacityError(
            f"batch.rows = {rows} cannot be spread over the {row_ways(mesh)} devices of the mesh's data and fsdp axes",
            needed=f"a multiple of {row_ways(mesh)}",
            fix=f"set batch.rows={-(-rows // row_ways(mesh)) * row_ways(mesh)}",
        )
