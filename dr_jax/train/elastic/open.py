"""Open what draws for a run beside its own engine, and what does its web's work elsewhere.

In:    settings, the actor whose weights are shared
Out:   the pool that takes the engine's place as the policy, and the crew that hears of newer weights; workers for the web
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dr_jax.base.errors import ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.train.actor import Actor
from dr_jax.train.elastic.hand import OwnHand
from dr_jax.train.elastic.pool import Pool
from dr_jax.train.elastic.worker import Spec
from dr_jax.train.settings import Settings

if TYPE_CHECKING:
    from dr_jax.train.elastic.crew import Crew
    from dr_jax.train.elastic.web_crew import WebCrew


def refuse_missing() -> None:
    """Check that Ray is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "rollout.ray asks for workers elsewhere, and Ray is not installed",
            fix="`pip install 'dr-jax[ray]'` here and on every host, or set rollout.ray.workers and .web.workers to 0",
        ) from error


@asynccontextmanager
async def shared(settings: Settings, actor: Actor, metrics: Metrics) -> AsyncIterator[tuple[Pool, Crew]]:
    """Have workers elsewhere draw as well, for as long as the block lasts.

    Args:
        settings: of the run, with `rollout.ray.workers` above 0.
        actor: whose engine draws too, if `rollout.ray.own` says so, and whose weights the workers begin with.
        metrics: of the run.

    Raises:
        ConfigError: Ray is not installed, or its cluster cannot be used.
    """
    refuse_missing()
    from dr_jax.train.elastic.crew import Crew

    far = settings.rollout.ray
    pool = Pool(staleness=settings.rollout.staleness, alone_s=far.alone_s, metrics=metrics)
    pool.newest = actor.engine.version
    if far.own:
        pool.join(OwnHand(actor.engine, settings.engine.slots))
    first = actor.lent(actor.weights, settings.model.dtype)
    async with Crew(far, Spec(actor.sizes, settings.engine), first, actor.engine.version, pool, metrics) as crew:
        yield pool, crew


@asynccontextmanager
async def web_crew(settings: Settings, metrics: Metrics) -> AsyncIterator[WebCrew]:
    """Have workers elsewhere search, open and read pages, for as long as the block lasts.

    Args:
        settings: of the run, with `rollout.ray.web.workers` above 0.
        metrics: of the run.

    Raises:
        ConfigError: Ray is not installed, its cluster cannot be used, or no worker came to be.
    """
    refuse_missing()
    from dr_jax.train.elastic.web_crew import Errand, WebCrew

    async with WebCrew(settings.rollout.ray, Errand(settings.web, settings.littleweb), metrics) as crew:
        yield crew
