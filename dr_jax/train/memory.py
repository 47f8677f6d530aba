"""Choose what the update computes again and how many rows it takes at once, by the memory that there is.

In:    settings with `remat = "auto"` or `batch.rows = 0`, what a run has on its devices
Out:   `Choice`: the cheapest recomputation with which anything fits, and with it the most rows that win something
Holds: what fits is what the compiler says of the run's own programs, which the run then finds compiled; all processes choose
       alike; a run that is resumed goes on with its first choice, so that sums are added up in the same order
Fails: CapacityError that says how much would be needed, and what to change
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dr_jax.base.errors import CapacityError
from dr_jax.base.trace import logger
from dr_jax.learn.update import Programs, State
from dr_jax.model.decoder import Remat
from dr_jax.sharding.place import bytes_of, row_ways
from dr_jax.sharding.rules import RULES
from dr_jax.train.actor import Actor, ReadingModel
from dr_jax.train.ahead import abstract_batch
from dr_jax.train.room import GIB, Room, room
from dr_jax.train.settings import Settings
from dr_jax.train.together import Together
from dr_jax.train.trained import Trained

_log = logger(__name__)

REMATS: tuple[Remat, ...] = ("none", "products", "full")  # in order of what they cost
# Tokens of a device from which on more at once win nothing. An accelerator reads or gathers weights once for all of them, which
# beside computing 32,768 takes little: by published rates a twelfth of the time where v5e chips gather, less elsewhere. On two
# cores a token of a model of 1 M parameters took 178 us of 1,024 at once, 159 of 2,048 and 155 of 8,192.
_ENOUGH = {"cpu": 2048}
_ENOUGH_ELSEWHERE = 32_768

Needed = Callable[[Remat, int], float]


@dataclass(frozen=True, slots=True)
class Choice:
    """How the update uses the memory that there is.

    Args:
        remat: what of each layer is computed again in the backward pass.
        rows: of a micro-batch, over all devices.
        needed: bytes of one device while the update runs, with all that lies there besides.
        usable: bytes of one device that it was chosen for.
    """

    remat: Remat
    rows: int
    needed: float
    usable: float

    @property
    def fits(self) -> bool:
        """Whether there is as much as it needs."""
        return self.needed <= self.usable

    def applied(self, settings: Settings) -> Settings:
        """Return the settings with nothing left to be chosen."""
        return replace(settings, remat=self.remat, batch=replace(settings.batch, rows=self.rows))

    def tree(self) -> dict[str, Any]:
        """Return it for the summary of a run."""
        needed, usable = (round(size / GIB, 4) for size in (self.needed, self.usable))
        return {"remat": self.remat, "rows": self.rows, "needed_gib": needed, "usable_gib": usable}


def is_open(settings: Settings) -> bool:
    """Whether something is to be chosen."""
    return settings.remat == "auto" or not settings.batch.rows


def candidates(settings: Settings, mesh: Mesh) -> tuple[list[Remat], list[int]]:
    """Return what may be chosen: recomputation, the cheapest first, and rows, the fewest first.

    Rows are doubled from one for each device on, so that a little more or less memory seldom makes a difference, until they
    hold what a device computes as fast as it can, or all that an update can learn from.
    """
    remats = list(REMATS) if settings.remat == "auto" else [settings.remat]
    if settings.batch.rows:
        return remats, [settings.batch.rows]
    ways, rollout, platform = row_ways(mesh), settings.rollout, mesh.devices.flat[0].platform
    enough = _ENOUGH.get(platform, _ENOUGH_ELSEWHERE) * ways
    tokens = min(enough, rollout.groups * rollout.group_size * settings.episode.tokens)
    most = max(1, tokens // settings.batch.lengths[-1] // ways)
    return remats, [ways << doubled for doubled in range(most.bit_length())]


def choose(remats: Sequence[Remat], rows: Sequence[int], needed: Needed, usable: float) -> Choice:
    """Choose, asking as seldom as possible; where nothing fits, return what comes nearest.

    Args:
        remats: the cheapest first.
        rows: rising.
        needed: bytes of one device with one of each; it rises with the rows, by the same for each.
        usable: bytes of one device that there are.
    """
    smallest: list[Choice] = []
    for remat in remats:
        smallest.append(found := Choice(remat, rows[0], needed(remat, rows[0]), usable))
        if found.fits:
            return _widest(found, rows[1:], needed)
    return min(smallest, key=lambda one: one.needed)


def _widest(fits: Choice, more: Sequence[int], needed: Needed) -> Choice:
    """Return the same with the most rows: the line through the first two says where to look."""
    if not more:
        return fits
    second = replace(fits, rows=more[0], needed=needed(fits.remat, more[0]))
    if not second.fits:
        return fits
    each = (second.needed - fits.needed) / (second.rows - fits.rows)
    for rows in reversed([rows for rows in more[1:] if fits.needed + each * (rows - fits.rows) <= fits.usable]):
        found = replace(fits, rows=rows, needed=needed(fits.remat, rows))
        if found.fits:
            return found
    return second


@dataclass(frozen=True, slots=True)
class Learner:
    """What the programs of an update are made from.

    Args:
        settings: of the whole run.
        trained: what is trained.
        state: all that changes.
        optimizer: what changes it.
        mesh: where all that lies.
    """

    settings: Settings
    trained: Trained
    state: State
    optimizer: optax.GradientTransformation
    mesh: Mesh

    def gradient_bytes(self, remat: Remat, rows: int) -> float:
        """Compile the gradient's program as the run calls it; return the bytes of one device that it takes beside what lasts.

        Infinite, where the compiler itself finds that there is not as much.
        """
        loss, length, cut = self.settings.loss, self.settings.batch.lengths[-1], self.mesh.shape["sequence"]
        batch = abstract_batch(rows * cut, length // cut, self.mesh)
        over = tuple(axis for axis in RULES["row"].over if self.mesh.shape[axis] > 1)  # as the compiler names where scores lie
        score = jax.ShapeDtypeStruct(
            batch.weights.shape, jnp.float32, sharding=NamedSharding(self.mesh, PartitionSpec(over or None))
        )
        told = tuple(score if wanted else None for wanted in (loss.needs_reference, loss.needs_start))
        sums, weights = self._sums, self.state.weights
        given = (sums, weights, self.trained.frozen or {}, batch, *told, self.state.step, np.float32(1))
        return _compiled(self._programs(remat).add, given, self.mesh) + bytes_of((sums, batch, told))

    def step_bytes(self) -> float:
        """Compile the step's program, which is the same whatever is chosen; return what `gradient_bytes` does."""
        given = (self.state.weights, self.state.optimizer, self._sums)
        return _compiled(self._programs("none").apply, given, self.mesh) + bytes_of(self._sums)

    @property
    def _sums(self) -> dict[str, jax.ShapeDtypeStruct]:
        of = jax.ShapeDtypeStruct
        return {name: of(one.shape, jnp.float32, sharding=one.sharding) for name, one in self.state.weights.items()}

    def _programs(self, remat: Remat) -> Programs:
        return Programs(self.trained.forward(self.settings, remat), self.settings.loss, self.optimizer, self.state)


