"""The worlds that a run acts in, and the way there: littleweb served on loopback, or the open web; directly or by gateways.

In:    settings of the web and of littleweb, a split
Out:   `Web`, or `RemoteWeb` where the settings name gateways: the same methods; for a gateway, all worlds of a run
Holds: JAX is not imported here: a gateway needs none
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from dr_jax.base.metrics import Metrics
from dr_jax.littleweb.faults import Faults
from dr_jax.littleweb.names import Split
from dr_jax.littleweb.site import serve
from dr_jax.littleweb.world import LittleWorld, WorldSettings, build
from dr_jax.web.gateway.client import RemoteWeb
from dr_jax.web.guard import AllowedHost
from dr_jax.web.search.budget import Budget
from dr_jax.web.search.catalogue import remembered_as
from dr_jax.web.settings import WebSettings
from dr_jax.web.web import Web

AnyWeb = Web | RemoteWeb


@dataclass(frozen=True, slots=True)
class LittlewebSettings:
    """The worlds that are served on loopback when `web.search` is `littleweb`.

    Args:
        entities: in each world.
        train_seed: of the world that is trained on.
        eval_seed: of the held-out world; no name of it occurs in any training world, whatever the seeds.
        faults: what goes wrong, for tests.
    """

    entities: int = 2400
    train_seed: int = 0
    eval_seed: int = 0
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.world("train"), self.world("eval")  # what is out of range is said there

    def world(self, split: Split) -> WorldSettings:
        """The world of a split."""
        return WorldSettings(seed=self.train_seed if split == "train" else self.eval_seed, entities=self.entities, split=split)


@functools.lru_cache(maxsize=2)
def built(settings: WorldSettings) -> LittleWorld:
    """Return a world of littleweb; those of a run are built once."""
    return build(settings)


def world_name(web: WebSettings, little: WorldSettings) -> str:
    """Return the name under which a gateway serves a world: what is searched, and which littleweb if that is among it."""
    name = remembered_as(web.searching)
    if "littleweb" not in web.order:
        return name
    return f"{name} ({little.split}, seed {little.seed}, {little.entities} entities)"


@asynccontextmanager
async def way_out(
    web: WebSettings,
    little: WorldSettings,
    *,
    faults: Faults | None = None,
    metrics: Metrics | None = None,
    budget: Budget | None = None,
) -> AsyncIterator[AnyWeb]:
    """Open the way to a world, and serve it first if it is littleweb's and nobody else does.

    Args:
        web: providers, limits, tape; or gateways.
        little: which littleweb, where that is searched.
        faults: what goes wrong there.
        metrics, budget: as for `Web`; with gateways the budgets are theirs.

    Raises:
        UserError: a key is missing, or no gateway can be reached.
    """
    if web.gateways:
        async with RemoteWeb(web, world_name(web, little), metrics=metrics) as remote:
            yield remote
        return
    async with AsyncExitStack() as stack:
        allowed: tuple[AllowedHost, ...] = ()
        if "littleweb" in web.order and web.tape.mode != "replay":
            site = await stack.enter_async_context(serve(built(little), faults=faults))
            allowed = (AllowedHost(suffix="littleweb", address="127.0.0.1", port=site.port),)
        world = world_name(web, little) if "littleweb" in web.order else ""  # all of them have the same addresses
        way = Web(web, allow=allowed, metrics=metrics, budget=budget, world=world)
        yield await stack.enter_async_context(way)


async def ways_out(web: WebSettings, littleweb: LittlewebSettings, metrics: Metrics, stack: AsyncExitStack) -> dict[str, Web]:
    """Open the way to every world that a run of these settings acts in, for a gateway: two of littleweb's, or the one web.

    Args:
        web: without gateways.
        littleweb: the worlds, where that is searched.
        metrics: of all of them.
        stack: closes them.

    Returns:
        Ways, by the names of their worlds.
    """
    budget, webs = Budget(web.budget, metrics), dict[str, Web]()
    for split in ("train", "eval"):
        little = littleweb.world(split)
        name = world_name(web, little)
        if name not in webs:
            way = way_out(web, little, faults=littleweb.faults, metrics=metrics, budget=budget)
            found = await stack.enter_async_context(way)
            assert isinstance(found, Web)
            webs[name] = found
    return webs
