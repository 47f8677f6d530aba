"""One question from the stream to the gradient, with a tiny real policy and a scripted web. Read this first."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from dr_jax.agent.extractive import ExtractiveReader
from dr_jax.agent.reading import ReaderSettings
from dr_jax.agent.world import World
from dr_jax.data.question import Question
from dr_jax.data.stream import Stream
from dr_jax.engine.engine import Engine
from dr_jax.engine.settings import EngineSettings
from dr_jax.learn.advantage import informative
from dr_jax.learn.batch import BatchSettings, pack
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import OptimizerSettings, make_optimizer
from dr_jax.learn.update import begin, make_update, through
from dr_jax.model.decoder import Weights, describe, initial
from dr_jax.model.sizes import NAMED, Sizes
from dr_jax.rollout.episode import Actors, EpisodeSettings
from dr_jax.rollout.group import run_group
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.trajectory import Author, Episode
from tests.fakes import ScriptedWeb, small_tokenizer

QUESTION = Question("q", "What is the capital of Narnia?", ("Cair Paravel",))


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(small_tokenizer())


@pytest.fixture(scope="module")
def sizes(chat: Chat) -> Sizes:
    small = {"width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "ff": 64, "tied": False}
    return dataclasses.replace(NAMED["tiny"], vocab=chat.tokenizer.vocab_size, **small)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def weights(sizes: Sizes) -> Weights:
    return initial(sizes, jax.random.key(0))


@pytest.fixture(scope="module")
def engine(sizes: Sizes, weights: Weights) -> Iterator[Engine]:
    with Engine(weights, sizes, EngineSettings(slots=4, max_context=160, prefill_rows=(4,))) as running:
        yield running


def few_ids(episode: Episode, question: Question) -> Episode:
    """A reward that differs between siblings whatever they babble."""
    said = [token for one in episode.trajectories for segment in one.by(Author.POLICY) for token in segment.ids]
    return episode.rewarded({"few": -sum(said) / len(said)})


async def test_one_question_from_the_stream_to_the_gradient(chat: Chat, sizes: Sizes, weights: Weights, engine: Engine) -> None:
    draw = Stream([QUESTION], seed=1).next()
    world = World(ScriptedWeb({"http://a.example/x": "Cair Paravel."}), ExtractiveReader(ReaderSettings()))
    settings = EpisodeSettings(tokens=160, max_new_tokens=16)
    group = await run_group(draw.question, Actors(engine, chat, world, "be brief"), settings, few_ids, size=4)

    kept = informative([group])
    assert kept == [group], "siblings that differ only by key drew different ids and so earned different rewards"
    (batch,) = pack(kept, BatchSettings(rows=8, lengths=(160,)))
    sampled = sorted(segment.ids for one in group.episodes for segment in one.trajectories[0].by(Author.POLICY))
    trained = sorted(
        tuple(row_ids[(row_segments == number) & row_trained].tolist())
        for row_ids, row_segments, row_trained in zip(batch.ids, batch.segments, batch.trained, strict=True)
        for number in range(1, int(row_segments.max()) + 1)
    )
    assert trained == sampled, "the ids that are trained on are the ids that were sampled"

    optimizer = make_optimizer(
        OptimizerSettings(learning_rate=1e-2, weight_decay=0.0),
        {name: spec.axes for name, spec in describe(sizes).items()},
        steps=1,
    )
    state = begin(weights, optimizer)
    update = make_update(through(sizes), LossSettings(kl="none", entropy_coefficient=0.0), optimizer, state)
    after, stats = update(state, [batch])
    assert stats["update/mismatch_max"] < 1e-3, "engine and trainer agree about every sampled id"
    assert stats["update/ratio_max"] == pytest.approx(1.0, abs=1e-3)
    assert stats["update/clip_low_mean"] == stats["update/clip_high_mean"] == 0.0, "on-policy, nothing is clipped"

    moved = np.abs(np.asarray(after.weights["embed"]) - np.asarray(weights["embed"])).max(axis=1) > 0
    touched = np.zeros(sizes.vocab, bool)
    for row in range(batch.ids.shape[0]):
        for number in range(1, int(batch.segments[row].max()) + 1):
            touched[batch.ids[row][batch.segments[row] == number][:-1]] = True  # the last id predicts nothing
    assert not np.any(moved & ~touched), "a row of the embedding moved that no trained token has seen"
    assert np.any(moved)

    engine.adopt({name: np.asarray(weight) for name, weight in after.weights.items()}, version=int(after.step))  # type: ignore[misc]
    again = await run_group(draw.question, Actors(engine, chat, world, "be brief"), settings, few_ids, size=2)
    versions = {
        version for one in again.episodes for segment in one.trajectories[0].by(Author.POLICY) for version in segment.versions
    }
    assert versions == {1}, "what is sampled from now on is the new weights'"