def _compiled(program: Any, given: tuple[Any, ...], mesh: Mesh) -> float:
    """Return the bytes of one device that a program takes beside what it is given."""
    try:
        with jax.set_mesh(mesh):
            memory = program.trace(*given).lower().compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _log.debug("a program does not fit: %s", str(error).splitlines()[0])
        return math.inf
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return float(results + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes)


def lasting(learner: Learner, actor: Actor, reading: ReadingModel | None) -> dict[str, int]:
    """Return the bytes that a run has on each device that learns for as long as it lasts, by part."""
    settings, state = learner.settings, learner.state
    kept = {"weights": state.weights, "optimizer": state.optimizer}
    if settings.loss.needs_reference or settings.lora.rank:
        kept["weights of the start"] = actor.weights
    if not actor.placement.apart:
        kept["engine"], kept["pages"] = actor.engine.held
        kept |= {"reader": reading.engine.held} if reading is not None else {}
    return {name: bytes_of(part) for name, part in kept.items()}


def fitted(
    learner: Learner,
    actor: Actor,
    reading: ReadingModel | None,
    together: Together,
    before: tuple[Remat, int] | None = None,
) -> Choice | None:
    """Choose for a run, the same on all processes, and say so; None where nothing is open.

    Args:
        learner: whose programs have to fit.
        actor: the policy, whose engine has its pages.
        reading: the model that reads pages, where it is another one.
        together: this process and the others, all of which call this.
        before: what was chosen when the run began.

    Raises:
        CapacityError: nothing fits.
    """
    settings, mesh = learner.settings, learner.mesh
    if not is_open(settings):
        return None
    parts = lasting(learner, actor, reading)
    held = sum(parts.values())
    here = room([device for device in mesh.devices.flat if device.process_index == together.index], held, settings.memory_gib)
    usable, most = (min(one) for one in zip(*together.exchange([here.usable, here.most]), strict=True))
    step = max(together.exchange(learner.step_bytes()))
    tried: dict[tuple[Remat, int], float] = {}

    def needed(remat: Remat, rows: int) -> float:
        tried[remat, rows] = held + max(step, *together.exchange(learner.gradient_bytes(remat, rows)))
        return tried[remat, rows]

    remats, rows = candidates(settings, mesh)
    found = _again(before, remats, settings, mesh, needed, most) or choose(remats, rows, needed, usable)
    if not found.fits:
        raise _too_large(settings, found, replace(here, usable=usable), parts)
    if together.first:
        told = ", ".join(f"{remat} with {count} rows {size / GIB:.3g}" for (remat, count), size in tried.items())
        _log.info(
            "remat = %s, batch.rows = %d: the update takes %.3g of the %.3g GiB that %s. Compiled: %s",
            *(found.remat, found.rows, found.needed / GIB, found.usable / GIB, here.where, told),
        )
    return found


def _again(
    before: tuple[Remat, int] | None, remats: Sequence[Remat], settings: Settings, mesh: Mesh, needed: Needed, most: float
) -> Choice | None:
    """Return the choice of before, unless the settings were changed or these devices cannot go on with it."""
    if before is None:
        return None
    remat, rows = before
    if remat not in remats or settings.batch.rows not in (0, rows):
        return None
    found = Choice(remat, rows, math.inf if rows % row_ways(mesh) else needed(remat, rows), most)
    if found.fits:
        return found
    _log.warning(
        "these devices cannot go on with remat = %s and batch.rows = %d: choosing again, after which sums differ by rounding",
        *before,
    )
    return None


def _too_large(settings: Settings, nearest: Choice, there: Room, parts: dict[str, int]) -> CapacityError:
    kept = ", ".join(f"{name} {size / GIB:.3g}" for name, size in parts.items())
    needed = "more GiB than the compiler can use" if math.isinf(nearest.needed) else f"{nearest.needed / GIB:.3g} GiB"
    changes = [
        "remat=full" if nearest.remat != "full" else "",
        "batch.rows=0" if settings.batch.rows else "",
        "a larger memory_gib" if settings.memory_gib else "",
        "fewer engine.pages" if "pages" in parts else "",
        "loss.kl=none, which needs no reference" if settings.loss.needs_reference and not settings.lora.rank else "",
        f"shorter rows than batch.lengths = {settings.batch.lengths[-1]}",
        "lora.rank" if not settings.lora.rank else "",
        "more devices",
    ]
    return CapacityError(
        f"The update takes {needed} of each device with remat = {nearest.remat} and batch.rows = {nearest.rows}, and "
        f"{there.usable / GIB:.3g} GiB {there.where}",
        needed=f"as much; {sum(parts.values()) / GIB:.3g} GiB are what lasts: {kept}",
        fix="one of: " + "; ".join(filter(None, changes)),
    )
